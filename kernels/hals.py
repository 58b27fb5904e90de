"""F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k: the block sweep of HALS.

A program sweeps all concepts of a tile of samples (columns of F), one sample a thread: a tile of
BLOCK_K = 16 concepts lies in the thread's registers, so that the sweep needs no shuffle. What
earlier concepts did to a tile is subtracted before it is swept: within SUB = 64 concepts by
multiply-adds that read Δ back, beyond by `tl.dot` in tf32, or by multiply-adds where products must
be float32 or float64. R then goes through memory (L2) to change from the layout of the tensor cores
to that of the sweep.

F may lie either way: with samples adjacent (the dictionary) threads read neighbouring words; with
concepts adjacent (the codes, n × K) each thread reads four concepts of its own row at once where
they are aligned, so every byte that is fetched is used, and no transposed copy is made, which would
cost four more passes over the codes. Reads R, F, Δ and writes R, F, Δ once: limited by memory in
tf32, by multiply-adds without.
"""

import torch
import triton
import triton.language as tl

from .products import in_tf32
from .registers import pick_row, round_tf32
from .sums import add_partials_, empty_partials, store_partial

BLOCK_K, SUB, BLOCK_T = 16, 64, 32
# (samples from which it is taken, BLOCK_M = 32 num_warps): the dictionary has few columns, and
# needs many small programs to fill a device
TILES = ((16_384, 128), (0, 32))


@triton.jit
def _sweep_tile(
    r, F_ptr, stride_fk, stride_fm, G_ptr, stride_g, delta_ptr, stride_d, columns, inside, left,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, TF32: tl.constexpr,
    STORE: tl.constexpr,
):  # fmt: skip
    """Sweep the first min(left, BLOCK_K) concepts at F_ptr, given their rows r (BLOCK_K, BLOCK_M)
    of R; returns ‖Δ‖² and ‖F‖² of every sample."""
    # the alignment stated to the compiler: with more it would give a thread several samples
    BYTES: tl.constexpr = r.dtype.primitive_bitwidth // 8
    rows = tl.arange(0, BLOCK_K)
    few = tl.arange(0, WIDTH)
    changed = tl.zeros((BLOCK_M,), dtype=r.dtype)
    squared = tl.zeros((BLOCK_M,), dtype=r.dtype)
    for group in tl.static_range(BLOCK_K // WIDTH):
        k = group * WIDTH
        place = F_ptr + (k + few)[:, None] * stride_fk + columns[None, :] * stride_fm
        place = tl.multiple_of(place, (WIDTH * BYTES, BYTES))
        kept = (k + few < left)[:, None] & inside[None, :]
        before = tl.load(place, mask=kept, other=0.0)
        after = before
        for i in tl.static_range(WIDTH):
            # a mask must have the shape of its tile, or the interpreter takes it for numbers
            alive = inside & (columns * 0 + (k + i) < left)
            f = pick_row(before, few == i)
            g_kk = tl.load(G_ptr + (k + i) * (stride_g + 1), mask=k + i < left, other=0.0)
            # a concept with G_kk = 0 keeps its row; below the smallest normal number counts as 0
            dead = g_kk < (1.1754943508222875e-38 if BYTES == 4 else 2.2250738585072014e-308)
            step = pick_row(r, rows == k + i) / tl.where(dead, 1.0, g_kk)
            new = tl.where(dead, f, tl.maximum(f + step, 0.0))
            delta = new - f
            changed += delta * delta
            squared += new * new
            after = tl.where((few == i)[:, None], new[None, :], after)
            if TF32:
                delta = round_tf32(delta)
            if STORE:
                place_d = tl.multiple_of(delta_ptr + (k + i) * stride_d + columns, BYTES)
                tl.store(place_d, delta, mask=alive)
            if k + i + 1 < BLOCK_K:
                below = (rows < left) & (rows * 0 + (k + i) < left)
                g = tl.load(G_ptr + (k + i) * stride_g + rows, mask=below, other=0.0)
                r = r - g[:, None] * delta[None, :]
        tl.store(place, after, mask=kept)
    return changed, squared


@triton.jit
def _subtract_before_(
    R_ptr, stride_r, G_ptr, stride_g, delta_ptr, stride_d, begin, m, first, s,
    SUB: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """R_i −= G_ij Δ_j for i in the SUB concepts from `first` on and all j before them, in tf32, for
    the BLOCK_M samples from `begin` on."""
    columns = begin + tl.arange(0, BLOCK_M)
    inside = columns < m
    rows = first + tl.arange(0, SUB)
    steps = tl.arange(0, BLOCK_T)
    product = tl.zeros((SUB, BLOCK_M), dtype=tl.float32)
    for step in range(0, first // BLOCK_T):
        j = step * BLOCK_T + steps.to(tl.int64)
        place = G_ptr + rows[:, None] * stride_g + j[None, :]
        g = tl.load(place, mask=(rows < s)[:, None], other=0.0)
        place = delta_ptr + j[:, None] * stride_d + columns[None, :]
        delta = tl.load(place, mask=inside[None, :], other=0.0)
        product = tl.dot(round_tf32(g), delta, product, input_precision="tf32")
    place = R_ptr + rows[:, None] * stride_r + columns[None, :]
    kept = (rows < s)[:, None] & inside[None, :]
    tl.store(place, tl.load(place, mask=kept, other=0.0) - product, mask=kept)


@triton.jit
def _hals_block_kernel(
    F_ptr, R_ptr, G_ptr, delta_ptr, partial_ptr, s, m, stride_fk, stride_fm, stride_r, stride_g,
    stride_d, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, SUB: tl.constexpr,
    BLOCK_T: tl.constexpr, WIDTH: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    BYTES: tl.constexpr = F_ptr.dtype.element_ty.primitive_bitwidth // 8
    columns = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = columns < m
    rows = tl.arange(0, BLOCK_K)
    changed = tl.zeros((BLOCK_M,), dtype=F_ptr.dtype.element_ty)
    squared = tl.zeros((BLOCK_M,), dtype=F_ptr.dtype.element_ty)
    # a count times a constant keeps its divisibility, and so 16-byte loads; range(a, b, step) does
    # not
    for outer in range(0, tl.cdiv(s, SUB)):
        first = tl.cast(outer, tl.int64) * SUB
        read_back = 0
        if TF32:
            read_back = outer * SUB
            if outer > 0:
                # in two halves: all samples at once exceed the registers of sm_80
                for half in range(0, 2):
                    _subtract_before_(
                        R_ptr, stride_r, G_ptr, stride_g, delta_ptr, stride_d,
                        tl.program_id(0).to(tl.int64) * BLOCK_M + half * (BLOCK_M // 2), m, first,
                        s, SUB, BLOCK_M // 2, BLOCK_T,
                    )  # fmt: skip
                tl.debug_barrier()
        for inner in range(0, tl.cdiv(tl.minimum(s - outer * SUB, SUB), BLOCK_K)):
            k = first + inner * BLOCK_K
            place = R_ptr + (k + rows)[:, None] * stride_r + columns[None, :]
            place = tl.multiple_of(place, (BYTES, BYTES))
            r = tl.load(place, mask=(k + rows < s)[:, None] & inside[None, :], other=0.0)
            for j in range(read_back, outer * SUB + inner * BLOCK_K):
                row = tl.cast(j, tl.int64)
                place_d = tl.multiple_of(delta_ptr + row * stride_d + columns, BYTES)
                delta = tl.load(place_d, mask=inside, other=0.0)
                g = tl.load(G_ptr + row * stride_g + k + rows, mask=k + rows < s, other=0.0)
                r = r - g[:, None] * delta[None, :]
            more = _sweep_tile(
                r, F_ptr + k * stride_fk, stride_fk, stride_fm, G_ptr + k * (stride_g + 1),
                stride_g, delta_ptr + k * stride_d, stride_d, columns, inside, s - k, BLOCK_K,
                BLOCK_M, WIDTH, TF32, True,
            )  # fmt: skip
            changed += more[0]
            squared += more[1]
            # other threads of this program may read Δ and R after this
            tl.debug_barrier()
    store_partial(partial_ptr, changed, squared)


# one compiled kernel for any number of sweeps
@triton.jit(do_not_specialize=["sweeps"])
def _hals_sweep_kernel(
    F_ptr, C_ptr, G_ptr, partial_ptr, K, m, sweeps, stride_fk, stride_fm, stride_ck, stride_cm,
    stride_g, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_C: tl.constexpr,
):  # fmt: skip
    """Whole sweeps in normal form: the rows of R of a tile are C − G F, with the newest F."""
    BYTES: tl.constexpr = F_ptr.dtype.element_ty.primitive_bitwidth // 8
    columns = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = columns < m
    rows = tl.arange(0, BLOCK_K)
    few = tl.arange(0, WIDTH)
    few_c = tl.arange(0, WIDTH_C)
    changed = tl.zeros((BLOCK_M,), dtype=F_ptr.dtype.element_ty)
    squared = tl.zeros((BLOCK_M,), dtype=F_ptr.dtype.element_ty)
    for _sweep in range(0, sweeps):
        for tile in range(0, tl.cdiv(K, BLOCK_K)):
            k = tl.cast(tile, tl.int64) * BLOCK_K
            r = tl.zeros((BLOCK_K, BLOCK_M), dtype=F_ptr.dtype.element_ty)
            for group in tl.static_range(BLOCK_K // WIDTH_C):
                i = k + group * WIDTH_C + few_c
                place = C_ptr + i[:, None] * stride_ck + columns[None, :] * stride_cm
                place = tl.multiple_of(place, (WIDTH_C * BYTES, BYTES))
                c = tl.load(place, mask=(i < K)[:, None] & inside[None, :], other=0.0)
                for row in tl.static_range(WIDTH_C):
                    chosen = (rows == group * WIDTH_C + row)[:, None]
                    r = tl.where(chosen, pick_row(c, few_c == row)[None, :], r)
            for group in range(0, tl.cdiv(K, WIDTH)):
                j = tl.cast(group, tl.int64) * WIDTH
                place = F_ptr + (j + few)[:, None] * stride_fk + columns[None, :] * stride_fm
                place = tl.multiple_of(place, (WIDTH * BYTES, BYTES))
                f = tl.load(place, mask=(j + few < K)[:, None] & inside[None, :], other=0.0)
                for row in tl.static_range(WIDTH):
                    kept = (k + rows < K) & (j + row + rows * 0 < K)
                    g = tl.load(G_ptr + (j + row) * stride_g + k + rows, mask=kept, other=0.0)
                    r = r - g[:, None] * pick_row(f, few == row)[None, :]
            more = _sweep_tile(
                r, F_ptr + k * stride_fk, stride_fk, stride_fm, G_ptr + k * (stride_g + 1),
                stride_g, F_ptr, stride_fk, columns, inside, K - k, BLOCK_K, BLOCK_M, WIDTH, False,
                False,
            )  # fmt: skip
            changed += more[0]
            squared += more[1]
            tl.debug_barrier()
    store_partial(partial_ptr, changed, squared)


def width(X: torch.Tensor) -> int:
    """Concepts of one sample that a thread reads at once: four where they are adjacent and every
    row is aligned to 16 bytes, else one."""
    adjacent = X.stride(0) == 1 and X.stride(1) % 4 == 0 and X.data_ptr() % 16 == 0
    return 4 if adjacent and X.dtype == torch.float32 else 1


def samples(m: int) -> int:
    """BLOCK_M for m samples, from TILES."""
    return next(block for least, block in TILES if m >= least)


def hals_block_(F, R, G, delta, sums) -> None:
    """F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k; k = 0 … s−1, in place.

    F (s, m) with any strides; R, delta (s, m) with contiguous rows; G (s, s). R is destroyed, delta
    receives the change of F, rounded to tf32 where products are tf32. sums (2,) float64 is
    increased by ‖Δ‖² and ‖F‖². m s² flops. Two launches; does not synchronise.
    """
    (s, m), block = F.shape, samples(F.shape[1])
    partials = empty_partials(F, triton.cdiv(m, block))
    _hals_block_kernel[(len(partials),)](
        F, R, G, delta, partials, s, m, *F.stride(), R.stride(0), G.stride(0), delta.stride(0),
        BLOCK_K=BLOCK_K, BLOCK_M=block, SUB=SUB, BLOCK_T=BLOCK_T, WIDTH=width(F), TF32=in_tf32(F),
        num_warps=block // 32, num_stages=2,
    )  # fmt: skip
    add_partials_(sums, partials)


def hals_sweep_(F, C, G, sums, sweeps=1) -> None:
    """F_k ← max(0, F_k + (C_k − G_k F) / G_kk); k = 0 … K−1, in place: sweeps of few concepts.

    F, C (K, m) with any strides; G (K, K) with contiguous rows. sums as for hals_block_. 2 m K²
    flops a sweep, always in the dtype of F. Two launches; does not synchronise.
    """
    (K, m), block = F.shape, samples(F.shape[1])
    partials = empty_partials(F, triton.cdiv(m, block))
    _hals_sweep_kernel[(len(partials),)](
        F, C, G, partials, K, m, sweeps, *F.stride(), *C.stride(), G.stride(0),
        BLOCK_K=BLOCK_K, BLOCK_M=block, WIDTH=width(F), WIDTH_C=width(C),
        num_warps=block // 32, num_stages=2,
    )  # fmt: skip
    add_partials_(sums, partials)
