"""Multiplicative updates (MU): each entry is multiplied by a ratio that is 1 at a minimum.

Sources: Lee & Seung (1999); where the dictionary is free: Ding, Li & Jordan (2010).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import WIDENED_BYTES, add_squares_, squared_norm
from ..precision import products_in
from .base import Size, Solver, Work
from .constraints import FREE
from .half_step import (
    FORMS,
    Compute,
    FixedFactor,
    HalfStepData,
    NormalData,
    ResidualData,
    add_product_,
    fix_gram,
    packed_bytes,
)
from .penalties import Penalty


def half_steps_(
    F: Tensor, data: HalfStepData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """Update all concepts, F (K, m) in place, `times` times."""
    for _ in range(times):
        _half_step_(F, data, fixed, compute, sums)


def _half_step_(
    F: Tensor, data: NormalData | ResidualData, fixed: FixedFactor, compute: Compute, sums: Tensor
) -> None:
    """F ← F ∘ (B Xᵀ) / (B Bᵀ F), all concepts at once.

    2 m K² flops in normal form, 6 m p K in residual form, which needs no Gram matrix.
    """
    if isinstance(data, NormalData):
        return _normal_(F, data.C, fixed, compute, sums)
    reconstruction = add_product_(data.Et, fixed.B, F, compute, beta=0)
    sums[2] += squared_norm(data.Xt - reconstruction)
    if fused_ := compute.ops.get("mu_residual_"):
        penalty = fixed.l1, fixed.curvature
        with products_in(compute.allowed):
            return fused_(F, data.Xt.T, reconstruction.T, fixed.B, sums, *penalty)
    for S in compute.blocks(F.shape[0]):
        B = fixed.B[S]
        denominator = torch.mm(B, reconstruction, out=compute.scratch.like(F[S], "denominator"))
        fixed.penalise_(denominator, F[S], S)
        C = _cross(B, data.Xt, compute, compute.scratch.like(F[S], "numerator"))
        compute.ops["mu_"](F[S], C, denominator, sums)


def _cross(B: Tensor, Xt: Tensor, compute: Compute, out: Tensor) -> Tensor:
    """out ← B Xt. Xt (p, m) of 16-bit numbers is widened some of its rows at a time."""
    if Xt.dtype == B.dtype:
        return torch.mm(B, Xt, out=out)
    rows = max(1, WIDENED_BYTES // (4 * Xt.shape[1]))
    for first, part in enumerate(Xt.split(rows)):
        wide = compute.scratch.like(part, "widened").copy_(part)
        some = B[:, first * rows : first * rows + len(part)]
        out.addmm_(some, wide, beta=1 if first else 0)
    return out


def _normal_(F: Tensor, C: Tensor, fixed: FixedFactor, compute: Compute, sums: Tensor) -> None:
    if fused_ := compute.ops.get("mu_normal_"):
        updated = compute.scratch.like(F, "updated")
        fused_(F, C, fixed.G, updated, sums, fixed.l1)
        F.copy_(updated)
        return
    denominator = torch.mm(fixed.G, F, out=compute.scratch.like(F, "denominator"))
    if fixed.l1:
        denominator.add_(fixed.l1)
    compute.ops["mu_"](F, C, denominator, sums)


def signed_half_steps_(
    F: Tensor, data: NormalData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """F ← F ∘ √((C⁺ + G⁻ F) / (C⁻ + l1 + G⁺ F)), all concepts at once, `times` times: F ≥ 0, C and
    G of any signs, x = x⁺ − x⁻. Where a denominator is zero F is left as it is. 4 m K² flops."""
    positive, negative = fixed.G.clamp(min=0), (-fixed.G).clamp_(min=0)
    for _ in range(times):
        numerator = torch.addmm(data.C.clamp(min=0), negative, F)
        denominator = torch.addmm((-data.C).clamp_(min=0), positive, F)
        if fixed.l1:
            denominator.add_(fixed.l1)
        tiny = torch.finfo(F.dtype).tiny
        ratio = numerator.div_(denominator.clamp(min=tiny)).sqrt_()
        updated = torch.where(denominator > 0, ratio.mul_(F), F)
        # processors compute slowly with subnormal numbers
        updated.masked_fill_(updated < tiny, 0)
        add_squares_(sums, updated - F, updated)
        F.copy_(updated)


def fix(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor: with G in normal form; in residual form with the penalty's curvature."""
    if form == "normal":
        return fix_gram(B, G, penalty)
    if not penalty:
        return FixedFactor(B)
    # no B.square(): B may be all codes
    squares = torch.linalg.vector_norm(B, dim=1).square()
    return FixedFactor(B, l1=penalty.l1, curvature=penalty.curvature(squares)[:, None])


def work(form: str, size: Size, times: int) -> Work:
    """The Work of half-steps on the same data, `times` of them."""
    m, p, K, _ = size
    updated = times * 5 * m * K
    if form == "normal":
        gram, fused = 2 * p * K * K, times * 2 * m * K * K
        flops = 2 * m * p * K + gram + fused
        calls = {
            "calls": (0, 0),
            "fixed_calls": (6 + times, 2 * times),
            "stored": times * 3 * m * K,
        }
        return Work(flops, flops, updated=updated, gram=gram, fused=fused, **calls)
    flops = times * 6 * m * p * K
    # the kernel computes numerator and denominator from copies; the error takes passes as well
    return Work(
        flops,
        flops,
        updated=updated,
        fused=times * 4 * m * p * K,
        rounded=times * (m + p) * K,
        operands=2,
        stored=times * 2 * m * K,
        passed=times * 8 * m * p,
        calls=(1, 0),
        fixed_calls=(2 + 7 * times, 5 * times),
        rounds=2,
    )


SOLVER = Solver(
    "mu",
    "multiplicative updates",
    half_steps_,
    operations=("mu_",),
    fix=fix,
    work=work,
    workspace=lambda K, d, block: 2 * block + d,
    forms=FORMS,
    fused=("mu_normal_", "mu_residual_"),
    reports_error_before=True,
    penalised_by_slope=False,
    device_workspace=packed_bytes,
    keeps_zeros=True,
    # 0.5 ends up to 16 times higher (K = d = 7) and 1.03 times on digits; 0.95 is slower on data
    # with an offset
    least_share=0.9,
    # online learning after a fit: the loss rises by a tenth with 4, by a fiftieth with 8
    batch_half_steps=8,
)

# the same for codes of a free dictionary, which is the least squares solution for them
SIGNED = Solver(
    SOLVER.name,
    SOLVER.title,
    signed_half_steps_,
    workspace=lambda K, d, block: 5 * K,
    penalised_by_slope=False,
    # of the codes
    keeps_zeros=True,
    least_share=SOLVER.least_share,
    batch_half_steps=SOLVER.batch_half_steps,
    constraints=(FREE,),
    solves_free=True,
)
