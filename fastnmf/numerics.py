"""Numbers: dtypes that are computed in, precision of products, norms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def products_in(precision: str | None) -> Iterator[str]:
    """Within, products of float32 are as torch.set_float32_matmul_precision(precision) says, or for
    None as they were; yields what was allowed before, and restores it."""
    before = torch.get_float32_matmul_precision()
    precision = before if precision is None else precision
    if precision != before:
        torch.set_float32_matmul_precision(precision)
    try:
        yield before
    finally:
        if precision != before:
            torch.set_float32_matmul_precision(before)


def in_tf32(X: Tensor) -> bool:
    """Whether products of X are computed in tf32: float32, on CUDA, and allowed at the moment."""
    is_float32 = X.dtype == torch.float32 and X.device.type == "cuda"
    return is_float32 and torch.get_float32_matmul_precision() != "highest"


def round_tf32(X: Tensor, out: Tensor) -> Tensor:
    """X (float32) rounded to the nearest tf32, ties away from zero → out, which may be X.

    A product in tf32 may cut its operands off instead, which is a bias: carried through 200 HALS
    sweeps it raised the loss 16 times where rounding raised it by a quarter (emulated on a CPU).
    """
    torch.add(X.view(torch.int32), 0x1000, out=out.view(torch.int32))
    out.view(torch.int32).bitwise_and_(-8192)
    return out


# what is kept as it is stored, where, and the bytes that are widened at once: some ten times what a
# launch takes, and little beside a device's memory
NARROW = (torch.float16, torch.bfloat16)
NARROW_ON = ("cuda", "xpu")
WIDENED_BYTES = 1 << 27
Part = Tensor | np.ndarray


def compute_dtype(part: Part) -> torch.dtype:
    real = part.is_floating_point() if isinstance(part, Tensor) else part.dtype.kind == "f"
    return torch.float64 if real and part.dtype.itemsize >= 8 else torch.float32


def widened(X: Tensor) -> Tensor:
    """X in what is computed in: itself, or a copy of 16-bit numbers."""
    return X.to(compute_dtype(X))


def wide_pieces(X: Tensor) -> Iterable[Tensor]:
    """X itself, or pieces of its rows, widened, where it holds 16-bit numbers."""
    if X.dtype not in NARROW:
        return [X]
    return map(widened, X.split(max(1, WIDENED_BYTES // (4 * max(1, X.shape[1])))))


def product(X: Tensor, B: Tensor) -> Tensor:
    """X B, of X as wide_pieces gives it."""
    made = [piece @ B for piece in wide_pieces(X)]
    return made[0] if len(made) == 1 else torch.cat(made)


# entries summed in float32 before float64 takes over
_NORM_ENTRIES = 1 << 12


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


def tiny(like: Tensor) -> float:
    """The least normal number of this dtype, to divide by in place of 0."""
    return torch.finfo(like.dtype).tiny


def wide(device: torch.device) -> torch.dtype:
    # MPS has no float64
    return torch.float32 if device.type == "mps" else torch.float64
