"""Hands tensors to the compiled extension fastnmf._C, which knows addresses and strides only.

Loaded by backends.py at first use. torch must be imported before _C: the two then share one OpenMP
runtime, and so the threads that torch.set_num_threads asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from .nnls_info import RANK_TOLERANCE, TOLERANCE, NnlsInfo, most_steps, unit_gram

# concepts that enter a support together: 0.7 to 1.3 of the time that 8 take, 1.3 to 4.7 times
# faster than one by one (AVX-512, K = 64 to 2,000)
_BLOCK = 16


def hals_block_(F: Tensor, R: Tensor, G: Tensor, delta: Tensor, sums: Tensor) -> None:
    """As solvers.hals_block_; R is left as it is."""
    _C.hals_block(
        *_typed(F),
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


def hals_sweep_(F: Tensor, C: Tensor, G: Tensor, sums: Tensor) -> None:
    """As solvers.hals_sweep_; C in any layout."""
    _C.hals_normal(
        *_typed(F),
        *_placed(C),
        G.data_ptr(),
        G.stride(0),
        *F.shape,
        sums.data_ptr(),
        torch.get_num_threads(),
    )


def mu_(F: Tensor, C: Tensor, denominator: Tensor, sums: Tensor) -> None:
    """As solvers.mu_."""
    _C.mu_update(
        *_typed(F),
        *_placed(C),
        *_placed(denominator),
        *F.shape,
        sums.data_ptr(),
        torch.get_num_threads(),
    )


def pgd_(F: Tensor, Y: Tensor, gradient: Tensor, step: Tensor, momentum: float) -> None:
    """As solvers.pgd_; the gradient is left as it is."""
    unread = torch.zeros(2, dtype=torch.float64)
    _C.pgd_update(
        *_typed(F),
        *_placed(Y),
        *_placed(gradient),
        float(step),
        momentum,
        *F.shape,
        unread.data_ptr(),
        torch.get_num_threads(),
    )


def nnls_(
    F: Tensor, C: Tensor, G: Tensor, sums: Tensor, *, warm: bool, max_steps: int | None = None
) -> NnlsInfo:
    """As active_set.nnls_, entering concepts in blocks; C in any layout. About m q³ flops."""
    return _solve_rows(F, C, *unit_gram(G), None, sums, warm, max_steps)[0]


def nnls_on_(
    F: Tensor,
    C: Tensor,
    unit: Tensor,
    scale: Tensor,
    index: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
) -> tuple[NnlsInfo, Tensor]:
    """As active_set.nnls_on_; C in any layout."""
    return _solve_rows(F, C, unit, scale, index, F.new_zeros(2).double(), warm, max_steps)


def _solve_rows(F, C, unit, scale, index, sums, warm, max_steps) -> tuple[NnlsInfo, Tensor]:
    m = F.shape[1]
    K = F.shape[0] if index is None else index.shape[1]
    account = torch.empty(m, 4, dtype=torch.float64)
    _C.nnls(
        *_typed(F),
        *_placed(C),
        unit.data_ptr(),
        unit.stride(-2),
        unit.stride(0) if unit.dim() == 3 else 0,
        scale.data_ptr(),
        0 if index is None else index.data_ptr(),
        K,
        m,
        warm,
        TOLERANCE[C.dtype],
        RANK_TOLERANCE[C.dtype],
        most_steps(K) if max_steps is None else max_steps,
        K,
        _BLOCK,
        account.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    status, support = account.view(torch.int32)[:, :2].unbind(1)
    return NnlsInfo(status, account[:, 2], support), account[:, 3]


OPERATIONS = {
    "hals_block_": hals_block_,
    "hals_sweep_": hals_sweep_,
    "mu_": mu_,
    "pgd_": pgd_,
    "nnls_": nnls_,
    "nnls_on_": nnls_on_,
}


def _typed(F: Tensor) -> tuple:
    return str(F.dtype).removeprefix("torch."), *_placed(F)


def _placed(F: Tensor) -> tuple[int, int, int]:
    return F.data_ptr(), F.stride(0), F.stride(1)
