"""Which products may be computed in tf32, and the rounding that keeps them harmless.

torch.set_float32_matmul_precision says what is allowed. The loop computes in float32 whatever it
says, except where a half-step lifts that: for products whose errors are bounded or corrected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

PRECISIONS = ("auto", "strict")


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[str]:
    """Within, products of float32 are as torch.set_float32_matmul_precision(precision) says; yields
    what was allowed before, and restores it."""
    before = torch.get_float32_matmul_precision()
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
