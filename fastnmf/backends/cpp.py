"""Hands tensors to the compiled extension fastnmf._C, which knows addresses and strides only.

Loaded by backends.py at first use. torch must be imported before _C: the two then share one OpenMP
runtime, and so the threads that torch.set_num_threads asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from .nnls.result import NnlsInfo
from .pointers import nnls_operations, nnls_rows, placed, read_account, typed
from .torch import moments_ as products

# concepts up to which our own products win: of codes with codes, of which they take half, and with
# data (AVX-512: 0.65 to 1.05 of the vendor's time; AVX2 by AMD, whose few run at half the rate)
_FEW_SQUARED, _FEW = 512, 128
# bytes of such sums up to which they are made row by row as codes are: a thread has its own
_MOST_SUMS = 1 << 20


def hals_block_(F: Tensor, R: Tensor, G: Tensor, delta: Tensor, sums: Tensor) -> None:
    """As solvers.hals_block_; R is left as it is."""
    _C.hals_block(
        *typed(F),
        R.data_ptr(),
        R.stride(0),
        G.data_ptr(),
        G.stride(0),
        delta.data_ptr(),
        delta.stride(0),
        *F.shape,
        sums.data_ptr(),
        torch.get_num_threads(),
    )


def hals_sweep_(F: Tensor, C: Tensor, G: Tensor, sums: Tensor, sweeps: int = 1) -> None:
    """As solvers.hals_sweep_; C in any layout."""
    _C.hals_normal(
        *typed(F),
        *placed(C),
        G.data_ptr(),
        G.stride(0),
        *F.shape,
        sums.data_ptr(),
        torch.get_num_threads(),
        sweeps,
    )


def hals_rows_(
    F: Tensor,
    X: Tensor,
    Bt: Tensor,
    G: Tensor,
    l1: float,
    sweeps: int,
    sums: Tensor,
    moves: tuple[Tensor, Tensor, float, Tensor, Tensor] | None = None,
    moments: tuple[Tensor, Tensor, bool] | None = None,
) -> None:
    """So many times hals_sweep_ with C = Bᵀ Xᵀ − l1, which is not kept; X (m, p) with contiguous
    rows, Bt (p, K) contiguous. 2 m K (p + sweeps K) flops. With moves = (swept, step, least,
    before, sums) then extrapolate_(F, *moves), whose sums take the place of those, and before that
    before ← F; with moments = (cross, gram, adds) moments_ of both, 2 m K (p + K) flops more."""
    (K, m), p = F.shape, X.shape[1]
    swept, step, least, before, sums = moves or (None, 0.0, 0.0, None, sums)
    cross, gram, adds = moments or (None, None, False)
    room = K * (p + K) * F.element_size()
    together = moments and F.stride(0) == 1 and K <= _FEW and room <= _MOST_SUMS
    _C.hals_rows(
        *typed(F),
        X.data_ptr(),
        X.stride(0),
        Bt.data_ptr(),
        G.data_ptr(),
        G.stride(0),
        l1,
        K,
        m,
        p,
        sweeps,
        sums.data_ptr(),
        torch.get_num_threads(),
        *_placed_if(swept),
        *_placed_if(before),
        float(step),
        least,
        *((cross.data_ptr(), cross.stride(0)) if together else (0, 0)),
        *((gram.data_ptr(), gram.stride(0)) if together else (0, 0)),
        adds,
    )
    if moments and not together:
        moments_(F, X, cross, adds=adds)
        moments_(F, None, gram, adds=adds)


def moments_(F: Tensor, X: Tensor | None, out: Tensor, *, adds: bool = False) -> None:
    """As solvers.moments_, which takes what is large or laid out otherwise."""
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
    dtype, address, _, stride = typed(F)
    _C.moments(
        dtype,
        address,
        stride,
        other.data_ptr(),
        other.stride(0),
        out.data_ptr(),
        out.stride(0),
        *F.shape,
        other.shape[1],
        X is None,
        adds,
        torch.get_num_threads(),
    )


def mu_(F: Tensor, C: Tensor, denominator: Tensor, sums: Tensor) -> None:
    """As solvers.mu_."""
    _C.mu_update(
        *typed(F),
        *placed(C),
        *placed(denominator),
        *F.shape,
        sums.data_ptr(),
        torch.get_num_threads(),
    )


def pgd_(F: Tensor, Y: Tensor, gradient: Tensor, step: Tensor, momentum: float) -> None:
    """As solvers.pgd_; the gradient is left as it is."""
    unread = torch.zeros(2, dtype=torch.float64)
    _C.pgd_update(
        *typed(F),
        *placed(Y),
        *placed(gradient),
        float(step),
        momentum,
        *F.shape,
        unread.data_ptr(),
        torch.get_num_threads(),
    )


def extrapolate_(
    F: Tensor,
    swept: Tensor,
    step: Tensor,
    least: float,
    before: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """As solvers.extrapolate_."""
    measures = sums is not None
    _C.extrapolate(
        *typed(F),
        *placed(swept),
        *_placed_if(before if measures else None),
        float(step),
        least,
        *F.shape,
        sums.data_ptr() if measures else 0,
        torch.get_num_threads(),
    )


def rescale_(F: Tensor, swept: Tensor, scale: Tensor, before: Tensor, sums: Tensor) -> None:
    """As solvers.rescale_; scale contiguous."""
    _C.rescale(
        *typed(F),
        *placed(swept),
        scale.data_ptr(),
        *placed(before),
        *F.shape,
        sums.data_ptr(),
        torch.get_num_threads(),
    )


def _placed_if(F: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if F is None else placed(F)


def _solve_rows(F, C, unit, scale, index, sums, warm, max_steps) -> tuple[NnlsInfo, Tensor]:
    account = torch.empty(F.shape[1], 4, dtype=torch.float64)
    rows = nnls_rows(F, C, unit, scale, index, warm, max_steps, account)
    _C.nnls(*rows, sums.data_ptr(), torch.get_num_threads())
    return read_account(account)


OPERATIONS = {
    "extrapolate_": extrapolate_,
    "hals_block_": hals_block_,
    "hals_rows_": hals_rows_,
    "hals_sweep_": hals_sweep_,
    "moments_": moments_,
    "mu_": mu_,
    "pgd_": pgd_,
    "rescale_": rescale_,
    **nnls_operations(_solve_rows),
}
