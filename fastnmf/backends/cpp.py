"""Passes tensors to the compiled extension fastnmf._C, as views of their memory.

Loaded by registry.py at first use. torch must be imported before _C: the two then share one OpenMP
runtime, and so the threads that torch.set_num_threads sets."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _C
from ..precision import products_in
from . import torch as reference
from .nnls.result import BLOCK, RANK_TOLERANCE, NnlsInfo
from .pointers import NnlsLimits, nnls_arguments, nnls_operations, read_report, view
from .restricted.compiled import OPERATIONS as RESTRICTED
from .torch import Compressed
from .torch import moments_ as products
from .weighted import Weighted
from .weighted import hals_weighted_ as weighted_reference

# concepts up to which our own products are faster: of codes with codes, of which half is computed,
# and with data (AVX-512: 0.65 to 1.05 of the vendor's time; AVX2 by AMD, whose few run at half the
# rate)
_FEW_SQUARED, _FEW = 512, 128
# concepts between which our products of rows with D are faster in float32: 0.6 of the vendor's time
# with 10, 1.2 with 50; in float64 0.4 to 0.7 up to 200 (AVX2 by AMD)
_FEW_ROWS = 5, 16
# concepts up to which entries with weights are computed with by a Gram matrix for each row: of
# stored ones by the kernel, of dense data by products of matrices
_PAIRED, _PAIRED_DENSE = 48, 32
# entries of a factor and its Gram matrix up to which one thread sums them faster than torch's calls
_FEW_SUMMED = 1 << 17
# bytes of such sums up to which they are computed in the pass over the codes: every thread has its
# own
_MOST_SUMS = 1 << 20
# of ‖e‖: a bound of what slopes of e with unit concepts are off in bfloat16, which rounds both, and
# the slopes, by 2⁻⁹ at most
ROUGHNESS = 2**-8 + 2**-9 + 2**-12
# entries of products from which bfloat16 is worth a copy of the concepts
_MANY_PRODUCTS = 1 << 25
# rows in flight, and bytes of their factors at most
_SLOTS, _FACTORS = 128, 1 << 29


def hals_block_(
    F: Tensor, R: Tensor, G: Tensor, delta: Tensor, sums: Tensor, bounded: bool = True
) -> None:
    """As torch.hals_block_, R and delta in any layout; R is left as it is."""
    sweep = _C.hals_block if bounded else _C.hals_block_free
    sweep(view(F), view(R), view(G), view(delta), view(sums), torch.get_num_threads())


def hals_sweep_(
    F: Tensor, C: Tensor, G: Tensor, sums: Tensor, sweeps: int = 1, bounded: bool = True
) -> None:
    """As torch.hals_sweep_; C in any layout."""
    sweep = _C.hals_normal if bounded else _C.hals_normal_free
    sweep(view(F), view(C), view(G), view(sums), torch.get_num_threads(), sweeps)


def hals_each_(
    F: Tensor, C: Tensor, G: Tensor, sums: Tensor, sweeps: int = 1, bounded: bool = True
) -> None:
    """As weighted.hals_each_."""
    sweep = _C.hals_each if bounded else _C.hals_each_free
    sweep(view(F), view(C), view(G), view(sums), torch.get_num_threads(), sweeps)


def hals_weighted_(
    F: Tensor,
    rows: Weighted,
    B: Tensor,
    penalty: tuple[float, Tensor] | None,
    sums: Tensor,
    sweeps: int = 1,
    bounded: bool = True,
) -> None:
    """As weighted.hals_weighted_. 2 nnz K (1 + 2 sweeps) flops where there are many concepts."""
    X, W = rows
    if isinstance(X, Tensor) and len(F) <= _PAIRED_DENSE:
        given = F, rows, B, penalty, sums, sweeps, bounded
        return weighted_reference(*given, using=(hals_each_, sparse_dot_))
    if penalty is not None:
        penalty = penalty[0], view(penalty[1].contiguous())
    Bt = B.T if B.stride(0) == 1 else B.T.contiguous()
    how = view(Bt), penalty, sweeps, (len(F) <= _PAIRED, bounded), view(sums)
    if isinstance(X, Tensor):
        W = W.view(torch.uint8) if W.dtype == torch.bool else W
        _C.hals_masked(view(F), view(X), view(W), *how, torch.get_num_threads())
    else:
        stored = *map(view, X), None if W is None else view(W)
        _C.hals_stored(view(F), stored, *how, torch.get_num_threads())


def cross_(out: Tensor, X: Tensor, D: Tensor, l1: float) -> None:
    """As torch.cross_."""
    (m, K), most = out.shape, _FEW if out.dtype == torch.float64 else _FEW_ROWS[1]
    if not _FEW_ROWS[0] <= K <= most or not m or X.stride(1) != 1:
        return reference.cross_(out, X, D, l1)
    B = D.T.contiguous()
    _C.cross(view(out.T), view(X), view(B), l1, torch.get_num_threads())


def kkt_(out: Tensor, F: Tensor, C: Tensor, G: Tensor, penalty: tuple[float, float]) -> None:
    """As kkt_ of nnls/reference.py; F and C in any layout."""
    _C.kkt(view(out), view(F), view(C), view(G), penalty, torch.get_num_threads())


def hals_rows_(
    F: Tensor,
    X: Tensor,
    fixed: tuple[Tensor, Tensor, float],
    sweeps: int,
    sums: Tensor,
    moves: tuple[Tensor, Tensor, float, Tensor, Tensor] | None = None,
    moments: tuple[Tensor, Tensor, bool] | None = None,
) -> None:
    """hals_sweep_ with C = Bᵀ Xᵀ − l1, which is not kept; X (m, p) with contiguous rows, fixed =
    (Bt, G, l1), Bt (p, K) in any layout. 2 m K (p + sweeps K) flops.

    With moves = (swept, step, least, before, sums), before ← F first, and after the sweeps
    extrapolate_(F, *moves), whose sums take the place of those. With moments = (cross, gram, adds),
    then moments_ of both, 2 m K (p + K) flops more.
    """
    (Bt, G, l1), threads = fixed, torch.get_num_threads()
    extrapolation = statistics = None
    if moves:
        swept, step, least, before, sums = moves
        extrapolation = view(swept), view(before), float(step), least
    if moments:
        cross, gram, adds = moments
        K, p = cross.shape
        if F.stride(0) == 1 and K <= _FEW and K * (p + K) * F.element_size() <= _MOST_SUMS:
            statistics = view(cross), view(gram), adds
    factor = view(Bt), view(G), l1
    _C.hals_rows(view(F), view(X), factor, sweeps, view(sums), threads, extrapolation, statistics)
    if moments and not statistics:
        moments_(F, X, cross, adds=adds)
        moments_(F, None, gram, adds=adds)


def moments_(F: Tensor, X: Tensor | None, out: Tensor, *, adds: bool = False) -> None:
    """As torch.moments_, which takes large matrices and other layouts."""
    most = _FEW_SQUARED if X is None else _FEW
    other = F.T if X is None else X
    if (
        len(F) > most
        or not F.numel()
        or F.stride(0) != 1
        or other.stride(1) != 1
        or out.stride(1) != 1
    ):
        return products(F, X, out, adds=adds)
    threads = torch.get_num_threads()
    _C.moments(view(F), view(other), view(out), X is None, adds, threads)


def mu_(F: Tensor, C: Tensor, denominator: Tensor, sums: Tensor) -> None:
    """As torch.mu_."""
    _C.mu_update(view(F), view(C), view(denominator), view(sums), torch.get_num_threads())


def pgd_(
    F: Tensor, Y: Tensor, gradient: Tensor, step: Tensor, momentum: float, bounded: bool = True
) -> None:
    """As torch.pgd_; the gradient is left as it is where F is bounded."""
    if not bounded:
        # a dictionary, small beside the products before it
        return reference.pgd_(F, Y, gradient, step, momentum, bounded)
    unread, threads = torch.zeros(2, dtype=torch.float64, device="cpu"), torch.get_num_threads()
    _C.pgd_update(view(F), view(Y), view(gradient), float(step), momentum, view(unread), threads)


def extrapolate_(
    F: Tensor,
    swept: Tensor,
    step: Tensor,
    least: float | None,
    before: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """As torch.extrapolate_."""
    if least is None:
        # a dictionary, small beside the products before it
        return reference.extrapolate_(F, swept, step, least, before, sums)
    change = None if sums is None else (view(before), view(sums))
    _C.extrapolate(view(F), view(swept), float(step), least, torch.get_num_threads(), change)


def rescale_(F: Tensor, swept: Tensor, scale: Tensor, before: Tensor, sums: Tensor) -> None:
    """As torch.rescale_; scale contiguous."""
    threads = torch.get_num_threads()
    _C.rescale(view(F), view(swept), view(scale), view(before), view(sums), threads)


def measure_(
    sums: Tensor, D: Tensor, cross: Tensor, G: Tensor, gram: Tensor, total: Tensor | float
) -> None:
    """As torch.measure_."""
    # in float64 the order of the sum decides whether an error that hardly changes has risen
    few = D.dtype != torch.float64 and D.numel() + G.numel() <= _FEW_SUMMED
    # a process may have no feature
    if not (few and D.numel() and cross.stride(1) == 1):
        return reference.measure_(sums, D, cross, G, gram, total)
    _C.measure(view(D), view(cross), view(G), view(gram), float(total), view(sums))


def moved_(sums: Tensor, F: Tensor, before: Tensor, norms: Tensor, most: float) -> bool:
    """As torch.moved_, which is also asked where norms differ by as much but for rounding."""
    if not 0 < F.numel() <= _FEW_SUMMED:
        return reference.moved_(sums, F, before, norms, most)
    return _C.moved(view(F), view(before), view(norms), 0.999 * most, view(sums))


def scales_(norms: Tensor, before: Tensor, most: float) -> bool:
    """As torch.scales_."""
    return _C.scales(view(norms), view(before), most)


def sparse_dot_(out: Tensor, X: Compressed, Bt: Tensor) -> None:
    """As torch.sparse_dot_."""
    if not len(X[1]) or not out.numel():
        out.zero_()
        return
    _sparse_product(out, X, Bt, transposed=False, adds=False)


def sparse_tdot_(out: Tensor, X: Compressed, Z: Tensor, *, adds: bool = False) -> None:
    """As torch.sparse_tdot_, without any copy of X."""
    if len(X[1]) and out.numel():
        _sparse_product(out, X, Z, transposed=True, adds=adds)
    elif not adds:
        out.zero_()


def _sparse_product(out: Tensor, X: Compressed, dense: Tensor, **how: bool) -> None:
    # B is copied by the kernel, as it has use of it
    turned = not how["transposed"] and dense.stride(0) == 1
    dense = dense if dense.stride(1) == 1 or turned else dense.contiguous()
    crow, col, values = X
    parts = view(crow), view(col), view(values)
    _C.sparse_product(view(out), parts, view(dense), threads=torch.get_num_threads(), **how)


def _solve_rows(F, C, gram, sums, warm, max_steps) -> tuple[NnlsInfo, Tensor]:
    report = torch.empty(F.shape[1], 4, dtype=torch.float64, device="cpu")
    rows = nnls_arguments(F, C, gram, report, warm, max_steps)
    _C.nnls(*rows, view(sums), torch.get_num_threads())
    return read_report(report)


@functools.cache
def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: 2.4 times on AMD's Zen 4."""
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def nnls_rows_(
    F: Tensor,
    X: Tensor,
    concepts: tuple[Tensor, Tensor, Tensor | None, float, Tensor | None],
    sums: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
    most: int | None = None,
) -> NnlsInfo:
    """F ← argmin ½ ‖X − Fᵀ B‖² plus a penalty, over F ≥ 0, in place, each column separately.

    F (K, m) in any layout, X (m, p) with contiguous rows. concepts = (B, scale, unit, l1,
    curvature): fields of working_set.Concepts. warm: start from F, else from zero. max_steps: how
    many times concepts may enter the support of a column, up to BLOCK at once; None: most_steps(K).
    most: at most that many concepts for each column, by orthogonal matching pursuit: the steepest
    concept enters and F becomes the exact solution on the support, until it has that many. sums
    (3,) float64 is increased by ‖Δ‖², ‖F‖² and the squared residual.

    The slopes of all concepts are one product for all columns in flight; each takes some 10 to 40.
    Where the processor is faster in bfloat16, slopes that are still large are computed in it, and
    those of candidates again in float64: so the codes are as exact, and those of at most `most`
    concepts are chosen in the order of the exact slopes.
    """
    (K, m), p = F.shape, X.shape[1]
    B, scale, unit, l1, curvature = concepts
    report = torch.zeros(m, 4, dtype=torch.float64, device="cpu")
    if not F.numel():
        sums[2] += X.square().sum(dtype=torch.float64)
        return read_report(report)[0]
    # curved concepts are independent, however many they are
    capacity = K if curvature is not None else min(K, p)
    if most is not None:
        capacity = min(capacity, 2 * most + BLOCK)
    limits = NnlsLimits.of(F.dtype, K, max_steps, warm=warm)
    # products of concepts are computed in float64 as soon as they are in doubt
    limits = limits._replace(rank_tolerance=RANK_TOLERANCE[torch.float64], capacity=capacity)
    slots = min(m, max(BLOCK, min(_SLOTS, _FACTORS // (4 * capacity**2))))
    W, E = F.new_empty(slots, K), F.new_empty(slots, p)
    unit, curvature = (None if M is None else view(M) for M in (unit, curvature))
    fixed = view(B), view(scale), unit, l1, curvature
    rough = m * K * p >= _MANY_PRODUCTS and F.dtype == torch.float32 and fast_bfloat16()
    search = most or 0, slots, ROUGHNESS if rough else 0.0
    rows = _C.nnls_rows(view(F), view(X), fixed, limits, search, view(report), view(sums))
    threads = torch.get_num_threads()
    narrow = (B.bfloat16().T, W.bfloat16()) if rough else None
    with products_in("highest"):
        while (found := rows.step(view(W), view(E), threads))[0]:
            active, first = found
            if narrow is not None and first:
                torch.mm(E[:first].bfloat16(), narrow[0], out=narrow[1][:first])
                W[:first] = narrow[1][:first]
            if first < active:
                torch.mm(E[first:active], B.T, out=W[first:active])
    return read_report(report)[0]


OPERATIONS = {
    **RESTRICTED,
    "cross_": cross_,
    "extrapolate_": extrapolate_,
    "hals_block_": hals_block_,
    "hals_rows_": hals_rows_,
    "hals_sweep_": hals_sweep_,
    "hals_each_": hals_each_,
    "hals_weighted_": hals_weighted_,
    "kkt_": kkt_,
    "measure_": measure_,
    "moments_": moments_,
    "moved_": moved_,
    "mu_": mu_,
    "pgd_": pgd_,
    "rescale_": rescale_,
    "scales_": scales_,
    "sparse_dot_": sparse_dot_,
    "sparse_tdot_": sparse_tdot_,
    **nnls_operations(_solve_rows),
    "nnls_rows_": nnls_rows_,
}
