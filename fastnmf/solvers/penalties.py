"""Penalties on the factors: their terms in the objective and in the slopes of a half-step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..numerics import squared_norm


@dataclass(frozen=True)
class Penalty:
    """l1 ΣF + ½ l2 ‖F‖² on a factor F ≥ 0; false where it is zero. l2: a number, or one for each
    concept (K,)."""

    l1: float = 0.0
    l2: float | Tensor = 0.0

    def __bool__(self) -> bool:
        return isinstance(self.l2, Tensor) or self.l1 > 0 or self.l2 > 0

    def of(self, S: slice) -> Penalty:
        """That of a block of concepts."""
        return replace(self, l2=self.l2[S]) if isinstance(self.l2, Tensor) else self

    def curvature(self, squares: Tensor) -> Tensor:
        """The term l2 that is added to the diagonal (K,) of G, given that diagonal.

        A concept with G_kk = 0 has the slope l1 alone: with any curvature its minimum is zero.
        """
        added = torch.zeros_like(squares) + self.l2
        if self.l1:
            added.masked_fill_(squares + self.l2 < torch.finfo(squares.dtype).tiny, 1.0)
        return added

    def gram(self, G: Tensor) -> Tensor:
        """A copy of G (K, K) with the curvature added; G itself where nothing is penalised."""
        if not self:
            return G
        G = G.clone()
        G.diagonal().add_(self.curvature(G.diagonal()))
        return G

    def value(self, F: Tensor) -> Tensor | float:
        """The penalty of F (m, K), a float64 scalar."""
        if not self:
            return 0.0
        return self.l1 * F.sum(dtype=torch.float64) + 0.5 * self.l2 * squared_norm(F)


@dataclass(frozen=True)
class Penalties:
    """The penalties on codes and dictionary: l1 = alpha l1_ratio and l2 = alpha (1 − l1_ratio),
    times the number of features for the codes, of rows for the dictionary.

    unit_norm: concepts have norm 1, and alpha_D is zero. False where there are none. Source of the
    scaling: scikit-learn's NMF.
    """

    alpha_Z: float = 0.0
    alpha_D: float = 0.0
    l1_ratio: float = 0.0
    unit_norm: bool = False

    def __bool__(self) -> bool:
        return self.alpha_Z > 0 or self.alpha_D > 0 or self.unit_norm

    def of_codes(self, d: int) -> Penalty:
        """The penalty on the codes, given d features."""
        return self._of(d * self.alpha_Z)

    def of_dictionary(self, n: int) -> Penalty:
        """The penalty on the dictionary, given n rows."""
        return self._of(n * self.alpha_D)

    def of_both(self, n: int, d: int) -> tuple[Penalty, Penalty]:
        """The penalties on codes and dictionary, given n rows of d features."""
        return self.of_codes(d), self.of_dictionary(n)

    def _of(self, weight: float) -> Penalty:
        return Penalty(weight * self.l1_ratio, weight * (1 - self.l1_ratio))


NO_PENALTY, NO_PENALTIES = Penalty(), Penalties()
