"""Exact non-negative least squares, every column of F for itself: the active-set reference in plain
torch.

Lawson & Hanson's method (1974) on the Gram matrix (Bro & de Jong, 1997), many columns at a time.
Finite at any rank, so K > d is safe.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# a row is solved when no concept's slope, relative to the row's largest, is above this
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
# a concept whose squared distance from the span of the passive ones is below this is not entered
_RANK_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}
# numbers in the largest scratch array
_SCRATCH = 1 << 22


def nnls_(F: Tensor, C: Tensor, G: Tensor, sums: Tensor) -> None:
    """F ← argmin ½ tr(Fᵀ G F) − tr(Fᵀ C) over F ≥ 0, in place, every column for itself, starting
    from F.

    F, C (K, m); G (K, K). Computed in float64, to the precision that C and G have. A concept with
    G_kk = 0 is left as it is. sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². Logs a warning when
    a column is not solved after 10 K + 20 changes of its support. About m q⁴ / 12 flops for
    supports of q concepts. Synchronises.
    """
    tolerance, rank_tolerance = _TOLERANCE[C.dtype], _RANK_TOLERANCE[C.dtype]
    diagonal = G.diagonal().double()
    alive = diagonal >= torch.finfo(C.dtype).tiny
    scale = torch.where(alive, diagonal, 1).sqrt()
    # unit concepts: slopes and pivots of different concepts can be compared
    G = torch.where(alive[:, None] & alive, G.double() / scale[:, None] / scale, 0)
    K, m = F.shape
    unsolved = 0
    width = max(1, _SCRATCH // max(K, min(K, 512) ** 2))
    for first in range(0, m, width):
        part = slice(first, first + width)
        c = torch.where(alive, C[:, part].T.double() / scale, 0)
        x = torch.where(alive, F[:, part].T.double() * scale, 0)
        unsolved += _solve_rows_(x, c, G, alive, tolerance, rank_tolerance)
        updated = torch.where(alive[:, None], (x / scale).T.to(F.dtype), F[:, part])
        sums[0] += (updated - F[:, part]).square().sum(dtype=torch.float64)
        sums[1] += updated.square().sum(dtype=torch.float64)
        F[:, part] = updated
    if unsolved:
        log.warning("nnls: %d of %d rows are not solved to %.0e", unsolved, m, tolerance)


def nnls_unrolled(F: Tensor, C: Tensor, G: Tensor) -> Tensor:
    """The solution F' (K, m), differentiable with respect to C: on its support P, F'_P = G_PP⁻¹
    C_P."""
    with torch.no_grad():
        solution = F.detach().clone()
        nnls_(solution, C, G, torch.zeros(2, dtype=torch.float64, device=C.device))
        # a concept that G does not see is on no support
        passive = ((solution > 0) & (G.diagonal() > 0)[:, None]).T
    index, used = _padded_support(passive)
    solved = torch.linalg.solve(_gather_gram(G, index, used), C.T.gather(1, index) * used)
    return torch.zeros_like(C.T).scatter_add(1, index, solved * used).T


def _solve_rows_(x: Tensor, c: Tensor, G: Tensor, alive: Tensor, tolerance, rank_tolerance) -> int:
    """Lawson & Hanson for every row of x (r, K) at a time; returns how many rows met the cap."""
    passive = x > 0
    everyone = torch.arange(x.shape[0], device=x.device)
    singular = _settle_(x, passive, everyone, c, G, rank_tolerance)
    # a start whose support is not independent says nothing: start such rows from zero
    x[singular], passive[singular] = 0, False
    blocked = (~alive).expand_as(x).clone()
    floor = tolerance * c.abs().amax(1)
    slope = c - x @ G
    value = _objective(x, c, slope)
    rows = everyone
    for _ in range(10 * x.shape[1] + 20):
        steepest, entering = (
            slope[rows].masked_fill_(passive[rows] | blocked[rows], -torch.inf).max(1)
        )
        going = steepest > floor[rows]
        rows, entering = rows[going], entering[going]
        if not len(rows):
            return 0
        before_x, before_passive = x[rows], passive[rows]
        passive[rows, entering] = True
        singular = _settle_(x, passive, rows, c, G, rank_tolerance)
        slope[rows] = c[rows] - x[rows] @ G
        lower = _objective(x[rows], c[rows], slope[rows])
        better = (lower < value[rows] - 1e-15 * value[rows].abs()) & ~torch.isin(rows, singular)
        # no progress, by rounding or by dependence: step back, and leave the concept out until
        # there is progress
        stuck = rows[~better]
        x[stuck], passive[stuck] = before_x[~better], before_passive[~better]
        slope[stuck] = c[stuck] - x[stuck] @ G
        blocked[stuck, entering[~better]] = True
        blocked[rows[better]] = ~alive
        value[rows[better]] = lower[better]
    return len(rows)


def _objective(x: Tensor, c: Tensor, slope: Tensor) -> Tensor:
    """½ xᵀ G x − cᵀ x for each row, from slope = c − G x."""
    return -0.5 * (x * (c + slope)).sum(1)


def _settle_(x: Tensor, passive: Tensor, rows: Tensor, c: Tensor, G: Tensor, rank_tolerance):
    """Move the named rows of x to the least squares solution on their support, shrinking it to stay
    in x ≥ 0.

    Returns the rows (of those named) whose support was found dependent; these are left as they are.
    """
    dependent = [rows[:0]]
    while len(rows):
        solved, independent = _solve_on_support(passive[rows], c[rows], G, rank_tolerance)
        dependent.append(rows[~independent])
        rows, solved = rows[independent], solved[independent]
        leaving = passive[rows] & (solved <= 0)
        done = ~leaving.any(1)
        x[rows[done]] = solved[done]
        rows, solved, leaving = rows[~done], solved[~done], leaving[~done]
        here = x[rows]
        ratio = torch.where(leaving, here / (here - solved).clamp(min=1e-300), torch.inf)
        step = ratio.amin(1, keepdim=True)
        x[rows] = torch.where(ratio <= step, 0, (here + step * (solved - here)).clamp(min=0))
        passive[rows] &= ratio > step
    return torch.cat(dependent)


def _solve_on_support(passive: Tensor, c: Tensor, G: Tensor, rank_tolerance):
    """The unconstrained solution on each row's support (r, K), and whether that support is
    independent (r,)."""
    index, used = _padded_support(passive)
    factor, info = torch.linalg.cholesky_ex(_gather_gram(G, index, used))
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    independent = (info == 0) & (pivots > rank_tolerance).all(1)
    factor = torch.where(independent[:, None, None], factor, torch.eye(index.shape[1]).to(factor))
    solved = torch.cholesky_solve((c.gather(1, index) * used)[:, :, None], factor)[:, :, 0]
    return torch.zeros_like(c).scatter_add_(1, index, solved * used), independent


def _padded_support(passive: Tensor) -> tuple[Tensor, Tensor]:
    """The concepts each row uses, padded to the largest number: index (r, q) and which entries
    count (r, q)."""
    counts = passive.sum(1)
    q = max(1, int(counts.max())) if len(counts) else 1
    index = passive.to(torch.int8).topk(q, dim=1).indices
    return index, passive.gather(1, index)


def _gather_gram(G: Tensor, index: Tensor, used: Tensor) -> Tensor:
    """G on each row's support (r, q, q), the identity where it is padded."""
    gathered = G[index[:, :, None], index[:, None, :]] * (used[:, :, None] & used[:, None, :])
    return gathered + torch.diag_embed((~used).to(G.dtype))
