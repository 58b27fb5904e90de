"""Operands of a product copied as its tiles are read: features adjacent, whole tiles, rounded once.

Tensor cores read tf32 from shared memory only if the features are adjacent there, and what goes
through registers, to be rounded or turned, has them wait. From a packed operand nothing does, no
load is masked, and there is one kernel for every layout, size and dtype of the operands. A copy
reads and writes its operand once.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from .products import with_adjacent_columns
from .registers import FUSED, round_tf32

# Bytes of the operand that all samples share, and of the others, which are packed for some samples
# at a time, but for no fewer than these. Larger ones, such as all codes, are read where they are.
MOST_BYTES, CHUNK_BYTES, LEAST_ROWS = 1 << 28, 1 << 27, 1024
BLOCK_ROWS, BLOCK_COLUMNS = 32, 64


@triton.jit(do_not_specialize=["rows", "columns", "rounds", "stride"])
def _pack_kernel(
    packed_ptr, X_ptr, rows, columns, width, rounds, stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = X_ptr + row[:, None] * stride + column[None, :]
    x = tl.load(place, mask=inside, other=0.0)
    if x.dtype.primitive_bitwidth == 32:
        x = tl.where(rounds != 0, round_tf32(x), x)
    place = packed_ptr + row[:, None] * width + column[None, :]
    tl.store(place, x, mask=(column < width)[None, :] & (row >= 0)[:, None])


def padded(size: int, block: int) -> int:
    """The next multiple of block."""
    return triton.cdiv(size, block) * block


def packed(X: torch.Tensor, out: torch.Tensor, rounds: bool) -> torch.Tensor:
    """X (rows, columns), any strides, at the beginning of `out`, and zeros in the rest of it.

    out: contiguous, in whole tiles of BLOCK_ROWS and 16 columns. rounds: to the nearest tf32. One
    launch, and one more where X is of 16 bits or its rows are adjacent; no synchronisation.
    """
    height, width = out.shape
    # by torch: a kernel for each dtype and layout would have to be compiled
    X = with_adjacent_columns(X.to(out.dtype))
    grid = height // BLOCK_ROWS, triton.cdiv(width, BLOCK_COLUMNS)
    _pack_kernel[grid](
        out, X, *X.shape, width, int(rounds), X.stride(0), BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_COLUMNS=BLOCK_COLUMNS, num_warps=4, num_stages=2, **FUSED,
    )  # fmt: skip
    return out


def packs(operands: Sequence[torch.Tensor], B: torch.Tensor) -> bool:
    """Whether copies of B (K, p), and of enough rows of the operands (m, p), are small enough."""
    rows = min(len(operands[0]), LEAST_ROWS)
    chunk = rows * len(operands) * B.shape[1] * B.element_size()
    return B.numel() * B.element_size() <= MOST_BYTES and chunk <= CHUNK_BYTES


def packed_chunks(
    operands: Sequence[torch.Tensor], B: torch.Tensor, options: dict[str, int]
) -> Iterator[tuple[slice, list[torch.Tensor], torch.Tensor]]:
    """For some samples at a time, all of them in the end: which, and packed their rows of the
    operands, (m, p) each, and B (K, p). options: of the kernel, whose tiles are filled.

    The copies are overwritten by the next; every chunk but the last is a whole number of tiles.
    """
    (K, p), m = B.shape, len(operands[0])
    rounds, width = bool(options["TF32"]), padded(p, options["BLOCK_P"])
    a_row = len(operands) * width * B.element_size()
    rows = max(LEAST_ROWS, CHUNK_BYTES // a_row // LEAST_ROWS * LEAST_ROWS)
    most = padded(min(rows, m), options["BLOCK_M"])
    whole = packed(B, B.new_empty(padded(K, options["BLOCK_K"]), width), rounds)
    copies = [B.new_empty(most, width) for _ in operands]
    for begin in range(0, m, rows):
        chunk = slice(begin, min(begin + rows, m))
        height = padded(chunk.stop - begin, options["BLOCK_M"])
        pairs = zip(operands, copies, strict=True)
        yield chunk, [packed(X[chunk], copy[:height], rounds) for X, copy in pairs], whole
