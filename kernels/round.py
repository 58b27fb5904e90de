"""out ← X rounded to the nearest tf32, ties away from zero, for X (s, m) in float32.

A program rounds a tile of lines of adjacent numbers. X is read and out written once, 8 bytes a
number; limited by memory.
"""

import torch
import triton
import triton.language as tl

from .registers import FUSED, round_tf32

# each of 128 threads moves four times 16 bytes
TILE = {"LINES": 16, "WIDTH": 128}


@triton.jit
def _round_tf32_kernel(
    X, out, lines, width, X_line, X_next, out_line, out_next,
    LINES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, WIDTH)
    program = tl.program_id(0)
    line = (program // across * LINES + tl.arange(0, LINES)).to(tl.int64)[:, None]
    place = (program % across * WIDTH + tl.arange(0, WIDTH)).to(tl.int64)[None, :]
    inside = (line < lines) & (place < width)
    numbers = tl.load(X + line * X_line + place * X_next, mask=inside, other=0.0)
    tl.store(out + line * out_line + place * out_next, round_tf32(numbers), mask=inside)


def round_tf32_(out: torch.Tensor, X: torch.Tensor) -> None:
    if X.stride(1) != 1:
        X, out = X.T, out.T
    lines, width = X.shape
    programs = triton.cdiv(lines, TILE["LINES"]) * triton.cdiv(width, TILE["WIDTH"])
    _round_tf32_kernel[(programs,)](
        X, out, lines, width, *X.stride(), *out.stride(), **TILE, num_warps=4, **FUSED
    )
