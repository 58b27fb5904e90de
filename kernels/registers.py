"""What the kernels do with a tile in registers: pick a row, round to tf32, take parts."""

import triton
import triton.language as tl

# an option of every launch: a multiplication and an addition in one instruction, which Triton 3.9
# does with a warning unless this option is given, and 3.10 does not
FUSED = {"enable_fp_fusion": True}


@triton.jit
def pick_row(X, chosen):
    """X[k, :] for the one k where chosen (rows,) is true.

    By a sum of integers: x + 0 folds to x when the tile lies in registers, x + 0.0 does not.
    """
    if X.dtype.primitive_bitwidth == 64:
        bits = tl.where(chosen[:, None], X.to(tl.int64, bitcast=True), 0)
        row = tl.sum(bits, 0).to(tl.float64, bitcast=True)
    else:
        bits = tl.where(chosen[:, None], X.to(tl.int32, bitcast=True), 0)
        row = tl.sum(bits, 0).to(tl.float32, bitcast=True)
    return row


@triton.jit
def round_tf32(X):
    """X in float32, rounded to the nearest tf32 (ties away from zero).

    A product in tf32 cuts its operands off: towards zero always, so that its errors add up.
    """
    return ((X.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _halves(tile):
    """The left and the right half of a tile's columns."""
    rows: tl.constexpr = tile.shape[0]
    half: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, half)), (0, 2, 1)))


@triton.jit
def parts_of(tile, PARTS: tl.constexpr):
    """A tile's columns in 1, 2 or 4 parts, from left to right."""
    if PARTS == 1:
        return (tile,)
    elif PARTS == 2:
        left, right = _halves(tile)
        return left, right
    else:
        left, right = _halves(tile)
        first, second = _halves(left)
        third, fourth = _halves(right)
        return first, second, third, fourth


@triton.jit
def tile_of_program(m, K, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr):
    """(row, column) of this program's tile of an (m, K) matrix; programs that run side by side
    share operands in the L2 cache."""
    program = tl.program_id(0)
    rows, columns = tl.cdiv(m, BLOCK_M), tl.cdiv(K, BLOCK_K)
    group = program // (GROUP * columns)
    size = tl.minimum(rows - group * GROUP, GROUP)
    inside = program % (GROUP * columns)
    return group * GROUP + inside % size, inside // size
