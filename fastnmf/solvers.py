"""Solver records and the plain-torch updates they need: the reference, the fallback everywhere.

An update changes one factor, or a block of its concepts, in place. It knows nothing of rows,
chunks, files or stopping (engine.py) nor of how its operands were made (sweeps.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .active_set import nnls_, nnls_on_, nnls_unrolled
from .precision import in_tf32, round_tf32
from .rows import wide_pieces, widened

# concepts swept one after the other before the rest of the block is updated by a GEMM
_INNER = 16
# entries summed in float32 before float64 takes over
_NORM_ENTRIES = 1 << 12


def hals_block_(F: Tensor, R: Tensor, G: Tensor, delta: Tensor, sums: Tensor) -> None:
    """F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k; k = 0 … s−1, in place.

    F (s, m) with any strides; R, delta (s, m) with contiguous rows; G (s, s). R is destroyed, delta
    receives the change of F, rounded where products of it are tf32; sums (2,) float64 is increased
    by ‖Δ‖² and ‖F‖². A concept with G_kk = 0 is left as it is. m s² flops. Does not synchronise.
    Source: Cichocki & Phan, 2009 (fast HALS).
    """
    s = F.shape[0]
    inverse = _inverse_or_zero(G.diagonal())[:, None]
    G = G * inverse
    R.mul_(inverse)
    # max(0, F + R) − F = max(R, −F): one call a concept, and F + Δ is exactly zero where it is
    # clipped
    torch.neg(F, out=delta)
    for first in range(0, s, _INNER):
        last = min(first + _INNER, s)
        for k in range(first, last):
            torch.maximum(delta[k], R[k], out=delta[k])
            if k + 1 < last:
                R[k + 1 : last].addr_(G[k + 1 : last, k], delta[k], alpha=-1)
        if last < s:
            R[last:].addmm_(G[last:, first:last], delta[first:last], alpha=-1)
    F.add_(delta)
    add_squares_(sums, delta, F)
    if in_tf32(delta):
        round_tf32(delta, delta)


def hals_sweep_(F: Tensor, C: Tensor, G: Tensor, sums: Tensor, sweeps: int = 1) -> None:
    """F_k ← max(0, F_k + (C_k − G_k F) / G_kk); k = 0 … K−1, in place: so many whole sweeps of few
    concepts.

    F, C (K, m) with any strides; G (K, K). The rest as for hals_block_. 3 m K² flops a sweep.
    """
    for _ in range(sweeps):
        R = torch.addmm(C, G, F, alpha=-1)
        hals_block_(F, R, G, torch.empty_like(R), sums)


def moments_(F: Tensor, X: Tensor | None, out: Tensor, *, adds: bool = False) -> None:
    """out ← F X, or out + F X where it `adds`; F (K, m), X (m, p), by default Fᵀ. 2 m K p flops."""
    out.addmm_(F, F.T if X is None else X, beta=1 if adds else 0)


def mu_(F: Tensor, C: Tensor, denominator: Tensor, sums: Tensor) -> None:
    """F ← F ∘ C / denominator, in place; where the denominator is zero F is left as it is.

    F, C, denominator (s, m). sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². What would be below
    the least normal number becomes zero. The denominator is zero for a concept with B_k = 0, which
    may return, and where F is zero and must stay so.
    Source: Lee & Seung, 1999.
    """
    # F ∘ C first: the quotient is bounded by C_k / G_kk, while C / denominator can overflow
    tiny = torch.finfo(F.dtype).tiny
    updated = torch.mul(C, F).div_(denominator.clamp(min=tiny))
    # subnormal numbers, which processors compute with slowly, become zero
    updated.masked_fill_(updated < tiny, 0)
    updated = torch.where(denominator > 0, updated, F)
    add_squares_(sums, updated - F, updated)
    F.copy_(updated)


def pgd_(F: Tensor, Y: Tensor, gradient: Tensor, step: Tensor, momentum: float) -> None:
    """F' = max(0, Y − step · gradient), Y ← F' + momentum · (F' − F), F ← F', in place.

    F, Y, gradient (s, m), of which gradient is destroyed; step a 0-dimensional tensor.
    Source: Nesterov, 1983; for NMF: Guan, Tao, Luo & Yuan, 2012 (NeNMF).
    """
    updated = torch.sub(Y, gradient.mul_(step), out=gradient).clamp_(min=0)
    torch.lerp(F, updated, 1 + momentum, out=Y)
    F.copy_(updated)


def extrapolate_(
    F: Tensor,
    swept: Tensor,
    step: Tensor,
    least: float,
    before: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """swept, F ← F, max(least F, F + step (F − swept)), in place.

    F ≥ 0, swept, before (s, m) with any strides; step a 0-dimensional tensor. sums (2,) float64,
    where given, is increased by ‖F − before‖² and ‖F‖² of the new F.
    """
    delta = F - swept
    swept.copy_(F)
    F.addcmul_(delta, step)
    if least:
        torch.maximum(F, torch.mul(swept, least, out=delta), out=F)
    else:
        F.clamp_(min=0)
    if sums is not None:
        add_squares_(sums, torch.sub(F, before, out=delta), F)


def rescale_(F: Tensor, swept: Tensor, scale: Tensor, before: Tensor, sums: Tensor) -> None:
    """F, swept ← scale F, scale swept, in place; scale (s,). The rest as for extrapolate_."""
    F.mul_(scale[:, None])
    swept.mul_(scale[:, None])
    add_squares_(sums, F - before, F)


def hals_unrolled(F: Tensor, C: Tensor, G: Tensor, l1: float = 0.0) -> Tensor:
    """One sweep F → F' of all concepts out of place, for autograd with respect to C (K, m) and F
    (K, m). l1: the slope of a penalty."""
    R = C - l1 - G @ F
    inverse = _inverse_or_zero(G.diagonal())
    swept = []
    for k, row in enumerate(F.unbind(0)):
        change = torch.maximum(R[k] * inverse[k], -row)
        swept.append(row + change)
        R = R - torch.outer(G[:, k], change)
    return torch.stack(swept)


def mu_unrolled(F: Tensor, C: Tensor, G: Tensor, l1: float = 0.0) -> Tensor:
    """One multiplicative update F → F' out of place, for autograd with respect to C (K, m) and F
    (K, m). l1: the slope of a penalty."""
    updated = F * C / (G @ F + l1).clamp(min=torch.finfo(F.dtype).tiny)
    return torch.where(G.diagonal()[:, None] > 0, updated, F)


def pgd_unrolled(F: Tensor, C: Tensor, G: Tensor, l1: float = 0.0) -> Tensor:
    """One half-step of projected gradient F → F' out of place, for autograd with respect to C and
    F. l1: the slope of a penalty."""
    step = 1 / largest_eigenvalue(lambda v: G @ v, G.diagonal())
    Y = F
    for momentum in pgd_momenta():
        updated = (Y - step * (G @ Y - C + l1)).clamp(min=0)
        Y = torch.lerp(F, updated, 1 + momentum)
        F = updated
    return F


def pgd_momenta(steps: int = 5) -> list[float]:
    """The momentum of each gradient step of a half-step: (t − 1) / t' with t' = (1 + √(1 + 4t²)) /
    2."""
    momenta, t = [], 1.0
    for _ in range(steps):
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        momenta.append((t - 1) / following)
        t = following
    return momenta


def largest_eigenvalue(
    apply: Callable[[Tensor], Tensor], diagonal: Tensor, steps: int = 15
) -> Tensor:
    """An upper bound of the largest eigenvalue of G ≥ 0, tight when the power iteration has
    converged.

    apply(v) is G v for v (K,); diagonal (K,) is that of G. For v > 0, max_k (G v)_k / v_k bounds
    the eigenvalue from above (Collatz, 1942; Wielandt, 1950), and so does the trace. Returns a
    0-dimensional tensor > 0. Does not synchronise.
    """
    v = diagonal.sqrt()
    tiny = torch.finfo(v.dtype).tiny
    for _ in range(steps):
        v = apply(v / v.max().clamp(min=tiny))
    v = v / v.max().clamp(min=tiny)
    # a floor keeps the quotient meaningful where the power iteration has all but left a concept
    v = torch.where(diagonal > 0, v.clamp(min=1e-3), 0)
    quotient = torch.where(diagonal > 0, apply(v) / v.clamp(min=tiny), 0)
    bound = torch.minimum(quotient.max(), diagonal.sum())
    return torch.where(bound > 0, bound, 1)


def add_squares_(sums: Tensor, delta: Tensor, F: Tensor) -> None:
    """sums += (‖delta‖², ‖F‖²), in float64."""
    sums[0].add_(squared_norm(delta))
    sums[1].add_(squared_norm(F))


def squared_norm(X: Tensor) -> Tensor:
    """‖X‖² of a matrix, a float64 scalar; summed over pieces, so that X is never copied whole."""
    X = X if X.stride(1) == 1 else X.T
    if X.device.type != "cpu" or X.dtype == torch.float64:
        wide = X.split(max(1, (1 << 24) // max(1, X.shape[1])))
        norms = [torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in wide]
        return torch.stack(norms).square().sum() if len(norms) > 1 else norms[0].square()
    if X.numel() <= _NORM_ENTRIES:
        return torch.linalg.vector_norm(widened(X)).double().square_()
    norms = [
        torch.linalg.vector_norm(lines, dim=1).double()
        for piece in wide_pieces(X)
        for lines in _lines(piece)
    ]
    return torch.cat(norms).square_().sum()


def _lines(X: Tensor) -> tuple[Tensor, ...]:
    """The entries of X as matrices of about as many columns as are summed in float32 at a time."""
    if not X.is_contiguous():
        return X.split(_NORM_ENTRIES, dim=1)
    flat, lines = X.view(-1), X.numel() // _NORM_ENTRIES
    whole = lines * _NORM_ENTRIES
    return flat[:whole].view(lines, _NORM_ENTRIES), flat[None, whole:]


def _inverse_or_zero(diagonal: Tensor) -> Tensor:
    alive = diagonal >= torch.finfo(diagonal.dtype).tiny
    return torch.where(alive, 1 / torch.where(alive, diagonal, 1), 0)


@dataclass(frozen=True)
class Solver:
    """What the loop must know of a solver. The half-steps themselves are in sweeps.py, under the
    same name.

    operations: what a backend supplies for it, by name. fused: products and update in one, which a
    backend may supply besides; without, sweeps.py makes them of torch's products and the first
    kind. forms: the forms its half-steps exist in.
    exact: whether one half-step solves its problem. most_momentum: the largest β of an
    extrapolation (momentum.py); penalised_momentum: with penalties at K > d; least_share: how much
    of a code it must leave. learns_up_to: the concepts up to which it updates the dictionary;
    beyond, one sweep of hals does. unrolled(F, C, G, l1) → F': one half-step out of place, through
    which `encode` differentiates.
    """

    name: str
    title: str
    operations: tuple[str, ...]
    forms: tuple[str, ...]
    unrolled: Callable[..., Tensor]
    fused: tuple[str, ...] = ()
    exact: bool = False
    # anls: the time of a column of D grows with the cube of its support, a third of the concepts:
    # 5 ms at K = 1,000, 25 ms at 2,000 (one thread, AVX2), so some 0.2 s at 4,000
    learns_up_to: float = float("inf")
    most_momentum: float = 1.0
    penalised_momentum: float = 1.0
    least_share: float = 0.0


SOLVERS = {
    solver.name: solver
    for solver in (
        Solver(
            "hals",
            "hierarchical alternating least squares",
            ("hals_block_", "hals_sweep_"),
            ("normal", "residual"),
            hals_unrolled,
            fused=("hals_rows_",),
            # a sweep is not a gradient step: from 0.8 on similar concepts make it swing, and the
            # loss at K > d is ten times that of 0.7
            most_momentum=0.7,
            # at K > d a sweep of penalised codes swings at 0.7, and settles quickly without
            penalised_momentum=0.0,
        ),
        Solver(
            "mu",
            "multiplicative updates",
            ("mu_",),
            ("normal", "residual"),
            mu_unrolled,
            fused=("mu_normal_", "mu_residual_"),
            # a code that is zero stays zero
            least_share=0.5,
        ),
        Solver(
            "pgd",
            "projected gradient with momentum",
            ("pgd_",),
            ("normal", "residual"),
            pgd_unrolled,
            fused=("pgd_normal_", "pgd_residual_"),
        ),
        Solver(
            "anls",
            "alternating non-negative least squares, exact",
            ("nnls_", "nnls_on_"),
            ("normal", "residual"),
            nnls_unrolled,
            exact=True,
            learns_up_to=4000,
        ),
    )
}


def learner(solver: str, K: int) -> str:
    """The solver whose half-step updates a dictionary of K concepts: itself, as far as it goes."""
    return solver if K <= SOLVERS[solver].learns_up_to else "hals"


# every operation there is, in plain torch: what the backend `torch` supplies, and what a faster one
# leaves out
REFERENCE = {
    "hals_block_": hals_block_,
    "hals_sweep_": hals_sweep_,
    "moments_": moments_,
    "mu_": mu_,
    "pgd_": pgd_,
    "extrapolate_": extrapolate_,
    "rescale_": rescale_,
    "nnls_": nnls_,
    "nnls_on_": nnls_on_,
}
