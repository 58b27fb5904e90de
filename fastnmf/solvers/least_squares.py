"""Exact least squares for a factor of any signs, with the least change of what the data do not
determine: concepts whose codes are zero, or depend on those of others.

Source of the method for dependent ones, the proximal point algorithm: Rockafellar (1976).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import add_squares_, squared_norm, wide
from .base import Size, Solver, Work
from .constraints import FREE
from .half_step import (
    FORMS,
    Compute,
    FixedFactor,
    HalfStepData,
    NormalData,
    centred_gram,
    fix_gram,
    residual_,
)
from .penalties import Penalty

# what is added to the Gram matrix of unit concepts, in units of the dtype's precision times √K:
# more than the rounding of G, so that the loss never rises. The least in float64
_RIDGE, _LEAST_RIDGE = 16, 1e-10
# solutions, each from the one before: what they leave of a slope is twice the ridge's share of the
# eigenvalue, to this power
_ROUNDS = 4


def half_steps_(
    F: Tensor, data: HalfStepData, fixed: FixedFactor, compute: Compute, sums: Tensor, times: int
) -> None:
    """F ← argmin ½‖X − Fᵀ B‖² plus the penalty, (K, m) of any signs, in place, nearest to F, where
    a change of F_k counts ‖B_k‖ times. Computed in float64.

    K³ / 3 + 26 m K² flops, and the products with the data in residual form.
    """
    for _ in range(times):
        if isinstance(data, NormalData):
            change = _change(F, data.C, fixed, compute.squares(fixed.G))
        else:
            E = residual_(F, data, fixed, compute)
            parts = [compute.centred(fixed.B, S) @ E for S in compute.blocks(len(F))]
            change = _change(F, torch.cat(parts), fixed, compute.squares(fixed.G), of_residual=True)
            E.addmm_(fixed.B.T, change, alpha=-1)
            if compute.means is not None:
                E.add_(compute.means.T @ change)
            sums[2] += squared_norm(E)
        F.add_(change)
        add_squares_(sums, change, F)


def ridge_of(F: Tensor) -> float:
    """What is added to the Gram matrix of unit concepts for F (K, m)."""
    return max(_LEAST_RIDGE, _RIDGE * torch.finfo(F.dtype).eps * len(F) ** 0.5)


def solution(C: Tensor, G: Tensor) -> Tensor:
    """The F (K, m) nearest to zero with G F = C, for G (K, K) = B Bᵀ and C = B Xᵀ."""
    return _change(torch.zeros_like(C), C, FixedFactor(None, G), G.diagonal())


def _change(
    F: Tensor, C: Tensor, fixed: FixedFactor, squares: Tensor, *, of_residual: bool = False
) -> Tensor:
    """What brings F to the solution. C: B Xᵀ, or of the residual B Eᵀ. squares (K,): of the norms
    of B, to which the rounding of G is in proportion."""
    like = F.new_zeros((), dtype=wide(F.device))
    G, C, squares = fixed.G.to(like), C.to(like), squares.to(like)
    alive = squares >= torch.finfo(F.dtype).tiny
    scale = torch.where(alive, squares, 1).rsqrt() * alive
    unit = G * scale[:, None] * scale
    if of_residual:
        slope = C
        if fixed.curvature is not None:
            slope = slope - fixed.curvature.to(like) * F
    else:
        slope = C - G @ F.to(like)
    slope = slope * scale[:, None]
    ridge = ridge_of(F)
    curved = unit.clone()
    # concepts that are not alive stay: their slope is zero
    curved.diagonal().add_(ridge + (~alive).to(like))
    factor = torch.linalg.cholesky_ex(curved).L
    change = torch.zeros_like(slope)
    for _ in range(_ROUNDS):
        step = torch.cholesky_solve(slope - unit @ change, factor)
        # times G (G + ridge)⁻¹: along what B does not determine, eigenvalues of G are rounding, and
        # where they are negative F would grow by a tenth in each half-step
        change += step.sub_(torch.cholesky_solve(step, factor), alpha=ridge)
    return (change * scale[:, None]).to(F.dtype)


def fix(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor, with G in both forms; in residual form with the penalty's curvature."""
    if compute.means is not None and B is not None:
        G = centred_gram(B @ B.T, compute.means[:, 0], compute.rows)
    fixed = fix_gram(B, G, penalty)
    if form == "normal" or not penalty:
        return fixed
    squares = torch.linalg.vector_norm(B, dim=1).square()
    if G is not None:
        squares = G.diagonal()
    curvature = penalty.curvature(squares)[:, None]
    return FixedFactor(B, fixed.G, l1=penalty.l1, curvature=curvature)


def work(form: str, size: Size, times: int) -> Work:
    """The Work of half-steps on the same data, `times` of them."""
    m, p, K, _ = size
    # in float64, at half the rate of float32
    gram, solved = 2 * p * K * K, times * 2 * (K**3 / 3 + 26 * m * K * K)
    products = 2 * m * p * K * (1 if form == "normal" else times * 3)
    flops = products + gram + solved
    return Work(flops, flops, gram=gram, calls=(0, 0), fixed_calls=(times * 30, 0))


SOLVER = Solver(
    "least squares",
    "least squares, exact",
    half_steps_,
    fix=fix,
    work=work,
    workspace=lambda K, d, block: 4 * K,
    forms=FORMS,
    constraints=(FREE,),
    exact=True,
    widens=True,
    # K³ / 3 flops in float64 in every iteration
    learns_up_to=4000,
)
