"""Half-steps on data in memory whose entries have weights, by imputation: what is missing takes the
value that the factors have there, so that all rows share a Gram matrix, and all features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...backends.weighted import Weighted, curvature
from ...data.storage import Kept, row_blocks
from ...data.weights.entries import EntryWeights
from ...solvers.half_step import Operations
from .features import HalfSteps, How

# entries of a residual at a time, and rows of it at least
_ENTRIES, _LEAST_ROWS = 1 << 19, 64


class Imputed(HalfSteps):
    """Sweeps of HALS on Y = Z D + W/w ∘ (A − Z D), w the largest weight: w/2 ‖Y − Z D‖² is the
    weighted objective at the factors that Y is from, and above it elsewhere, so that what lowers
    the one lowers the other. For 0 and 1, Y is A with what is missing estimated by Z D.

    8 n d K flops for both halves, by products of matrices, and 2 n d K for the error. Y is not
    formed: B Yᵀ = B (W/w ∘ E)ᵀ + B Bᵀ F for the residual E of the factors. Source: N. Srebro and
    T. Jaakkola, Weighted low-rank approximations (2003).
    """

    def __init__(self, weights: EntryWeights, D: Tensor, ops: Operations) -> None:
        super().__init__(ops)
        self._weights = weights
        self._most = weights.largest
        self._step = max(_LEAST_ROWS, _ENTRIES // D.shape[1])
        self._cross, self._gram = torch.empty_like(D), D.new_empty(len(D), len(D))

    def codes_(self, rows: Weighted, Z: Tensor, D: Tensor, how: How) -> None:
        penalty, sums, sweeps, _ = how
        gram = self._most * (D @ D.T)
        curved = _penalised(gram, penalty)
        for part, E in self._residuals(Z, D):
            C = torch.addmm(E @ D.T, Z[part], gram)
            if penalty is not None:
                C -= penalty[0]
            self._ops["hals_sweep_"](Z[part].T, C.T, curved, sums, sweeps)

    def sweep_(self, D: Tensor, Z: Kept, how: How) -> None:
        penalty, sums, sweeps, bounded = how
        codes = Z.load(slice(0, Z.shape[0]))
        cross = self._cross.zero_()
        for part, E in self._residuals(codes, D):
            cross.addmm_(codes[part].T, E)
        gram = torch.mm(codes.T, codes, out=self._gram).mul_(self._most)
        cross.addmm_(gram, D)
        if penalty is not None:
            cross -= penalty[0]
        self._ops["hals_sweep_"](D, cross, _penalised(gram, penalty), sums[:2], sweeps, bounded)
        sums[2] += self._weights.squared_error(codes, D)

    def _residuals(self, Z: Tensor, D: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """W ∘ (A − Z D) of some rows at a time."""
        X, W = self._weights.dense()
        for part in row_blocks(len(X), self._step):
            # a product with bool takes longer than with the same in numbers
            w = W[part].to(X.dtype)
            yield part, torch.addmm(X[part], Z[part], D, alpha=-1).mul_(w)


def _penalised(gram: Tensor, penalty: tuple[float, Tensor] | None) -> Tensor:
    """The Gram matrix with l2 on its diagonal; 1 where l1 is all that a concept has, as in
    hals_weighted_."""
    if penalty is None:
        return gram
    (l1, l2), gram = penalty, gram.clone()
    diagonal = gram.diagonal()
    diagonal += curvature(l1, l2, diagonal)
    return gram
