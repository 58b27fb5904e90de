"""Projected gradient with momentum (PGD): a half-step is a few accelerated steps of length 1 / L.

Sources: Nesterov (1983); for NMF: Guan, Tao, Luo & Yuan (2012), NeNMF.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics import add_squares_, squared_norm, wide
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
    packed_bytes,
    residual_,
)
from .penalties import Penalty

# steps of the power iteration that bounds the largest eigenvalue
_BOUND_STEPS = 15
# vectors, and the least square of the largest of their parts, for the bound where signs differ
_DRAWN, _LEAST_PART = 8, 0.01


class GradientStep(NamedTuple):
    """What a fused gradient step writes, and by how much it goes: next_F = max(0, Y − length ·
    gradient), next_Y = next_F + momentum · (next_F − F).

    sums: of the last step of a half-step, increased by ‖next_F − start‖² and ‖next_F‖²; next_Y is
    not written then. Else None. bounded: whether there is the maximum.
    """

    next_F: Tensor
    next_Y: Tensor
    start: Tensor
    length: Tensor
    momentum: float
    sums: Tensor | None
    bounded: bool = True


def half_steps_(
    F: Tensor, data: HalfStepData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """Update all concepts, F (K, m) in place, `times` times, by a few gradient steps each."""
    for _ in range(times):
        _half_step_(F, data, fixed, compute, sums)


def _half_step_(
    F: Tensor, data: NormalData | ResidualData, fixed: FixedFactor, compute: Compute, sums: Tensor
) -> None:
    """F ← max(0, Y − ∇(Y) / L), Y = F + momentum · ΔF, a few times, all concepts at once.

    A step costs 2 m K² flops in normal form, 4 m p K in residual form, which needs no Gram matrix.
    The momentum starts at zero in each half-step.
    """
    fused = "pgd_normal_" if isinstance(data, NormalData) else "pgd_residual_"
    if fused in compute.ops:
        return _fused_(F, data, fixed, compute, sums)
    start = compute.scratch.like(F, "start").copy_(F)
    Y = compute.scratch.like(F, "Y").copy_(F)
    for index, momentum in enumerate(momenta()):
        if isinstance(data, NormalData):
            gradient = compute.scratch.like(F, "gradient")
            torch.addmm(data.C, fixed.G, Y, beta=-1, out=gradient)
            compute.ops["pgd_"](F, Y, gradient, fixed.step, momentum, compute.bounded)
            continue
        residual_(Y, data, fixed, compute, sign=-1)
        if index == 0:
            sums[2] += squared_norm(data.Et)
        for S in compute.blocks(F.shape[0]):
            gradient = compute.scratch.like(F[S], "gradient")
            torch.mm(compute.centred(fixed.B, S), data.Et, out=gradient)
            fixed.penalise_(gradient, Y[S], S)
            compute.ops["pgd_"](F[S], Y[S], gradient, fixed.step, momentum, compute.bounded)
    add_squares_(sums, start.sub_(F), F)


def _fused_(
    F: Tensor, data: NormalData | ResidualData, fixed: FixedFactor, compute: Compute, sums: Tensor
):
    """The same with one kernel a step. F holds the start until the last step writes it."""
    scratch = compute.scratch
    newest = scratch.like(F, "newest")
    points = scratch.like(F, "Y"), scratch.like(F, "next Y")
    before, Y, steps = F, F, momenta()
    for index, momentum in enumerate(steps):
        last = index + 1 == len(steps)
        after = F if last else newest
        step = GradientStep(
            *(after, points[index % 2], F, fixed.step, momentum),
            sums=sums if last else None,
            bounded=compute.bounded,
        )
        if isinstance(data, NormalData):
            compute.ops["pgd_normal_"](before, Y, data.C, fixed.G, step)
        else:
            residual_(Y, data, fixed, compute)
            if index == 0:
                sums[2] += squared_norm(data.Et)
            with products_in(compute.allowed):
                penalty = fixed.l1, fixed.curvature
                compute.ops["pgd_residual_"](before, Y, data.Et.T, fixed.B, step, *penalty)
        before, Y = newest, points[index % 2]


def fix(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor, with the step length 1 / L of a bound L of the largest eigenvalue."""
    if form == "normal":
        G = penalty.gram(B @ B.T if G is None else G)
        bound = _bound_of(compute)(lambda v: G @ v, G.diagonal())
        return FixedFactor(B, G, step=1 / bound, l1=penalty.l1)
    # no B.square(): B may be all codes
    squares, means = torch.linalg.vector_norm(B, dim=1).square(), compute.means
    if means is not None:
        squares = (squares - compute.rows * means[:, 0].square()).clamp_(min=0)
    curvature = penalty.curvature(squares) if penalty else torch.zeros_like(squares)
    kept, signed = curvature[:, None] if penalty else None, compute.fixed.signed
    apart = curvature[:, None] if signed else curvature
    bound = _bound_of(compute)(lambda v: _twice(B, v, means) + apart * v, squares + curvature)
    return FixedFactor(B, step=1 / bound, l1=penalty.l1, curvature=kept)


def _twice(B: Tensor, v: Tensor, means: Tensor | None) -> Tensor:
    """B Bᵀ v, of B minus the means of its rows if there are some."""
    if means is None:
        return B @ (B.T @ v)
    w = B.T @ v - means.T @ v
    return B @ w - means * w.sum(0)


def _bound_of(compute: Compute) -> Callable[..., Tensor]:
    return largest_eigenvalue_of_signed if compute.fixed.signed else largest_eigenvalue


def momenta(steps: int = 5) -> list[float]:
    """The momentum of each gradient step of a half-step: (t − 1) / t', t' = (1 + √(1 + 4t²)) /
    2."""
    coefficients, t = [], 1.0
    for _ in range(steps):
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        coefficients.append((t - 1) / following)
        t = following
    return coefficients


def largest_eigenvalue(
    apply: Callable[[Tensor], Tensor], diagonal: Tensor, steps: int = _BOUND_STEPS
) -> Tensor:
    """An upper bound of the largest eigenvalue of G ≥ 0, tight once the power iteration converges.

    apply(v) is G v for v (K,); diagonal (K,) is that of G. For v > 0, max_k (G v)_k / v_k bounds
    the eigenvalue from above (Collatz, 1942; Wielandt, 1950), and so does the trace. Returns a
    0-dimensional tensor > 0, 1 where G vanishes or nearly does: of numbers that are not normal
    there is no true bound, and a step of length 1 moves nothing. Does not synchronise.
    """
    v = diagonal.sqrt()
    tiny = torch.finfo(v.dtype).tiny
    for _ in range(steps):
        v = apply(v / v.max().clamp(min=tiny))
    v = v / v.max().clamp(min=tiny)
    # a lower limit keeps the quotient meaningful where the power iteration has almost left a
    # concept
    v = torch.where(diagonal > 0, v.clamp(min=1e-3), 0)
    quotient = torch.where(diagonal > 0, apply(v) / v.clamp(min=tiny), 0)
    bound = torch.minimum(quotient.max(), diagonal.sum())
    return torch.where(bound > tiny, bound, 1)


def largest_eigenvalue_of_signed(
    apply: Callable[[Tensor], Tensor], diagonal: Tensor, steps: int = _BOUND_STEPS
) -> Tensor:
    """An upper bound of the largest eigenvalue λ of a positive semidefinite G of any signs; the
    rest as for largest_eigenvalue. apply(V) is G V for V (K, s).

    For normal v, ‖G^q v‖² ≥ λ^2q x² with x its part along the leading eigenvector, also normal. Of
    _DRAWN such v one at least has x² ≥ _LEAST_PART, but for a probability of 2e-9; the root makes
    the bound at most 1.25 λ where λ stands alone. The v are the same in every call. Does not
    synchronise.
    """
    tiny = torch.finfo(diagonal.dtype).tiny
    # G times it has eigenvalues up to 1: nothing overflows
    inverse = 1 / diagonal.sum().clamp(min=tiny)
    V = _normal(len(diagonal), _DRAWN, diagonal)
    growth = diagonal.new_zeros(())
    for _ in range(steps):
        V = apply(V) * inverse
        largest = torch.linalg.vector_norm(V, dim=0).amax().clamp(min=tiny)
        V, growth = V / largest, growth + largest.log()
    # the norms after the last step are at most 1
    root = torch.exp((growth - 0.5 * math.log(_LEAST_PART)) / steps)
    bound = diagonal.sum() * root.clamp(max=1)
    return torch.where(bound > tiny, bound, 1)


def _normal(K: int, s: int, like: Tensor) -> Tensor:
    """Numbers (K, s) as if normal, computed on the device: what is recorded can copy none there."""
    rows, columns = (
        torch.arange(size, dtype=wide(like.device), device=like.device) for size in (K, s)
    )
    hashed = torch.sin(rows[:, None] * 12.9898 + columns * 78.233 + 1) * 43758.5453
    uniform = hashed.frac().abs().clamp(1e-6, 1 - 1e-6)
    return torch.erfinv(2 * uniform - 1).mul_(2**0.5).to(like.dtype)


def work(form: str, size: Size, times: int) -> Work:
    """The Work of half-steps on the same data, `times` of them."""
    m, p, K, _ = size
    steps = len(momenta())
    updated, bound = times * steps * 5 * m * K, _BOUND_STEPS + 1
    # a power iteration takes five or nine launches a step, a gradient step its kernel and copies
    calls = {"steps": steps, "updated": updated, "stored": times * steps * 4 * m * K}
    if form == "normal":
        gram, fused = 2 * p * K * K, times * steps * 2 * m * K * K
        flops = 2 * m * p * K + gram + fused
        calls |= {"calls": (0, 0), "passed": bound * K * K}
        calls |= {"prepared": 5 * bound, "fixed_calls": (8 + times * steps, times * (steps + 1))}
        return Work(flops, flops, gram=gram, fused=fused, **calls)
    flops = times * steps * 4 * m * p * K
    # each step copies the data before it subtracts, and the residual for its kernel; the power
    # iteration reads B twice a step
    return Work(
        flops,
        flops,
        fused=flops / 2,
        rounded=times * steps * (m + p) * K,
        passed=times * steps * 4 * m * p + 2 * bound * p * K,
        calls=(1, 0),
        fixed_calls=(3 * times * steps, times * (3 * steps + 1)),
        prepared=9 * bound,
        rounds=2,
        **calls,
    )


SOLVER = Solver(
    "pgd",
    "projected gradient with momentum",
    half_steps_,
    operations=("pgd_",),
    fix=fix,
    work=work,
    workspace=lambda K, d, block: 4 * K + d,
    forms=FORMS,
    constraints=(NON_NEGATIVE, FREE),
    fused=("pgd_normal_", "pgd_residual_"),
    reports_error_before=True,
    needs_all_concepts=True,
    device_workspace=packed_bytes,
)
