"""Tensors as the extensions take them, and what `fastnmf._C` and `fastnmf._cuda` have in common;
neither is imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .nnls.result import BLOCK, RANK_TOLERANCE, TOLERANCE, NnlsInfo, most_steps, unit_gram

# address, shape, strides in elements, dtype
View = tuple[int, tuple[int, ...], tuple[int, ...], str]

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
}


def view(X: Tensor) -> View:
    """X as an argument of an extension (`csrc/view.h`), which checks dtype, shape and strides. It
    does not keep the memory of X alive."""
    # 0.3 µs: a call has up to nine
    return X.data_ptr(), X.shape, X.stride(), _NAMES.get(X.dtype) or str(X.dtype)


class NnlsLimits(NamedTuple):
    """How nnls solves each row: the fields of `NnlsRules` in `csrc/nnls/problem.h`, and the start.

    warm: start from F, else from zero.
    """

    warm: bool
    tolerance: float
    rank_tolerance: float
    max_steps: int
    capacity: int
    block: int

    @classmethod
    def of(cls, dtype: torch.dtype, K: int, max_steps: int | None, *, warm: bool) -> NnlsLimits:
        """The limits for K concepts. max_steps: None stands for most_steps(K)."""
        steps = most_steps(K) if max_steps is None else max_steps
        return cls(warm, TOLERANCE[dtype], RANK_TOLERANCE[dtype], steps, K, BLOCK)


def nnls_operations(solve: Callable) -> dict[str, Callable]:
    """nnls_ and nnls_on_ by solve(F, C, gram, sums, warm, max_steps), gram = (G, scale, index),
    which returns the report of the rows and what every column gains."""

    def nnls_(
        F: Tensor,
        C: Tensor,
        G: Tensor,
        sums: Tensor,
        *,
        warm: bool,
        max_steps: int | None = None,
        unit: tuple[Tensor, Tensor] | None = None,
    ) -> NnlsInfo:
        """As nnls_ of nnls/reference.py; C in any layout. About m q³ flops."""
        scaled = unit_gram(G) if unit is None else unit
        return solve(F, C, (*scaled, None), sums, warm, max_steps)[0]

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
        """As nnls_on_ of nnls/reference.py; C in any layout."""
        sums = torch.zeros(2, dtype=torch.float64, device=F.device)
        return solve(F, C, (unit, scale, index), sums, warm, max_steps)

    return {"nnls_": nnls_, "nnls_on_": nnls_on_}


def nnls_arguments(
    F: Tensor,
    C: Tensor,
    gram: tuple[Tensor, Tensor, Tensor | None],
    report: Tensor,
    warm: bool,
    max_steps: int | None,
) -> tuple:
    """The arguments that nnls has in both extensions, from F to report.

    F, C (K, m); gram: unit, scale, index as for nnls_on_ of nnls/reference.py, or index None: all
    concepts. report (m, 4) float64, written by nnls.
    """
    unit, scale, index = gram
    K = F.shape[0] if index is None else index.shape[1]
    limits = NnlsLimits.of(C.dtype, K, max_steps, warm=warm)
    chosen = None if index is None else view(index)
    return view(F), view(C), (view(unit), view(scale), chosen), limits, view(report)


def read_report(report: Tensor) -> tuple[NnlsInfo, Tensor]:
    """What nnls wrote into report (m, 4): how every row was solved, and what it gains."""
    status, support, steps, *_ = report.view(torch.int32).unbind(1)
    _, _, slope, gain = report.unbind(1)
    return NnlsInfo(status, slope, support, steps), gain


class Watched(NamedTuple):
    """What an extrapolation stores between iterations, changed in place: the codes after their
    half-steps, the codes and the dictionary before the iteration, and the norms that concepts keep
    (K,); the least share of an entry that is left, and the share by which a norm may change."""

    swept: Tensor
    Z: Tensor
    D: Tensor
    norms: Tensor
    least_share: float
    most_growth: float


class Sums(NamedTuple):
    """The statistics of an iteration, overwritten: ZᵀA (K, d), ZᵀZ (K, K), and sums (2, 4) as
    engine/statistics.py has them; and ‖A‖²."""

    cross: Tensor
    gram: Tensor
    sums: Tensor
    squared_norm: float
