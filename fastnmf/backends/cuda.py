"""Passes tensors on a CUDA device to the extension fastnmf._cuda, on torch's device and stream,
with workspaces that torch allocates.

Loaded by registry.py at first use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _cuda
from .nnls.result import NnlsInfo, workspace_share
from .pointers import nnls_arguments, nnls_operations, read_report, view


def _solve_rows(F, C, gram, sums, warm, max_steps) -> tuple[NnlsInfo, Tensor]:
    """On the current stream; does not synchronise. float32 is computed in float64 where the device
    has that at half the rate, else in float32: to a slope of 5e-6 of the largest then. Raises
    torch.cuda.OutOfMemoryError, and RuntimeError with CUDA's reason."""
    m, device = F.shape[1], F.device
    report = torch.empty(m, 4, dtype=torch.float64, device=device)
    row_sums = torch.empty(m, 2, dtype=torch.float64, device=device)
    rows = nnls_arguments(F, C, gram, report, warm, max_steps)
    with _place(device) as (number, stream, most):
        least, useful = _cuda.nnls_workspace(*rows, number)
        size = max(least, min(useful, most))
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        _cuda.nnls(*rows, view(row_sums), view(workspace), (number, stream))
    sums[:2] += row_sums.sum(0)
    return read_report(report)


@contextlib.contextmanager
def _place(device: torch.device) -> Iterator[tuple[int, int, int]]:
    """Make the device current; its number, torch's stream there, and the bytes that a workspace may
    have."""
    # by torch, which makes no context on a device that is only passed by
    with torch.cuda.device(device):
        total = torch.cuda.get_device_properties(device).total_memory
        stream = torch.cuda.current_stream(device).cuda_stream
        yield device.index, stream, workspace_share(total)


OPERATIONS = nnls_operations(_solve_rows)
