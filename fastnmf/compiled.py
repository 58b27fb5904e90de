"""Hands tensors to the compiled extension fastnmf._C, which knows addresses and strides only.

Loaded by backends.py at first use. torch must be imported before _C: the two then share one OpenMP
runtime, and so the threads that torch.set_num_threads asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from .addresses import nnls_operations, nnls_rows, placed, read_account, typed
from .nnls_info import NnlsInfo


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


def hals_sweep_(F: Tensor, C: Tensor, G: Tensor, sums: Tensor) -> None:
    """As solvers.hals_sweep_; C in any layout."""
    _C.hals_normal(
        *typed(F),
        *placed(C),
        G.data_ptr(),
        G.stride(0),
        *F.shape,
        sums.data_ptr(),
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


def _solve_rows(F, C, unit, scale, index, sums, warm, max_steps) -> tuple[NnlsInfo, Tensor]:
    account = torch.empty(F.shape[1], 4, dtype=torch.float64)
    rows = nnls_rows(F, C, unit, scale, index, warm, max_steps, account)
    _C.nnls(*rows, sums.data_ptr(), torch.get_num_threads())
    return read_account(account)


OPERATIONS = {
    "hals_block_": hals_block_,
    "hals_sweep_": hals_sweep_,
    "mu_": mu_,
    "pgd_": pgd_,
    **nnls_operations(_solve_rows),
}
