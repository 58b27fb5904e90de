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
# share of l1, in directions that do not change the residual, from which it counts
_FLAT = 1e-10
# largest weight of a term, for unit rows and concepts
_MOST = 1e150


class Measure(NamedTuple):
    """How exact the codes z of each row a are, (n,) float64, infinite where they are not finite.

    For the objective q(z) = ‖a − z D‖² + 2 l1 Σ z + l2 ‖z‖² and its slopes w = D (a − z D)ᵀ − l1 −
    l2 z:
    kkt: the larger of max w⁺ and of |w| over z > 0, relative to max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ|
    z_j) + l1. change: q(z) − q(0), above 0 where zero codes are better. gap: by how much at most
    q(z) is above q(y) for any codes y with Σ ‖D_k‖ y_k ≤ ‖a‖ + Σ ‖D_k‖ z_k, by convexity:
    2 (‖a‖ + Σ ‖D_k‖ z_k) max (w_k / ‖D_k‖)⁺ − 2 Σ w_k z_k. change and gap are relative to ‖a‖².
    """

    kkt: Tensor
    change: Tensor
    gap: Tensor

    @property
    def excess(self) -> Tensor:
        """By how much at most the objective is above the least (n,), relative to ‖a‖²: gap, or the
        objective itself."""
        return torch.minimum(self.gap, 1 + self.change)

    def replace_(self, rows: Tensor, found: Measure) -> None:
        """The Measure of these rows is `found`."""
        for own, new in zip(self, found, strict=True):
            own[rows] = new


class Terms(NamedTuple):
    """The weights of l1 Σ z and ½ l2 ‖z‖² in ½ ‖a − z D‖² + …: numbers, or tensors that expand to
    (n, K)."""

    l1: float | Tensor = 0.0
    l2: float | Tensor = 0.0

    @property
    def none(self) -> bool:
        """Whether neither has any weight, as numbers."""
        return not any(isinstance(weight, Tensor) or weight for weight in self)


NO_TERMS = Terms()


def measure(
    A: Tensor,
    D: Tensor,
    Z: Tensor,
    sizes: Tensor | None = None,
    terms: Terms = NO_TERMS,
    *,
    on_support: bool = False,
) -> Measure:
    """The Measure of codes Z (n, K) of A (n, d), in float64 at any scale. 2 n K (4 d) flops, or
    2 n K (3 d + K) for D of both signs. sizes (K,) int64: concepts count in kkt as if D_k were
    2^sizes_k times as large, and z_k as much smaller. terms: numbers, or l2 (K,). on_support: kkt
    is that of the problem on the concepts in use."""
    power, powers = exponents(A, _LARGE), exponents(D, _LARGE)
    # exact, and nothing overflows when it is squared; zero concepts take no part
    D = times_power(D, -powers[:, None]) if powers.any() else D.double()
    norms = torch.linalg.vector_norm(D, dim=1)
    lengths = torch.where(norms > 0, norms, 1)
    D = D / lengths[:, None]
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
        of_unit = terms
        if not terms.none:
            # those of unit concepts, and of rows as they are here
            l1 = times_power(terms.l1 / lengths, -powers - own[:, None])
            l2 = times_power(terms.l2 / lengths.square(), -2 * powers)
            of_unit = Terms(l1.clamp(max=_MOST), l2.clamp(max=_MOST))
        parts.append(_measure(a, D, x, weights, of_unit, on_support=on_support))
    if not parts:
        return Measure(*(norms.new_zeros(0) for _ in Measure._fields))
    return Measure(*map(torch.cat, zip(*parts, strict=True)))


def _measure(
    a: Tensor, unit: Tensor, x: Tensor, weights: Tensor, terms: Terms, *, on_support: bool
) -> Measure:
    """The Measure for unit concepts, whose slopes count as much as their weights (K,) in kkt.
    terms: l1 (n, K) and l2 (K,), or none."""
    finite = x.sum(1).isfinite()
    if not finite.all():
        x = torch.where(finite[:, None], x, 0)
    rebuilt, active = x @ unit, None
    if bool(unit.amin() < 0):
        # most codes are zero there, and sums of absolute values need products of concepts
        active = x.any(0)
    residual = a - rebuilt
    worst, scale, steepest, used = (a.new_zeros(len(a)) for _ in range(4))
    for part in torch.arange(len(unit), device=unit.device).split(_CONCEPTS):
        some, own = unit[part], x[:, part]
        slope = residual @ some.T
        size = (a @ some.T).abs()
        if active is None:
            size += rebuilt @ some.T
        else:
            size += x[:, active] @ (unit[active] @ some.T).abs()
        if not terms.none:
            l1 = torch.as_tensor(terms.l1, device=a.device)
            l2 = torch.as_tensor(terms.l2, device=a.device)
            slope -= l1[:, part] + l2[part] * own
            size += l1[:, part]
        rising = torch.zeros_like(slope) if on_support else slope.clamp(min=0)
        violation = torch.where(own > 0, slope.abs(), rising) * weights[part]
        worst = torch.maximum(worst, violation.amax(1))
        scale = torch.maximum(scale, (size * weights[part]).amax(1))
        steepest = torch.maximum(steepest, slope.amax(1))
        used += (slope * own).sum(1)
    square = a.square().sum(1)
    gap = 2 * ((square.sqrt() + x.sum(1)) * steepest - used).clamp(min=0)
    kkt = torch.where(worst > 0, worst / scale.clamp(min=torch.finfo(torch.float64).tiny), 0)
    objective = residual.square().sum(1)
    if not terms.none:
        objective += ((2 * terms.l1 + terms.l2 * x) * x).sum(1)
    square = torch.where(square > 0, square, 1)
    change = (objective - a.square().sum(1)) / square
    return Measure(*(torch.where(finite, one, torch.inf) for one in (kkt, change, gap / square)))


def solve_by_residual(
    a: Tensor,
    D: Tensor,
    tolerance: float,
    ridge: float = 0.0,
    start: Tensor | None = None,
    terms: Terms = NO_TERMS,
) -> Tensor:
    """Codes z (K,) ≥ 0 that minimise ½ ‖a − z D‖² + l1 Σ z + ½ l2 ‖z‖² + ½ ridge Σ (‖D_k‖ z_k)².

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
    terms : Terms
        The weights l1 and l2, numbers.

    Notes
    -----
    Lawson & Hanson (1974). Each step lowers the objective, or the concept that entered is left out
    until another lowers it; so no support returns, and the search ends. Never worse than z = 0.
    """
    norms = torch.linalg.vector_norm(D, dim=1)
    lengths = torch.where(norms > 0, norms, 1)
    unit = D / lengths[:, None]
    weights = Terms(terms.l1 / lengths, ridge + terms.l2 / lengths.square())
    problem = _Problem(a, unit, weights, bool(terms.l1))
    x = D.new_zeros(len(D))
    value = problem.value(x)
    if start is not None and bool((start * norms).isfinite().all()):
        begun = start * norms
        begun = _descend(begun, begun.nonzero()[:, 0].tolist(), problem)
        lower = problem.value(begun)
        if lower < value:
            x, value = begun, lower
    support, blocked = x.nonzero()[:, 0].tolist(), norms == 0
    least = tolerance * (unit @ a).clamp(min=0).amax()
    while True:
        slope = problem.slope(x)
        slope[support] = 0
        slope[blocked] = 0
        k = int(slope.argmax())
        if not slope[k] > least:
            break
        found = _descend(x, [*support, k], problem)
        lower = problem.value(found)
        if not lower < value * (1 - _PROGRESS):
            blocked[k] = True
            continue
        x, value = found, lower
        support = x.nonzero()[:, 0].tolist()
        blocked = norms == 0
    return x / lengths


class _Problem(NamedTuple):
    """‖a − x unit‖² + 2 Σ l1 x + Σ l2 x² for unit concepts (K, d) and terms (K,). linear: whether
    any l1 is not 0."""

    a: Tensor
    unit: Tensor
    terms: Terms
    linear: bool

    def value(self, x: Tensor) -> float:
        """The objective at x (K,)."""
        residual = self.a - x @ self.unit
        return float(residual @ residual + (self.terms.l2 * x + 2 * self.terms.l1) @ x)

    def slope(self, x: Tensor) -> Tensor:
        """Half of how fast the objective falls with each entry of x (K,)."""
        return self.unit @ (self.a - x @ self.unit) - self.terms.l1 - self.terms.l2 * x

    def minimiser(self, support: list[int]) -> tuple[Tensor, Tensor | None]:
        """The minimiser (p,) on a support, of least norm where there are several; and a direction
        along which the objective falls without bound, or None."""
        a, B = self.a, self.unit[support]
        weights = torch.as_tensor(self.terms.l2, device=a.device)[support]
        if weights.any():
            a = torch.cat((a, a.new_zeros(len(B))))
            B = torch.cat((B, torch.diag(weights.sqrt())), 1)
        if not self.linear:
            return torch.linalg.lstsq(B.T, a[:, None], driver="gelsd").solution[:, 0], None
        l1 = torch.as_tensor(self.terms.l1, device=a.device)[support]
        U, sizes, Vt = torch.linalg.svd(B, full_matrices=False)
        rank = int((sizes > sizes[0] * torch.finfo(B.dtype).eps * max(B.shape)).sum())
        U, sizes = U[:, :rank], sizes[:rank]
        along = l1 @ U
        # what is left of l1 where the residual does not depend on x
        rest = along @ U.T - l1 if rank < len(B) else torch.zeros_like(l1)
        unbounded = bool(rest.norm() > _FLAT * l1.norm())
        return U @ ((Vt[:rank] @ a - along / sizes) / sizes), rest if unbounded else None


def _descend(x: Tensor, support: list[int], problem: _Problem) -> Tensor:
    """From x ≥ 0 towards the minimiser on a support as far as x ≥ 0 allows, without the concepts
    that would turn negative, until the minimiser on the rest is positive."""
    x = x.clone()
    while support:
        solved, direction = problem.minimiser(support)
        here = x[support]
        if direction is None and bool((solved > 0).all()):
            x[support] = solved
            return x
        change = solved - here if direction is None else direction
        falls = solved <= 0 if direction is None else direction < 0
        ratio = torch.where(falls, here / (-change).clamp(min=1e-300), torch.inf)
        step = float(ratio.amin())
        moved = (here + step * change).clamp(min=0)
        moved[ratio <= step] = 0
        x[support] = moved
        support = [k for k, kept in zip(support, (ratio > step).tolist(), strict=True) if kept]
    return x
