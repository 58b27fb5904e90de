"""Hierarchical alternating least squares (HALS): concepts are updated one after the other, each
from the new values of those before it. Without a bound a concept becomes the least squares
solution given the others.

Source: Cichocki & Phan (2009).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import squared_norm
from ..precision import products_in
from .base import Size, Solver, Work
from .constraints import FREE, NON_NEGATIVE
from .half_step import (
    FORMS,
    Compute,
    FixedFactor,
    HalfStepData,
    NormalData,
    ResidualData,
    RowData,
    fix_gram,
    rounded,
)
from .penalties import Penalty


def half_steps_(
    F: Tensor, data: HalfStepData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """Sweep all concepts, F (K, m) in place, `times` times. A sweep costs 2 m K² flops in normal
    form, 4 m p K in residual form."""
    if isinstance(data, RowData):
        factor, then = (data.Bt, fixed.G, fixed.l1), (data.moves, data.moments)
        return compute.ops["hals_rows_"](F, data.X, factor, times, sums, *then)
    if isinstance(data, NormalData) and F.shape[0] <= compute.block:
        return compute.ops["hals_sweep_"](F, data.C, fixed.G, sums, times, compute.bounded)
    once_ = _residual_ if isinstance(data, ResidualData) else _normal_
    for _ in range(times):
        once_(F, data, fixed, compute, sums)


def _normal_(
    F: Tensor, data: NormalData, fixed: FixedFactor, compute: Compute, sums: Tensor
) -> None:
    for S in compute.blocks(F.shape[0]):
        R = compute.scratch("R", S.stop - S.start, F.shape[1])
        torch.addmm(data.C[S], fixed.G[S], F, alpha=-1, out=R)
        delta = compute.scratch("delta", *R.shape)
        compute.ops["hals_block_"](F[S], R, fixed.G[S, S], delta, sums, compute.bounded)


def _residual_(
    F: Tensor, data: ResidualData, fixed: FixedFactor, compute: Compute, sums: Tensor
) -> None:
    if not data.fresh:
        _refresh_(F, data, fixed, compute, sums)
    with products_in(compute.allowed):
        for S in compute.blocks(F.shape[0]):
            # for all three products
            B = rounded(compute.centred(fixed.B, S), "rounded", compute)
            R, gram = _sums(B, S, data.Et, fixed, compute)
            fixed.penalise_(R, F[S], S, sign=-1)
            delta = compute.scratch("delta", R.numel()).as_strided(R.shape, R.stride())
            compute.ops["hals_block_"](F[S], R, gram, delta, sums, compute.bounded)
            data.Et.addmm_(B.T, delta, alpha=-1)


def _sums(
    B: Tensor, S: slice, Et: Tensor, fixed: FixedFactor, compute: Compute
) -> tuple[Tensor, Tensor]:
    """R = B_S Eᵀ, and B_S B_Sᵀ with the curvature of the penalty. The latter is formed at the first
    use of `fixed`, 2 |S|² p flops; where both are summed over processes, in one call, always: no
    later half-step has the same B. R of codes is stored row by row where it may be: a half-step
    with 2,000 concepts takes 0.85 of the time (AVX2)."""
    (s, _), (_, m), shared = B.shape, Et.shape, compute.sum_ is not None
    # R begins at a multiple of 16 bytes
    begin = -(-s * s // 4) * 4 if shared else 0
    both = compute.scratch("R", begin + s * m)
    # the compiled sweep takes any layout
    by_rows = Et.stride(0) == 1 and "hals_rows_" in compute.ops
    R = both[begin:].view(m, s).T if by_rows else both[begin:].view(s, m)
    torch.mm(B, Et, out=R)
    gram = fixed.grams.get(S.start)
    if gram is None or compute.means is not None:
        gram = both[: s * s].view(s, s) if shared else B.new_empty(s, s)
        compute.ops["moments_"](B, None, gram)
        if compute.sum_ is not None:
            compute.sum_(both)
        else:
            fixed.grams[S.start] = gram
        compute.keep_constant_(R, gram, S)
        _add_curvature_(gram, S, fixed)
    return R, gram


def _add_curvature_(gram: Tensor, S: slice, fixed: FixedFactor) -> None:
    if fixed.curvature is not None:
        curvature = fixed.penalty.of(S).curvature(gram.diagonal())
        gram.diagonal().add_(curvature)
        fixed.curvature[S] = curvature[:, None]


def _refresh_(
    F: Tensor, data: ResidualData, fixed: FixedFactor, compute: Compute, sums: Tensor
) -> None:
    """E ← X − Fᵀ B in the dtype of F. Where products are less precise, sums[3] is increased by the
    squared distance to the E that was carried."""
    if not data.carried or compute.allowed == "highest":
        # torch.addmm makes this copy as well, and it widens 16-bit numbers
        data.copy_to_(data.Et).addmm_(fixed.B.T, F, alpha=-1)
        return
    p, m = data.Xt.shape
    fresh = compute.scratch("fresh", m, p).T
    data.copy_to_(fresh).addmm_(fixed.B.T, F, alpha=-1)
    sums[3] += squared_norm(data.Et.sub_(fresh))
    data.Et.copy_(fresh)


def fix(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor: with G in normal form; in residual form half-steps add B_S B_Sᵀ of each
    block of concepts, 2 K |S| p flops."""
    if form == "normal":
        return fix_gram(B, G, penalty)
    if not penalty:
        return FixedFactor(B)
    return FixedFactor(B, l1=penalty.l1, curvature=B.new_empty(len(B), 1), penalty=penalty)


def work(form: str, size: Size, times: int) -> Work:
    """The Work of half-steps on the same data, `times` of them."""
    m, p, K, block = size
    narrow = min(block, K)
    # Σ s² over blocks of s concepts, of which the last may be smaller
    squares = K // narrow * narrow**2 + (K % narrow) ** 2
    swept = times * (2 * m * squares)
    if form == "normal":
        gram = 2 * p * K * K
        flops = 2 * m * p * K + gram + times * 2 * m * K * K
        # few concepts are swept at once, 2 m K² in all; many need a GEMM before each block
        products = flops - (2 * m * K * K * times if K <= block else 0)
        # one kernel makes all sweeps of few concepts, and one their sums
        calls = {"calls": (0, 0), "fixed_calls": (6, 2)} if K <= block else {}
        return Work(flops, products, swept, gram=gram, **calls)
    gram, fresh = 2 * p * K * block, 2 * m * p * K
    flops = fresh + gram + times * (4 * m * p * K + 2 * m * K * block)
    products, rounded = flops - times * (2 * m * K * narrow), times * p * K
    # for each block two products, its Gram matrix, rounding, and the sweep with its sums
    calls = {"calls": (3, 2), "fixed_calls": (3, 0), "rounds": 1, "rounded": rounded}
    return Work(flops, products, swept, gram=gram, fresh=fresh, **calls)


SOLVER = Solver(
    "hals",
    "hierarchical alternating least squares",
    half_steps_,
    operations=("hals_block_", "hals_sweep_"),
    fix=fix,
    work=work,
    workspace=lambda K, d, block: 2 * block + d,
    forms=FORMS,
    constraints=(NON_NEGATIVE, FREE),
    fused=("accelerated_", "hals_rows_", "hals_each_", "hals_weighted_"),
    rows_operation="hals_rows_",
    sweeps_blocks=True,
    keeps_residual=True,
    restricts=True,
    # after 300 sweeps the loss is 0.1 (median) of that without; with momentum up to 0.7 it rose on
    # similar concepts
    searches_line=True,
    # with many concepts more half-steps gain less than they cost
    inner_share_of_many=0.5,
)
