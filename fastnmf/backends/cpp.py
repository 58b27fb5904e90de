"""Passes tensors to the compiled extension fastnmf._C, as views of their memory.

Loaded by registry.py at first use. torch must be imported before _C: the two then share one OpenMP
runtime, and so the threads that torch.set_num_threads sets."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from . import torch as reference
from .accelerated import Accelerated
from .nnls.compiled import OPERATIONS as NNLS
from .pointers import Sums, Watched, view
from .restricted.compiled import OPERATIONS as RESTRICTED
from .torch import Compressed
from .torch import moments_ as products
from .weighted import Weighted
from .weighted import hals_weighted_ as weighted_reference

# concepts up to which our own products are faster: of codes with codes, of which half is computed,
# and with data (AVX-512: 0.65 to 1.05 of the vendor's time; AVX2 by AMD, whose few run at half the
# rate)
_FEW_SQUARED, _FEW = 512, 128
# concepts up to which entries with weights are computed with by a Gram matrix for each row: of
# stored ones by the kernel, of dense data by products of matrices
_PAIRED, _PAIRED_DENSE = 48, 32
# entries of a factor and its Gram matrix up to which one thread sums them faster than torch's calls
_FEW_SUMMED = 1 << 17
# bytes of such sums up to which they are computed in the pass over the codes: every thread has its
# own
_MOST_SUMS = 1 << 20


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


def accelerated_(
    pair: tuple[Tensor, Tensor], X: Tensor, before: Watched, to: Sums, inner: tuple[int, int]
) -> Accelerated | None:
    """Whole iterations, or None where single operations are used: for other dtypes and layouts, and
    where these are torch's or take far longer than their calls."""
    Z, D = pair
    K, p = D.shape
    if not (Z.dtype == D.dtype == X.dtype == torch.float32 and min(K, p, len(Z)) > 0):
        return None
    tensors = Z, D, X, before.swept, before.Z, before.D, to.cross, to.gram
    few = K <= _FEW and K * (p + K) <= min(_FEW_SUMMED, _MOST_SUMS // X.itemsize)
    if not (few and all(F.is_contiguous() for F in tensors)):
        return None
    return Accelerated(pair, X, before, to, inner)


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


OPERATIONS = {
    **NNLS,
    **RESTRICTED,
    "accelerated_": accelerated_,
    "extrapolate_": extrapolate_,
    "hals_block_": hals_block_,
    "hals_rows_": hals_rows_,
    "hals_sweep_": hals_sweep_,
    "hals_each_": hals_each_,
    "hals_weighted_": hals_weighted_,
    "measure_": measure_,
    "moments_": moments_,
    "moved_": moved_,
    "mu_": mu_,
    "pgd_": pgd_,
    "rescale_": rescale_,
    "scales_": scales_,
    "sparse_dot_": sparse_dot_,
    "sparse_tdot_": sparse_tdot_,
}
