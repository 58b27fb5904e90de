"""What an iteration gathers over rows: ZᵀA, ZᵀZ, ‖ΔZ‖², ‖Z‖² and the loss. All are sums, so pieces
only add to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.storage import row_blocks
from ..distributed import Processes
from ..numerics import squared_norm, widened
from ..solvers.penalties import NO_PENALTY, Penalty

# of codes and dictionary
_NONE = (NO_PENALTY, NO_PENALTY)


class Statistics:
    """cross (K, d) = ZᵀA and gram (K, K) = ZᵀZ where the dictionary half-step reads them, made by
    `moments`, the operation of that name, and float64 sums.

    sums (2, 4), of the codes and of the dictionary half, rows that have these names: ‖ΔF‖², ‖F‖²;
    ‖A − Z D‖² where the half-step comes by it, after the dictionary half always; and of the codes
    how far a residual had drifted, squared, where one that was carried was computed anew, of the
    dictionary half twice the penalties of both factors. splits: as in Plan. apart: whether each of
    several processes makes the dictionary by itself: on other processors it may differ by rounding,
    and so may all that is derived from it.
    """

    def __init__(
        self,
        D: Tensor,
        squared_norm: Tensor | float,
        processes: Processes,
        *,
        moments: Callable | None,
        penalties=_NONE,
        splits: bool = False,
    ) -> None:
        K, d = D.shape
        self.sums = torch.zeros(2, 4, dtype=torch.float64, device=D.device)
        self.codes, self.dictionary = self.sums
        self.squared_norm, self._dtype = squared_norm, D.dtype
        self.apart = moments is not None and not splits and not processes.alone
        # one piece of memory, perhaps with room for the sums of the codes, so that one call sums
        # all over processes
        self._moments_ = moments
        sizes = K * d, K * K, len(self.codes) if self.apart else 0
        self._moments = D.new_zeros(sum(sizes) if moments else 0)
        self.cross = self.gram = None
        if moments:
            cross, gram, self._room = self._moments.split(sizes)
            self.cross, self.gram = cross.view(K, d), gram.view(K, K)
        self._on_codes, self._on_dictionary = penalties
        # of the codes of each concept: their sum and the sum of their squares
        self._loads = self.sums.new_zeros(2, K)
        self._processes = processes
        self._empty = True

    def clear_(self) -> None:
        self.sums.zero_()
        if self._on_codes:
            self._loads.zero_()
        self._empty = True

    @property
    def moments(self) -> tuple[Tensor, Tensor, bool] | None:
        """cross, gram, and whether there is something in them to be added to, for a half-step that
        makes them; None where they are not read."""
        return None if self.cross is None else (self.cross, self.gram, not self._empty)

    def add_(self, X: Tensor, Z: Tensor, *, made: bool = False) -> None:
        """cross += ZᵀX, gram += ZᵀZ for a piece X (m, d) with its codes Z (m, K), unless a
        half-step made them; 2 m K (d + K) flops. And what the penalty of Z is made of."""
        if self._on_codes.l1:
            self._loads[0] += Z.sum(0, dtype=torch.float64)
        if self._on_codes.l2:
            self._loads[1] += torch.linalg.vector_norm(Z, dim=0).double().square()
        if self.cross is None:
            return
        if not made:
            # the first piece need not be added to zeros
            self._moments_(Z.T, X, self.cross, adds=not self._empty)
            self._moments_(Z.T, None, self.gram, adds=not self._empty)
        self._empty = False

    def reduce_(self) -> None:
        """What the dictionary half-step reads becomes that of all processes."""
        if self._processes.alone:
            return
        if self._empty:
            self._moments.zero_()
        if self.apart:
            self._room.copy_(self.codes)
        if self.cross is not None:
            self._processes.sum_(self._moments)
        if self.apart:
            self.codes.copy_(self._room)
        if self._on_codes:
            self._processes.sum_(self._loads)

    def penalise_(self, D: Tensor) -> None:
        """Add the penalties of the codes and of D."""
        if self._on_codes:
            self.dictionary[3] += 2 * self._on_codes.l1 * self._loads[0].sum()
            self.dictionary[3] += self._on_codes.l2 * self._loads[1].sum()
        if self._on_dictionary:
            self.dictionary[3] += 2 * self._on_dictionary.value(D)

    def penalty_of_norms(self) -> Penalty:
        """On a dictionary of norm 1 whose norms are to be moved into the codes: its ½ l2 ‖F‖² rises
        by no less than the penalty of the codes then does.

        That is Σ l1 ‖D_k‖ ΣZ_k + ½ l2 ‖D_k‖² ‖Z_k‖², and ‖D_k‖ ≤ ½ (1 + ‖D_k‖²), with equality at
        norm 1. Source: Marmin, Goulart & Févotte, 2023, with the Euclidean norm.
        """
        if not self._on_codes:
            return self._on_dictionary
        weights = self._on_codes.l1 * self._loads[0] + self._on_codes.l2 * self._loads[1]
        return Penalty(l2=weights.to(self._dtype))

    def scale_codes_(self, scale: Tensor) -> None:
        """What penalties are made of becomes that of the codes Z · scale, scale (K,)."""
        self._loads.mul_(torch.stack((scale, scale.square())))

    def measure_error_(self, D: Tensor, cross: Tensor, G: Tensor) -> None:
        """‖A − Z D‖² = ‖A‖² − 2 ⟨ZᵀA, D⟩ + ⟨ZᵀZ, G⟩ for G = D Dᵀ, into the sums: where processes
        split D, what this one adds to them. D, cross: of the features that it has.

        It is a difference of large numbers: from float32 statistics, good to about 1e-7 ‖A‖², and
        so at times below zero.
        """
        cross = (cross * D).sum(dtype=torch.float64)
        gram = (self.gram * G).sum(dtype=torch.float64)
        once = self.squared_norm if self.apart or self._processes.rank == 0 else 0
        torch.add(gram + once, cross, alpha=-2, out=self.dictionary[2])


def squared_error(A: Tensor, Z: Tensor, D: Tensor, rows: int) -> Tensor:
    """‖A − Z D‖², computed from the residual, a tile of rows at a time: a float64 scalar. 2 n d K
    flops."""
    total = torch.zeros((), dtype=torch.float64, device=D.device)
    for part in row_blocks(len(A), rows):
        total += squared_norm(torch.addmm(widened(A[part]), Z[part], D, alpha=-1))
    return total
