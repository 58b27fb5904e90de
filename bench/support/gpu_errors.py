"""How far a kernel may be from float64: bounds that follow from its arithmetic, not from its
results.

A sum of L terms rounds L times, each time by at most u = 2⁻²⁴ of what it has come to. Errors of
rounding to nearest are as good as independent, so that they add up to about u √L of the largest
partial sum (Higham & Mary, 2019); SAFETY times that is allowed. In tf32 both operands of a product
are rounded as well, to 2⁻¹¹ of themselves, which adds up likewise; and tensor cores cut off when
they add, always to the same side, so that there L counts, not √L.

A sweep of HALS passes errors on: with the local errors r of the numerators, those of F satisfy
(diag(G) / φ + L) e = r, where L is the strict lower triangle of G, and φ ≤ 1 is 0 where F is cut
off at zero. G is positive semidefinite, so eᵀ r ≥ ½ Σ G_kk e_k², and √(Σ G_kk e_k²) is at most
2 √(Σ r_k² / G_kk), for every sample, whatever the condition of G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAFETY = 4.0
UNIT, UNIT_TF32 = 2.0**-24, 2.0**-11


@dataclass(frozen=True)
class Exact:
    """What an operation should write, in float64, and the bounds of its errors.

    F, and second (or None): Δ of hals_block_, next_Y of pgd. sums: ‖ΔF‖², ‖F‖², or none. weights
    (K, 1): of hals, whose errors are bounded for all concepts of a sample together,
    √(Σ_k weight_k e_k²) ≤ bound (m,); None where each number has its own bound, (K, m).
    """

    F: Tensor
    bound: Tensor
    second: Tensor | None = None
    second_bound: Tensor | None = None
    sums: tuple[Tensor, Tensor] | None = None
    sums_bound: tuple[Tensor, Tensor] | None = None
    weights: Tensor | None = None

    def off(self, F: Tensor, second: Tensor | None, sums: Tensor) -> float:
        """The largest error relative to its bound; NaN counts as infinite."""
        ratios = [_largest(self._sized(F.double() - self.F), self.bound)]
        if self.second is not None:
            ratios.append(_largest(self._sized(second.double() - self.second), self.second_bound))
        if self.sums is not None:
            given = zip(sums[:2], self.sums, self.sums_bound, strict=True)
            ratios += [_largest((got - exact).abs(), bound) for got, exact, bound in given]
            ratios += [_largest(sums[2:].abs(), torch.zeros_like(sums[2:]))]
        return max(ratios)

    def _sized(self, error: Tensor) -> Tensor:
        if self.weights is None:
            return error.abs()
        return (error.square() * self.weights).sum(0).sqrt()


def _largest(error: Tensor, bound: Tensor) -> float:
    """max(error / bound); 0 / 0 is 0, since what must be exact may be."""
    ratio = torch.where(error == 0, 0.0, error / bound)
    return float(ratio.nan_to_num(torch.inf, torch.inf).amax())


def product_error(X: Tensor, Y: Tensor, tf32: bool, exact_X: bool = False) -> Tensor:
    """The bound of the error of X Y (i, p) × (p, j), computed in float32 or tf32.

    exact_X: X has 16 bits, which tf32 holds.
    """
    length = X.shape[1]
    rounded = (length if tf32 else length**0.5) * UNIT * (X.abs() @ Y.abs())
    if tf32:
        operands = 1 if exact_X else 2
        rounded += UNIT_TF32 * (operands * (X.square() @ Y.square())).sqrt()
    return SAFETY * rounded


def hals_block(F: Tensor, R: Tensor, G: Tensor, tf32: bool) -> Exact:
    """Of hals_block_. R_k is what is left of it by sums over j < k, each a partial sum."""
    length = torch.arange(len(F), device=F.device)[:, None].double()
    swept, delta, partial = _swept(F, R, G)
    below = G.tril(-1)
    # summed from R_k on or from zero on: partial sums are at most those below and |R_k| together
    local = UNIT * (partial.sqrt() + (length + 1).sqrt() * R.abs())
    if tf32:
        local += UNIT_TF32 * (2 * (below.square() @ delta.square())).sqrt()
        local += UNIT * length * (below.abs() @ delta.abs())
    return _of_sweep(F, swept, delta, G, SAFETY * local, UNIT_TF32 if tf32 else UNIT)


def hals_sweep(F: Tensor, C: Tensor, G: Tensor) -> Exact:
    """Of hals_sweep_, in float32: its numerators C_k − G_k F are sums of K terms, with the newest
    F."""
    swept, delta, _ = _swept(F, C - G @ F, G)
    largest = C.abs() + G.abs() @ torch.maximum(F, swept)
    local = SAFETY * (len(F) + 1) ** 0.5 * UNIT * largest
    exact = _of_sweep(F, swept, delta, G, local, UNIT)
    return Exact(exact.F, exact.bound, None, None, exact.sums, exact.sums_bound, exact.weights)


def _swept(F: Tensor, R: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F after a sweep, Δ, and for every number the sum of squares of what its numerator came to."""
    R, F, delta = R.clone(), F.clone(), torch.zeros_like(F)
    partial = R.square()
    diagonal = G.diagonal().tolist()
    for k, g in enumerate(diagonal):
        if g < torch.finfo(torch.float32).tiny:
            continue
        delta[k] = torch.maximum(R[k] / g, -F[k])
        R[k + 1 :].addr_(G[k + 1 :, k], delta[k], alpha=-1)
        partial[k + 1 :].addcmul_(R[k + 1 :], R[k + 1 :])
    return F + delta, delta, partial


def _of_sweep(
    F: Tensor, swept: Tensor, delta: Tensor, G: Tensor, local: Tensor, unit: float
) -> Exact:
    """local: the bound of the errors of the numerators; unit: to which Δ is rounded."""
    weights = G.diagonal()[:, None]
    alive = weights >= torch.finfo(torch.float32).tiny
    safe = torch.where(alive, weights, 1.0)
    # quotient, sum and difference round once each; a concept with G_kk = 0 keeps its row
    local = local + SAFETY * UNIT * weights * (3 * delta.abs() + 2 * swept + F)
    bound = 2 * (torch.where(alive, local.square() / safe, 0.0)).sum(0).sqrt()
    weights = torch.where(alive, weights, 1.0)
    rounded = bound + unit * (weights * delta.square()).sum(0).sqrt()
    # Σ_k x_k e_k of each sample, by Cauchy and Schwarz
    moved, size = ((X.square() / safe).sum(0).sqrt() for X in (delta, swept))
    summed = [(2 * (x * bound).sum() + (bound.square() / safe.amin()).sum()) for x in (moved, size)]
    sums = delta.square().sum(), swept.square().sum()
    bounds = tuple(a + _of_norm(b, len(F)) for a, b in zip(summed, sums, strict=True))
    return Exact(swept, bound, delta, rounded, sums, bounds, weights)


def _of_norm(norm: Tensor, length: int) -> Tensor:
    """Rounding of a sum of squares in float32, of which `length` are added one by one."""
    return SAFETY * UNIT * (length**0.5 + 16) * norm


def quotient(F: Tensor, numerator: Tensor, denominator: Tensor, errors: tuple) -> Exact:
    """Of mu: F ∘ numerator / denominator. errors: the bounds of those of both."""
    tiny = torch.finfo(torch.float32).tiny
    alive = denominator > 0
    safe = torch.where(alive, denominator, 1.0)
    updated = torch.where(alive, F * numerator / safe, F)
    relative = errors[0] / numerator.clamp(min=tiny) + errors[1] / safe + SAFETY * 4 * UNIT
    # numbers below the least normal one become zero
    bound = torch.where(alive, relative * updated + 2 * tiny, 0.0)
    return _summed(F, updated, bound)


def gradient_step(F: Tensor, Y: Tensor, slope: Tensor, error: Tensor, step) -> Exact:
    """Of pgd: F' = max(0, Y − length · slope), Y' = F' + momentum · (F' − F). step: (length,
    momentum); error: the bound of that of the slope."""
    length, momentum = step
    moved = (length * slope).abs()
    updated = (Y - length * slope).clamp(min=0)
    bound = length * error + SAFETY * UNIT * (Y.abs() + 4 * moved + updated)
    ahead = updated + momentum * (updated - F)
    rounded = SAFETY * 3 * UNIT * (updated + momentum * (updated + F))
    return Exact(updated, bound, ahead, (1 + momentum) * bound + rounded)


def _summed(F: Tensor, updated: Tensor, bound: Tensor) -> Exact:
    pairs = ((updated - F).abs(), updated)
    sums = tuple(X.square().sum() for X in pairs)
    of_errors = [(2 * X * bound + bound.square()).sum() for X in pairs]
    # tiles of 128 × 64 numbers, whose sums are trees
    bounds = tuple(a + _of_norm(b, 64) for a, b in zip(of_errors, sums, strict=True))
    return Exact(updated, bound, sums=sums, sums_bound=bounds)
