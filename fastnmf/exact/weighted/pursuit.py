"""At most k concepts for each row whose entries have weights: a pursuit as in
solvers/supports/pursuit.py, from products that each row has of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics import keep_largest_

# relative fall of an objective that counts; the slope of a concept that may enter, relative to the
# largest at zero
_FALLS, _TOLERANCE = 1e-13, 1e-12
# as in solvers/supports/top_k.py: exchanges of a row, and the fall that is worth another one
_EXCHANGES, _WORTH = 8, 1e-3


class Rows(NamedTuple):
    """Rows whose codes z ≥ 0 minimise ½ z G_i zᵀ − c_i zᵀ: C (m, K), G (m, K, K), float64. solve(C,
    G): the solution, of fewer concepts too."""

    C: Tensor
    G: Tensor
    solve: Callable[[Tensor, Tensor], Tensor]

    def of(self, rows: Tensor) -> Rows:
        """Some of them."""
        return Rows(self.C[rows], self.G[rows], self.solve)

    @property
    def norms(self) -> Tensor:
        """‖b_k‖ of each concept on what is observed of the row (m, K)."""
        return self.G.diagonal(dim1=1, dim2=2).sqrt()

    def steepness(self, Z: Tensor) -> Tensor:
        """Slopes (m, K) of concepts that are not in use, relative to their norms; 0 of others."""
        norms = self.norms
        slope = torch.where(norms > 0, self.slopes(Z) / norms, 0)
        return slope.masked_fill_(Z > 0, 0)

    def slopes(self, Z: Tensor) -> Tensor:
        """C − Z G (m, K)."""
        return self.C - (self.G @ Z[:, :, None])[:, :, 0]

    def objective(self, Z: Tensor) -> Tensor:
        """(m,)"""
        return -0.5 * (Z * (self.C + self.slopes(Z))).sum(1)

    def among(self, used: Tensor) -> Tensor:
        """The solution (m, K) on the concepts that are true in `used` (m, K)."""
        most = max(1, int(used.sum(1).max())) if used.numel() else 1
        index = used.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        real = used.gather(1, index)
        G = self.G.gather(1, index[:, :, None].expand(-1, -1, used.shape[1]))
        G = G.gather(2, index[:, None].expand(-1, most, -1))
        G = G * (real[:, :, None] & real[:, None])
        found = self.solve(self.C.gather(1, index) * real, G)
        return torch.zeros_like(self.C).scatter_(1, index, found * real)


def pursue(rows: Rows, most: int) -> tuple[Tensor, Tensor]:
    """Codes (m, K) of at most `most` concepts for each row, and how many entered (m,): the solution
    on all concepts where it has no more, else that of a pursuit."""
    Z = torch.zeros_like(rows.C)
    entered = torch.zeros(len(Z), dtype=torch.int32, device=Z.device)
    best, reference = rows.objective(Z), rows.steepness(Z).amax(1)
    refused = torch.zeros_like(Z, dtype=torch.bool)
    left = torch.arange(len(Z), device=Z.device)
    while len(left):
        some, now = rows.of(left), Z[left]
        steepest, k = some.steepness(now).masked_fill_(refused[left], 0).max(1)
        enters = (steepest > _TOLERANCE * reference[left]) & ((now > 0).sum(1) < most)
        left, k, now = left[enters], k[enters], now[enters]
        if not len(left):
            break
        some = rows.of(left)
        found = some.among((now > 0).scatter_(1, k[:, None], True))
        after = some.objective(found)
        falls = after < best[left] - _FALLS * best[left].abs()
        Z[left[falls]], best[left[falls]] = found[falls], after[falls]
        # rounding or dependence: left out until another lowers the objective
        refused[left[falls]] = False
        refused[left[~falls], k[~falls]] = True
        entered[left] += 1
    whole = rows.solve(rows.C, rows.G)
    few = (whole > 0).sum(1) <= most
    return torch.where(few[:, None], whole, Z), entered


def exchange(rows: Rows, Z: Tensor, most: int, squares: Tensor) -> Tensor:
    """Codes (m, K) after exchanges, while they lower the loss of a row: the steepest concepts join
    those in use, and of the solution on all the largest stay. squares (m,): Σ w x². Source: Dai &
    Milenkovic (2009), subspace pursuit."""
    Z, left = Z.clone(), torch.arange(len(Z), device=Z.device)
    for _ in range(_EXCHANGES):
        if not len(left):
            break
        some, now = rows.of(left), Z[left]
        steepest, k = some.steepness(now).topk(min(most, Z.shape[1]), dim=1)
        joined = (now > 0).scatter_(1, k, (steepest > 0) | (now.gather(1, k) > 0))
        found = keep_largest_(some.among(joined), some.norms, most)
        found = some.among(found > 0)
        before, after = some.objective(now), some.objective(found)
        lower = after < before
        Z[left[lower]] = found[lower]
        worth = squares[left] + 2 * after < (1 - _WORTH) * (squares[left] + 2 * before)
        left = left[worth]
    return Z
