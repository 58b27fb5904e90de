"""Exact non-negative least squares by the residual: the measure of exactness, from A and D, and a
slow solver for the few rows that the solvers on the Gram matrix leave unsolved.

Where concepts of both signs span the space positively, some x ≥ 0 has Dᵀ x = 0, and along it the
objective of the rounded Gram matrix may fall without bound. Here slopes come from the residual and
steps from an orthogonal factorization of the concepts in use, so the objective is bounded by zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

# concepts whose slopes are computed at a time
_CONCEPTS = 1024
# relative fall of the objective that counts as progress
_PROGRESS = 1e-14


def solve_by_residual(a: Tensor, D: Tensor, tolerance: float, ridge: float = 0.0) -> Tensor:
    """Codes z (K,) ≥ 0 that minimise ½ ‖a − z D‖² + ½ ridge Σ (‖D_k‖ z_k)².

    Parameters
    ----------
    a : Tensor (d,), float64
    D : Tensor (K, d), float64
        Concepts of any signs; zero concepts get no code.
    tolerance : float
        Slope, relative to the largest at z = 0, up to which a concept does not enter.

    ridge : float
        Bounds the codes, where several solutions exist: ‖D_k‖ z_k ≤ ‖a‖ / √ridge. It raises the
        squared error by at most ridge times the least sum of squares of a solution.

    Notes
    -----
    Lawson & Hanson (1974). Each step lowers the objective, or the concept that entered is left out
    until another lowers it; so no support returns, and the search ends. Never worse than z = 0.
    """
    norms = torch.linalg.vector_norm(D, dim=1)
    unit = D / torch.where(norms > 0, norms, 1)[:, None]
    if ridge:
        unit = torch.cat((unit, ridge**0.5 * torch.eye(len(D), dtype=D.dtype, device=D.device)), 1)
        a = torch.cat((a, a.new_zeros(len(D))))
    x, residual = D.new_zeros(len(D)), a
    support: list[int] = []
    blocked = norms == 0
    least, value = tolerance * (unit @ a).clamp(min=0).amax(), float(a @ a)
    while len(support) < min(unit.shape):
        slope = unit @ residual
        slope[support] = 0
        slope[blocked] = 0
        k = int(slope.argmax())
        if not slope[k] > least:
            break
        found = _descend(x, [*support, k], unit, a)
        after = a - found @ unit
        if not float(after @ after) < value * (1 - _PROGRESS):
            blocked[k] = True
            continue
        x, residual, value = found, after, float(after @ after)
        support = x.nonzero()[:, 0].tolist()
        blocked = norms == 0
    return x / torch.where(norms > 0, norms, 1)


def _descend(x: Tensor, support: list[int], unit: Tensor, a: Tensor) -> Tensor:
    """From x ≥ 0 towards the minimiser on a support as far as x ≥ 0 allows, without the concepts
    that would turn negative, until the minimiser on the rest is positive."""
    x = x.clone()
    while support:
        solved = torch.linalg.lstsq(unit[support].T, a[:, None], driver="gelsd").solution[:, 0]
        here = x[support]
        if bool((solved > 0).all()):
            x[support] = solved
            return x
        falls = solved <= 0
        ratio = torch.where(falls, here / (here - solved).clamp(min=1e-300), torch.inf)
        step = float(ratio.amin())
        moved = (here + step * (solved - here)).clamp(min=0)
        moved[ratio <= step] = 0
        x[support] = moved
        support = [k for k, kept in zip(support, (ratio > step).tolist(), strict=True) if kept]
    return x


def violation(A: Tensor, D: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
    """The KKT residual and ‖a − z D‖² − ‖a‖² of each row (n,), in float64 from A, D and Z.

    For slopes w = D (a − z D)ᵀ it is the larger of max w⁺ and of |w| over z > 0, relative to
    max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ| z_j); infinite where a code is not finite. 2 n K (3 d + K)
    flops.
    """
    A, D, Z = A.double(), D.double(), Z.double()
    finite = Z.isfinite().all(1)
    Z = torch.where(finite[:, None], Z, 0)
    residual = A - Z @ D
    worst, scale = A.new_zeros(len(A)), A.new_zeros(len(A))
    for part in torch.arange(len(D), device=D.device).split(_CONCEPTS):
        slope = residual @ D[part].T
        passive = torch.where(Z[:, part] > 0, slope.abs(), slope.clamp(min=0))
        worst = torch.maximum(worst, passive.amax(1))
        size = (A @ D[part].T).abs() + Z @ (D @ D[part].T).abs()
        scale = torch.maximum(scale, size.amax(1))
    kkt = torch.where(worst > 0, worst / scale.clamp(min=torch.finfo(torch.float64).tiny), 0)
    above_zero = residual.square().sum(1) - A.square().sum(1)
    return torch.where(finite, kkt, torch.inf), torch.where(finite, above_zero, torch.inf)
