"""Exact non-negative least squares by active sets, in plain torch: the reference.

Lawson & Hanson's method (1974) on the Gram matrix (Bro & de Jong, 1997), for many columns at a
time. It ends at any rank, so K > d is safe."""

from __future__ import annotations

import torch
from torch import Tensor

from .result import (
    CAPPED,
    FLOORED,
    RANK_TOLERANCE,
    SOLVED,
    TOLERANCE,
    NnlsInfo,
    most_steps,
    unit_gram,
)

# entries of the largest scratch array
_SCRATCH = 1 << 22
# steps on a dependent support, at most
_PROXIMAL_STEPS = 20


def nnls_(
    F: Tensor,
    C: Tensor,
    G: Tensor,
    sums: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
) -> NnlsInfo:
    """F ← argmin ½ tr(Fᵀ G F) − tr(Fᵀ C) over F ≥ 0, in place, each column separately.

    F, C (K, m); G (K, K). Computed in float64, to the precision that C and G have. warm: start from
    F, which pays where F is an exact solution of a similar problem; else from zero. A concept with
    G_kk = 0 is left as it is. max_steps: changes of a column's support at most; None: 10
    most_steps(K), as concepts enter one by one here, not in blocks. sums (2,) float64 is increased
    by ‖Δ‖² and ‖F‖². About m q⁴ / 12 flops for supports of q concepts. Synchronises.
    """
    G, scale = unit_gram(G)
    G, alive = G.double(), scale > 0
    scale = torch.where(alive, 1 / scale, 1)
    K, m = F.shape
    limits = (
        TOLERANCE[C.dtype],
        RANK_TOLERANCE[C.dtype],
        10 * most_steps(K) if max_steps is None else max_steps,
    )
    width = max(1, _SCRATCH // max(K, min(K, 512) ** 2))
    infos = []
    for first in range(0, m, width):
        part = slice(first, first + width)
        c = torch.where(alive, C[:, part].T.double() / scale, 0)
        x = torch.where(alive, F[:, part].T.double() * scale, 0) if warm else torch.zeros_like(c)
        infos.append(_solve_rows_(x, c, G, alive, *limits))
        updated = torch.where(alive[:, None], (x / scale).T.to(F.dtype), F[:, part])
        sums[0] += (updated - F[:, part]).square().sum(dtype=torch.float64)
        sums[1] += updated.square().sum(dtype=torch.float64)
        F[:, part] = updated
    return NnlsInfo.join(infos)


def nnls_on_(
    F: Tensor,
    C: Tensor,
    unit: Tensor,
    scale: Tensor,
    index: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
) -> tuple[NnlsInfo, Tensor]:
    """nnls_ with column i of F restricted to the concepts index[i], −1 behind the last; in place.

    F, C (K, m) have all concepts, but only those of index are read and written. unit (K, K) and
    scale (K,) as unit_gram returns them, or unit (m, q, q) on the concepts of index (m, q) int32.
    Returns the info, and the gain of each column, (m,) float64: ‖x‖² minus its squared residual.
    One column at a time here.
    """
    infos = []
    gain = torch.zeros(F.shape[1], dtype=torch.float64, device=F.device)
    sums = torch.zeros(2, dtype=torch.float64, device=F.device)
    for i, row in enumerate(index.long()):
        concepts = row[row >= 0]
        q, length = len(concepts), scale[concepts, None].clamp(min=torch.finfo(C.dtype).tiny)
        G = unit[i, :q, :q] if unit.dim() == 3 else unit[concepts[:, None], concepts]
        G = torch.where(scale[concepts] > 0, G, 0)
        c, x = C[concepts, i, None] * length, F[concepts, i, None] / length
        x, c = x.to(C.dtype), c.to(C.dtype)
        infos.append(nnls_(x, c, G, sums, warm=warm, max_steps=max_steps))
        used = scale[concepts] > 0
        F[concepts[used], i] = (x * length).to(F.dtype)[used, 0]
        x, c = x.double(), c.double()
        gain[i] = (x * (2 * c - G.double() @ x)).sum()
    return NnlsInfo.join(infos), gain


def nnls_unrolled(F: Tensor, C: Tensor, G: Tensor, l1: float = 0.0) -> Tensor:
    """The solution F' (K, m), differentiable with respect to C: on the support P of the solution F,
    F'_P = G_PP⁻¹ (C_P − l1), where l1 is the slope of a penalty.

    Where concepts of P depend on each other F'_P is not unique: the smallest is returned.
    """
    # a concept with G_kk = 0 is on no support
    passive = ((F.detach() > 0) & (G.diagonal() > 0)[:, None]).T
    index, used = _padded_support(passive)
    gram = _gather_gram(G.double(), index, used)
    gram = gram + torch.diag_embed(RANK_TOLERANCE[torch.float64] * gram.diagonal(dim1=1, dim2=2))
    solved = torch.linalg.solve(gram, (C.double() - l1).T.gather(1, index) * used).to(C.dtype)
    return torch.zeros_like(C.T).scatter_add(1, index, solved * used).T


def _solve_rows_(
    x: Tensor, c: Tensor, G: Tensor, alive: Tensor, tolerance, rank_tolerance, max_steps: int
) -> NnlsInfo:
    """Lawson & Hanson's method for all rows of x (r, K) at a time, in place."""
    passive = x > 0
    everyone = torch.arange(x.shape[0], device=x.device)
    _solve_supports_(x, passive, everyone, c, G, rank_tolerance)
    blocked = (~alive).expand_as(x).clone()
    floor = tolerance * c.amax(1)
    slope = c - x @ G
    value = _objective(x, c, slope)
    rows = everyone
    for step in range(max_steps + 1):
        steepest, entering = (
            slope[rows].masked_fill_(passive[rows] | blocked[rows], -torch.inf).max(1)
        )
        going = steepest > floor[rows]
        rows, entering = rows[going], entering[going]
        if not len(rows) or step == max_steps:
            break
        before_x, before_passive = x[rows], passive[rows]
        passive[rows, entering] = True
        _solve_supports_(x, passive, rows, c, G, rank_tolerance)
        slope[rows] = c[rows] - x[rows] @ G
        lower = _objective(x[rows], c[rows], slope[rows])
        better = lower < value[rows] - 1e-15 * value[rows].abs()
        # no progress, by rounding: step back, and exclude the concept until there is progress
        stuck = rows[~better]
        x[stuck], passive[stuck] = before_x[~better], before_passive[~better]
        slope[stuck] = c[stuck] - x[stuck] @ G
        blocked[stuck, entering[~better]] = True
        blocked[rows[better]] = ~alive
        value[rows[better]] = lower[better]
    return _info(x, c, slope, rows, tolerance)


def _info(x: Tensor, c: Tensor, slope: Tensor, capped: Tensor, tolerance: float) -> NnlsInfo:
    """The info of the rows x, given the indices of those that reached the cap."""
    violation = torch.where(x > 0, slope.abs(), slope.clamp(min=0)).amax(1)
    kkt = torch.where(violation > 0, violation / c.amax(1).clamp(min=1e-300), 0)
    status = torch.where(kkt > tolerance, FLOORED, SOLVED).int()
    status[capped] = CAPPED
    return NnlsInfo(status, kkt, (x > 0).sum(1).int())


def _objective(x: Tensor, c: Tensor, slope: Tensor) -> Tensor:
    """½ xᵀ G x − cᵀ x for each row, from slope = c − G x."""
    return -0.5 * (x * (c + slope)).sum(1)


def _solve_supports_(
    x: Tensor, passive: Tensor, rows: Tensor, c: Tensor, G: Tensor, rank_tolerance: float
) -> None:
    """Move these rows of x to the least squares solution on their supports, in place; supports
    shrink so that x ≥ 0.

    On a dependent support by proximal steps (Rockafellar, 1976): the objective falls, and concepts
    leave until the others are independent, or only rounding is left to gain.
    """
    steps = torch.zeros(len(rows), dtype=torch.int, device=x.device)
    while len(rows):
        solved, independent = _solve_on_support(x[rows], passive[rows], c[rows], G, rank_tolerance)
        leaving = passive[rows] & (solved <= 0)
        inside = ~leaving.any(1)
        x[rows[inside]] = solved[inside]
        steps += inside
        on = ~inside | (~independent & (steps < _PROXIMAL_STEPS))
        rows, steps, inside, solved, leaving = (
            values[on] for values in (rows, steps, inside, solved, leaving)
        )
        before = x[rows]
        ratio = torch.where(leaving, before / (before - solved).clamp(min=1e-300), torch.inf)
        step = ratio.amin(1, keepdim=True)
        moved = torch.where(ratio <= step, 0, (before + step * (solved - before)).clamp(min=0))
        x[rows] = torch.where(inside[:, None], before, moved)
        passive[rows] &= (ratio > step) | inside[:, None]


def _solve_on_support(
    x: Tensor, passive: Tensor, c: Tensor, G: Tensor, rank_tolerance: float
) -> tuple[Tensor, Tensor]:
    """The unconstrained solution on the support of each row (r, K), and whether that support is
    independent (r,).

    Where it is not: the minimiser with ½ damping ‖· − x‖² added to the objective. The damping is
    the first of rank_tolerance · 1, 10, 100, … with which the Gram matrix is positive definite.
    """
    index, used = _padded_support(passive)
    gram = _gather_gram(G, index, used)
    factor, info = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    independent = (info == 0) & (pivots > rank_tolerance).all(1)
    damping, left = rank_tolerance, ~independent
    while left.any() and damping < 1:
        damped = gram[left] + damping * torch.eye(
            index.shape[1], dtype=gram.dtype, device=gram.device
        )
        factor[left], info[left] = torch.linalg.cholesky_ex(damped)
        damping, left = 10 * damping, left & (info > 0)
    start = torch.where(independent[:, None], 0, x)
    slope = ((c - start @ G).gather(1, index) * used)[:, :, None]
    change = torch.cholesky_solve(slope, factor)[:, :, 0]
    return start.scatter_add(1, index, torch.where(used & ~left[:, None], change, 0)), independent


def _padded_support(passive: Tensor) -> tuple[Tensor, Tensor]:
    """The concepts that each row uses, padded to the largest number q: their indices (r, q), and
    which entries are no padding (r, q)."""
    counts = passive.sum(1)
    q = max(1, int(counts.max())) if len(counts) else 1
    index = passive.to(torch.int8).topk(q, dim=1).indices
    return index, passive.gather(1, index)


def _gather_gram(G: Tensor, index: Tensor, used: Tensor) -> Tensor:
    """G on the support of each row (r, q, q), the identity where it is padded."""
    gathered = G[index[:, :, None], index[:, None, :]] * (used[:, :, None] & used[:, None, :])
    return gathered + torch.diag_embed((~used).to(G.dtype))
