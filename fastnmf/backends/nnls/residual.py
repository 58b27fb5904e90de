"""Exact non-negative least squares by the residual: the measure of exactness, from A and D, and a
slow solver for the few rows that the solvers on the Gram matrix leave unsolved.

Where concepts of both signs span the space positively, some x ≥ 0 has Dᵀ x = 0, and along it the
objective of the rounded Gram matrix may fall without bound. Here slopes come from the residual and
steps from an orthogonal factorization of the concepts in use, so the objective is bounded by zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics import exponents, times_power

# concepts whose slopes are computed at a time, and entries of the largest scratch array
_CONCEPTS, _SCRATCH = 1024, 1 << 23
# largest power of two from 1 whose square is not near the limits of float64
_LARGE = 300
# relative fall of the objective that counts as progress
_PROGRESS = 1e-14


class Measure(NamedTuple):
    """How exact the codes z of each row a are, (n,) float64, infinite where they are not finite.

    For slopes w = D (a − z D)ᵀ:
    kkt: the larger of max w⁺ and of |w| over z > 0, relative to max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ|
    z_j). change: ‖a − z D‖² − ‖a‖², above 0 where zero codes are better. gap: by how much at most
    the squared residual is above that of any codes y with Σ ‖D_k‖ y_k ≤ ‖a‖ + Σ ‖D_k‖ z_k, by
    convexity: 2 (‖a‖ + Σ ‖D_k‖ z_k) max (w_k / ‖D_k‖)⁺ − 2 Σ w_k z_k. change and gap are relative
    to ‖a‖².
    """

    kkt: Tensor
    change: Tensor
    gap: Tensor

    @property
    def excess(self) -> Tensor:
        """By how much at most the squared error is above the least (n,), relative to ‖a‖²: gap, or
        the error itself."""
        return torch.minimum(self.gap, 1 + self.change)

    def replace_(self, rows: Tensor, found: Measure) -> None:
        """The Measure of these rows is `found`."""
        for own, new in zip(self, found, strict=True):
            own[rows] = new


def measure(A: Tensor, D: Tensor, Z: Tensor, sizes: Tensor | None = None) -> Measure:
    """The Measure of codes Z (n, K) of A (n, d), in float64 at any scale. 2 n K (4 d) flops, or
    2 n K (3 d + K) for D of both signs. sizes (K,) int64: concepts count in kkt as if D_k were
    2^sizes_k times as large, and z_k as much smaller."""
    power, powers = exponents(A, _LARGE), exponents(D, _LARGE)
    # exact, and nothing overflows when it is squared; zero concepts take no part
    D = times_power(D, -powers[:, None]) if powers.any() else D.double()
    norms = torch.linalg.vector_norm(D, dim=1)
    D = D / torch.where(norms > 0, norms, 1)[:, None]
    size = powers if sizes is None else powers + sizes
    largest = torch.where(norms > 0, size, size.min()).max()
    weights = times_power(norms, (size - largest).clamp(-1022, 0))
    scales = bool(power.any() | powers.any())
    parts, height = [], max(1, _SCRATCH // max(D.shape))
    for first in range(0, len(A), height):
        a, x, own = (M[first : first + height] for M in (A, Z, power))
        a, x = a.double(), x.double() * norms
        if scales:
            a, x = times_power(a, -own[:, None]), times_power(x, powers - own[:, None])
        parts.append(_measure(a, D, x, weights))
    return Measure(*map(torch.cat, zip(*parts, strict=True)))


def _measure(a: Tensor, unit: Tensor, x: Tensor, weights: Tensor) -> Measure:
    """The Measure for unit concepts, whose slopes count as much as their weights (K,) in kkt."""
    finite = x.sum(1).isfinite()
    if not finite.all():
        x = torch.where(finite[:, None], x, 0)
    rebuilt, negative = x @ unit, bool(unit.amin() < 0)
    residual = a - rebuilt
    worst, scale, steepest, used = (a.new_zeros(len(a)) for _ in range(4))
    for part in torch.arange(len(unit), device=unit.device).split(_CONCEPTS):
        some, own = unit[part], x[:, part]
        slope = residual @ some.T
        violation = torch.where(own > 0, slope.abs(), slope.clamp(min=0)) * weights[part]
        worst = torch.maximum(worst, violation.amax(1))
        size = (a @ some.T).abs()
        size += x @ (unit @ some.T).abs() if negative else rebuilt @ some.T
        scale = torch.maximum(scale, (size * weights[part]).amax(1))
        steepest = torch.maximum(steepest, slope.amax(1))
        used += (slope * own).sum(1)
    square = a.square().sum(1)
    gap = 2 * ((square.sqrt() + x.sum(1)) * steepest - used).clamp(min=0)
    kkt = torch.where(worst > 0, worst / scale.clamp(min=torch.finfo(torch.float64).tiny), 0)
    square = torch.where(square > 0, square, 1)
    change = (residual.square().sum(1) - a.square().sum(1)) / square
    return Measure(*(torch.where(finite, one, torch.inf) for one in (kkt, change, gap / square)))


def solve_by_residual(
    a: Tensor, D: Tensor, tolerance: float, ridge: float = 0.0, start: Tensor | None = None
) -> Tensor:
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
    start : Tensor (K,), optional
        Codes whose support the search starts from, if that is better than none.

    Notes
    -----
    Lawson & Hanson (1974). Each step lowers the objective, or the concept that entered is left out
    until another lowers it; so no support returns, and the search ends. Never worse than z = 0.
    """
    norms = torch.linalg.vector_norm(D, dim=1)
    unit = D / torch.where(norms > 0, norms, 1)[:, None]
    x, residual, value = D.new_zeros(len(D)), a, float(a @ a)
    if start is not None and bool((start * norms).isfinite().all()):
        begun = start * norms
        begun = _descend(begun, begun.nonzero()[:, 0].tolist(), unit, a, ridge)
        after = a - begun @ unit
        lower = float(after @ after + ridge * (begun @ begun))
        if lower < value:
            x, residual, value = begun, after, lower
    support, blocked = x.nonzero()[:, 0].tolist(), norms == 0
    least = tolerance * (unit @ a).clamp(min=0).amax()
    while True:
        slope = unit @ residual - ridge * x
        slope[support] = 0
        slope[blocked] = 0
        k = int(slope.argmax())
        if not slope[k] > least:
            break
        found = _descend(x, [*support, k], unit, a, ridge)
        after = a - found @ unit
        lower = float(after @ after + ridge * (found @ found))
        if not lower < value * (1 - _PROGRESS):
            blocked[k] = True
            continue
        x, residual, value = found, after, lower
        support = x.nonzero()[:, 0].tolist()
        blocked = norms == 0
    return x / torch.where(norms > 0, norms, 1)


def _descend(x: Tensor, support: list[int], unit: Tensor, a: Tensor, ridge: float) -> Tensor:
    """From x ≥ 0 towards the minimiser on a support as far as x ≥ 0 allows, without the concepts
    that would turn negative, until the minimiser on the rest is positive."""
    x = x.clone()
    while support:
        solved = _least_squares(unit[support], a, ridge)
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


def _least_squares(B: Tensor, a: Tensor, ridge: float) -> Tensor:
    """argmin ‖a − x B‖² + ridge ‖x‖² for B (p, d)."""
    if ridge:
        B = torch.cat((B, torch.diag(B.new_full((len(B),), ridge**0.5))), 1)
        a = torch.cat((a, a.new_zeros(len(B))))
    return torch.linalg.lstsq(B.T, a[:, None], driver="gelsd").solution[:, 0]
