"""Tensors as the extensions know them: addresses and strides in elements. What the two of them have
in common; neither is imported here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .nnls.result import RANK_TOLERANCE, TOLERANCE, NnlsInfo, most_steps, unit_gram

# concepts that enter a support together: 0.7 to 1.3 of the time that 8 take, 1.3 to 4.7 times
# faster than one by one (AVX-512, K = 64 to 2,000)
_BLOCK = 16


def typed(F: Tensor) -> tuple:
    """The dtype of F (K, m) by name, and what `placed` says of it."""
    return str(F.dtype).removeprefix("torch."), *placed(F)


def placed(F: Tensor) -> tuple[int, int, int]:
    """The address and the strides of F (K, m)."""
    return F.data_ptr(), F.stride(0), F.stride(1)


def nnls_operations(solve: Callable) -> dict[str, Callable]:
    """nnls_ and nnls_on_ by solve(F, C, unit, scale, index, sums, warm, max_steps), which returns
    the account and what every column gains."""

    def nnls_(
        F: Tensor, C: Tensor, G: Tensor, sums: Tensor, *, warm: bool, max_steps: int | None = None
    ) -> NnlsInfo:
        """As active_set.nnls_, entering concepts in blocks; C in any layout. About m q³ flops."""
        return solve(F, C, *unit_gram(G), None, sums, warm, max_steps)[0]

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
        sums = torch.zeros(2, dtype=torch.float64, device=F.device)
        return solve(F, C, unit, scale, index, sums, warm, max_steps)

    return {"nnls_": nnls_, "nnls_on_": nnls_on_}


def nnls_rows(F, C, unit, scale, index, warm, max_steps, account) -> tuple:
    """The arguments that nnls has in both extensions, from dtype to account.

    F, C (K, m); unit, scale, index as for active_set.nnls_on_, or index None: all concepts. account
    (m, 4) float64, written by nnls.
    """
    m = F.shape[1]
    K = F.shape[0] if index is None else index.shape[1]
    return (
        *typed(F),
        *placed(C),
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
    )


def read_account(account: Tensor) -> tuple[NnlsInfo, Tensor]:
    """What nnls wrote into account (m, 4): how every row was solved, and what it gains."""
    status, support = account.view(torch.int32)[:, :2].unbind(1)
    return NnlsInfo(status, account[:, 2], support), account[:, 3]
