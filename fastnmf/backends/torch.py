"""All operations of the solvers in plain torch: the reference, and the fallback on any device."""

from __future__ import annotations

import functools
import itertools
import warnings

import torch
from torch import Tensor

from ..numerics import add_squares_, inner
from ..precision import in_tf32
from .nnls.on_supports import solve_supports_
from .nnls.reference import kkt_, nnls_, nnls_on_
from .restricted.reference import OPERATIONS as RESTRICTED

# of a sparse matrix X (m, d) in compressed rows: crow (m + 1,), col (nnz,), values (nnz,)
Compressed = tuple[Tensor, Tensor, Tensor]
# concepts swept one by one before a GEMM updates the rest of the block
_INNER = 16
# entries of a sparse matrix that torch copies in the order of columns at a time
_TRANSPOSED = 1 << 20


def hals_block_(
    F: Tensor, R: Tensor, G: Tensor, delta: Tensor, sums: Tensor, bounded: bool = True
) -> None:
    """F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k; k = 0 … s−1, in place.
    Without `bounded` entries may be negative: F_k ← F_k + R_k / G_kk.

    F (s, m) with any strides; R, delta (s, m) with contiguous rows; G (s, s). R is destroyed, delta
    receives the change of F, rounded where products of it are tf32; sums (2,) float64 is increased
    by ‖Δ‖² and ‖F‖². A concept with G_kk = 0 is left as it is. m s² flops. Does not synchronise.
    Source: Cichocki & Phan, 2009 (fast HALS).
    """
    s = F.shape[0]
    inverse = inverse_or_zero(G.diagonal())[:, None]
    G = G * inverse
    R.mul_(inverse)
    # max(0, F + R) − F = max(R, −F): one call a concept, and F + Δ is exactly zero where it is
    # clipped
    torch.neg(F, out=delta) if bounded else delta.fill_(-torch.inf)
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
        round_tf32_(delta, delta)


def hals_sweep_(
    F: Tensor, C: Tensor, G: Tensor, sums: Tensor, sweeps: int = 1, bounded: bool = True
) -> None:
    """F_k ← max(0, F_k + (C_k − G_k F) / G_kk); k = 0 … K−1, in place: whole sweeps of few
    concepts. Without `bounded` entries may be negative.

    F, C (K, m) with any strides; G (K, K). The rest as for hals_block_. 3 m K² flops a sweep.
    """
    for _ in range(sweeps):
        R = torch.addmm(C, G, F, alpha=-1)
        hals_block_(F, R, G, torch.empty_like(R), sums, bounded)


def hals_each_(*given) -> None:
    """weighted.hals_each_; loaded where there are weights."""
    from .weighted import hals_each_

    hals_each_(*given)


def hals_weighted_(*given) -> None:
    """weighted.hals_weighted_ by the operations here; loaded where there are weights."""
    from .weighted import hals_each_, hals_weighted_

    hals_weighted_(*given, using=(hals_each_, sparse_dot_))


def moments_(F: Tensor, X: Tensor | None, out: Tensor, *, adds: bool = False) -> None:
    """out ← F X, or out + F X if adds; F (K, m), X (m, p), None: Fᵀ. 2 m K p flops."""
    out.addmm_(F, F.T if X is None else X, beta=1 if adds else 0)


def cross_(out: Tensor, X: Tensor, D: Tensor, l1: float) -> None:
    """out ← X Dᵀ − l1 for X (m, p), D (K, p); out (m, K) contiguous. 2 m K p flops."""
    torch.mm(X, D.T, out=out)
    if l1:
        out.sub_(l1)


def round_tf32_(out: Tensor, X: Tensor) -> None:
    """out ← X (s, m) in float32 rounded to the nearest tf32, ties away from zero; out may be X.

    A product in tf32 cuts its operands off instead, towards zero, so that errors add up.
    """
    torch.add(X.view(torch.int32), 0x1000, out=out.view(torch.int32))
    out.view(torch.int32).bitwise_and_(-8192)


def mu_(F: Tensor, C: Tensor, denominator: Tensor, sums: Tensor) -> None:
    """F ← F ∘ C / denominator, in place; where the denominator is zero F is left as it is.

    F, C, denominator (s, m). sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². Numbers below the
    smallest normal one become zero. The denominator is zero for a concept with B_k = 0, which may
    return, and where F is zero and must stay so.
    Source: Lee & Seung, 1999.
    """
    # F ∘ C first: the quotient is bounded by C_k / G_kk, while C / denominator can overflow
    tiny = torch.finfo(F.dtype).tiny
    updated = torch.mul(C, F).div_(denominator.clamp(min=tiny))
    # processors compute slowly with subnormal numbers
    updated.masked_fill_(updated < tiny, 0)
    updated = torch.where(denominator > 0, updated, F)
    add_squares_(sums, updated - F, updated)
    F.copy_(updated)


def pgd_(
    F: Tensor, Y: Tensor, gradient: Tensor, step: Tensor, momentum: float, bounded: bool = True
) -> None:
    """F' = max(0, Y − step · gradient), Y ← F' + momentum · (F' − F), F ← F', in place. Without
    `bounded` F' = Y − step · gradient.

    F, Y, gradient (s, m), of which gradient is destroyed; step a 0-dimensional tensor.
    Source: Nesterov, 1983; for NMF: Guan, Tao, Luo & Yuan, 2012 (NeNMF).
    """
    updated = torch.sub(Y, gradient.mul_(step), out=gradient)
    updated = updated.clamp_(min=0) if bounded else updated
    torch.lerp(F, updated, 1 + momentum, out=Y)
    F.copy_(updated)


def extrapolate_(
    F: Tensor,
    swept: Tensor,
    step: Tensor,
    least: float | None,
    before: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """swept, F ← F, max(least F, F + step (F − swept)), in place; least = None: of any sign.

    F, swept, before (s, m) with any strides; step a 0-dimensional tensor. sums (2,) float64,
    where given, is increased by ‖F − before‖² and ‖F‖² of the new F.
    """
    delta = F - swept
    swept.copy_(F)
    F.addcmul_(delta, step)
    if least:
        torch.maximum(F, torch.mul(swept, least, out=delta), out=F)
    elif least is not None:
        F.clamp_(min=0)
    if sums is not None:
        add_squares_(sums, torch.sub(F, before, out=delta), F)


def rescale_(F: Tensor, swept: Tensor, scale: Tensor, before: Tensor, sums: Tensor) -> None:
    """F, swept ← scale F, scale swept, in place; scale (s,). The rest as for extrapolate_."""
    F.mul_(scale[:, None])
    swept.mul_(scale[:, None])
    add_squares_(sums, F - before, F)


def sparse_dot_(out: Tensor, X: Compressed, Bt: Tensor) -> None:
    """out ← X Bt; X (m, d), Bt (d, K), out (m, K) with contiguous rows. 2 nnz K flops."""
    crow, col, values = X
    if not len(col) or not out.numel():
        out.zero_()
        return
    _warn_of_beta()
    given = crow, col, values, (len(out), len(Bt))
    X = torch.sparse_csr_tensor(*given, device=out.device, check_invariants=False)
    torch.addmm(out, X, Bt.contiguous(), beta=0, out=out)


def sparse_tdot_(out: Tensor, X: Compressed, Z: Tensor, *, adds: bool = False) -> None:
    """out ← Xᵀ Z, or out + Xᵀ Z if adds; X (m, d), Z (m, K), out (d, K) with contiguous rows.

    torch copies X in the order of columns for it: some rows at a time. 2 nnz K flops.
    """
    crow, col, values = X
    if not adds:
        out.zero_()
    if not len(col) or not out.numel():
        return
    _warn_of_beta()
    rows = max(1, _TRANSPOSED * len(Z) // len(col))
    bounds = crow[::rows].tolist()
    for i, (first, last) in enumerate(itertools.pairwise([*bounds, len(col)])):
        codes = Z[i * rows : (i + 1) * rows]
        if last > first:
            some = crow[i * rows : i * rows + len(codes) + 1] - first
            part = some, col[first:last], values[first:last], (len(out), len(codes))
            Xt = torch.sparse_csc_tensor(*part, device=out.device, check_invariants=False)
            out.addmm_(Xt, codes.contiguous())


@functools.cache
def _warn_of_beta() -> None:
    """torch warns once that these layouts may change, which concerns nobody who uses fastnmf."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = torch.zeros(2, dtype=torch.int64, device="cpu")
        for build in (torch.sparse_csr_tensor, torch.sparse_csc_tensor):
            build(index, index[:0], torch.empty(0, device="cpu"), (1, 1), check_invariants=False)


def inverse_or_zero(diagonal: Tensor) -> Tensor:
    """1 / diagonal, 0 where that is below the smallest normal number."""
    alive = diagonal >= torch.finfo(diagonal.dtype).tiny
    return torch.where(alive, 1 / torch.where(alive, diagonal, 1), 0)


def measure_(
    sums: Tensor, D: Tensor, cross: Tensor, G: Tensor, gram: Tensor, total: Tensor | float
) -> None:
    """sums[2] ← total + ⟨gram, G⟩ − 2 ⟨cross, D⟩: ‖A − Z D‖² for total = ‖A‖², cross = ZᵀA, gram =
    ZᵀZ and G = D Dᵀ. D, cross (K, d), G, gram (K, K). Products are summed in float64."""
    cross, gram = inner(cross, D), inner(gram, G)
    torch.add(gram + total, cross, alpha=-2, out=sums[2])


def moved_(sums: Tensor, F: Tensor, before: Tensor, norms: Tensor, most: float) -> bool:
    """sums[:2] ← ‖F − before‖², ‖F‖²; return whether the norm of a row of F (K, d) may differ from
    norms (K,) by more than the share `most`. Does not synchronise, and returns True here."""
    for found, X in zip(sums, (F - before, F), strict=False):
        # few launches, which count where iterations are small
        found.copy_(torch.dot(X.flatten(), X.flatten()))
    return True


def scales_(norms: Tensor, before: Tensor, most: float) -> Tensor | bool:
    """norms ← norms / before, 1 where either is zero, in place; both (K,). Return whether one is
    off 1 by more than `most`, here as a tensor, so that it does not synchronise."""
    alive = (norms > 0) & (before > 0)
    torch.where(alive, norms / before, norms.new_ones(()), out=norms)
    return ((norms - 1).abs() > most).any()


# all operations: those of the backend `torch`, and for the others the ones that they do not supply
REFERENCE = {
    "hals_block_": hals_block_,
    "hals_sweep_": hals_sweep_,
    "hals_each_": hals_each_,
    "hals_weighted_": hals_weighted_,
    "moments_": moments_,
    "mu_": mu_,
    "pgd_": pgd_,
    "extrapolate_": extrapolate_,
    "rescale_": rescale_,
    "measure_": measure_,
    "moved_": moved_,
    "scales_": scales_,
    "round_tf32_": round_tf32_,
    "nnls_": nnls_,
    "nnls_on_": nnls_on_,
    "kkt_": kkt_,
    "solve_supports_": solve_supports_,
    "cross_": cross_,
    "sparse_dot_": sparse_dot_,
    "sparse_tdot_": sparse_tdot_,
    **RESTRICTED,
}
