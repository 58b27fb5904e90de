"""F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k: the block sweep of HALS.

A program sweeps all concepts of a tile of BLOCK_M samples (columns of F), ROWS = 16 at a time. What
earlier concepts did to R is subtracted before the 16 are swept. A thread has all 16 rows of its
samples in registers, so the sweep needs no shuffles. It stores nothing before its end: the compiler
cannot tell whether a store of Δ changes G, and would load the next row of G after it.

With many samples (the codes) a thread has two, which share what is loaded of G. In tf32 the effect
of earlier sub-blocks of SUB = 64 concepts is subtracted by `tl.dot`, the rest by multiply-adds that
read Δ back. With few samples (the dictionary) a program has 8, each in SLICES = 16 threads: a
thread subtracts the effect of every 16th earlier concept, and the sums over the threads are added
in the order of a binary tree, the same in every run. Then all 16 sweep the same sample, and one
stores it.

F may lie either way: with samples adjacent (the dictionary) threads read neighbouring words; with
concepts adjacent (the codes, n × K) each thread reads four concepts of its own row at once where
they are aligned, so no transposed copy is made, which would cost four more passes over the codes.
Reads R, F, Δ and writes F, Δ once. By instruction counts the codes in tf32 are limited by memory,
in float32 by reading G, which is in L1; the dictionary by both and by latency.
"""

import torch
import triton
import triton.language as tl

from .products import in_tf32
from .registers import FUSED, pick_row, round_tf32
from .sums import add_partials_, empty_partials, store_partial

ROWS, SUB, BLOCK_T, UNROLL = 16, 64, 16, 8
# by the bytes of a number: (samples from which it is taken, BLOCK_M, SLICES, num_warps, registers).
# With 168 all 100,000 samples are on 132 multiprocessors at once, six programs each. Left to itself
# the assembler takes fewer, and waits for each row of G
TILES = {4: ((4_096, 128, 1, 2, 168), (0, 8, 16, 4, 255)), 8: ((0, 32, 1, 1, 255),)}


# they do not change what is compiled: WHOLE, WIDTH and DOT say what is known of them
NUMBERS = ("s", "m", "sweeps", "stride_fk", "stride_fm", "stride_ck", "stride_cm", "stride_r",
           "stride_g", "stride_d")  # fmt: skip


@triton.jit
def _load_rows(
    X_ptr, stride_k, across, kept, left, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The ROWS rows at X_ptr as a tuple, WIDTH adjacent ones at once; 0 from row `left` on and in
    columns that are not kept. across: where the columns are."""
    BYTES: tl.constexpr = X_ptr.dtype.element_ty.primitive_bitwidth // 8
    few = tl.arange(0, WIDTH)
    found = ()
    for k in tl.static_range(0, ROWS, WIDTH):
        if WIDTH == 1:
            # the alignment stated to the compiler: with more a thread would get several samples
            place = tl.multiple_of(X_ptr + across, BYTES)
            mask = kept if WHOLE else kept & (tl.zeros_like(across) + k < left)
            X_ptr += stride_k
            found += (tl.load(place, mask=mask, other=0.0),)
        else:
            place = X_ptr + (k + few)[:, None] + across[None, :]
            place = tl.multiple_of(place, (WIDTH * BYTES, BYTES))
            rows = (k + few < left)[:, None]
            tile = tl.load(place, mask=kept[None, :] if WHOLE else rows & kept[None, :], other=0.0)
            for i in tl.static_range(WIDTH):
                found += (pick_row(tile, few == i),)
    return found


@triton.jit
def _store_rows(
    X_ptr, stride_k, across, kept, left, rows, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Store what `_load_rows` gives."""
    BYTES: tl.constexpr = X_ptr.dtype.element_ty.primitive_bitwidth // 8
    few = tl.arange(0, WIDTH)
    for k in tl.static_range(0, ROWS, WIDTH):
        if WIDTH == 1:
            place = tl.multiple_of(X_ptr + across, BYTES)
            mask = kept if WHOLE else kept & (tl.zeros_like(across) + k < left)
            X_ptr += stride_k
            tl.store(place, rows[k], mask=mask)
        else:
            place = X_ptr + (k + few)[:, None] + across[None, :]
            place = tl.multiple_of(place, (WIDTH * BYTES, BYTES))
            tile = tl.zeros((WIDTH, across.shape[0]), dtype=X_ptr.dtype.element_ty)
            for i in tl.static_range(WIDTH):
                tile = tl.where((few == i)[:, None], rows[k + i][None, :], tile)
            kept_rows = (k + few < left)[:, None]
            tl.store(place, tile, mask=kept[None, :] if WHOLE else kept_rows & kept[None, :])


@triton.jit
def _stacked(x):
    """A tuple of 16 rows as a tile (16, columns), without moving anything between threads."""
    # the last to be joined are adjacent in registers, as 16 bytes of a row of G are
    a, b = tl.join(x[0], x[8]), tl.join(x[4], x[12])
    c, d = tl.join(x[2], x[10]), tl.join(x[6], x[14])
    even = tl.join(tl.join(a, b), tl.join(c, d))
    a, b = tl.join(x[1], x[9]), tl.join(x[5], x[13])
    c, d = tl.join(x[3], x[11]), tl.join(x[7], x[15])
    x = tl.join(even, tl.join(tl.join(a, b), tl.join(c, d)))
    return tl.reshape(tl.permute(x, (1, 2, 3, 4, 0)), (16, x.shape[0]))


@triton.jit
def _row_of_g(place, left, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """ROWS adjacent numbers of G, 0 from `left` on."""
    rows = tl.arange(0, ROWS)
    if WHOLE:
        row = tl.load(tl.multiple_of(place + rows, 16))
    else:
        row = tl.load(place + rows, mask=rows < left, other=0.0)
    return row


@triton.jit
def _inverses(G_ptr, stride_g, left, ROWS: tl.constexpr, WHOLE: tl.constexpr):
    """1 / G_kk of ROWS concepts as a tuple; 0 where it is below the smallest normal number: such a
    concept keeps its row."""
    BYTES: tl.constexpr = G_ptr.dtype.element_ty.primitive_bitwidth // 8
    least = 1.1754943508222875e-38 if BYTES == 4 else 2.2250738585072014e-308
    found = ()
    for k in tl.static_range(ROWS):
        g = tl.load(G_ptr)
        # beyond the last concept any number will do: r, f and so Δ are zero there
        G_ptr += stride_g + 1 if WHOLE else tl.where(k + 1 < left, stride_g + 1, 0)
        found += (tl.where(g < least, 0.0, 1.0 / tl.maximum(g, least)),)
    return found


@triton.jit
def _below(kept, rows, left, WHOLE: tl.constexpr):
    """kept, and without WHOLE only the rows before `left`."""
    if WHOLE:
        mask = kept
    else:
        mask = kept & (rows < left)
    return mask


@triton.jit
def _subtract(
    r, X_ptr, stride_k, across, kept, G_ptr, stride_g, slice, last, left, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, SLICES: tl.constexpr, UNROLL: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """r_i − Σ_j G_ji X_j for the first `last` rows j at X_ptr and at G_ptr."""
    if SLICES > 1:
        rest = _subtract_in_slices(
            r, X_ptr, stride_k, across, kept, G_ptr, stride_g, slice, last, left, ROWS, WIDTH,
            SLICES, UNROLL, WHOLE,
        )  # fmt: skip
    else:
        rest = _stacked(r)
        for step in range(0, tl.cdiv(last, UNROLL * WIDTH)):
            for u in tl.static_range(UNROLL):
                j = (tl.cast(step, tl.int64) * UNROLL + u) * WIDTH
                x = _load_rows(
                    X_ptr + j * stride_k, stride_k, across, kept, last - j, WIDTH, WIDTH, WHOLE
                )
                for i in tl.static_range(WIDTH):
                    row = j + i if WHOLE else tl.minimum(j + i, last - 1)
                    g = _row_of_g(G_ptr + row * stride_g, left, ROWS, WHOLE)
                    rest = rest - g[:, None] * x[i][None, :]
    return rest


@triton.jit
def _subtract_in_slices(
    r, X_ptr, stride_k, across, kept, G_ptr, stride_g, slice, last, left, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, SLICES: tl.constexpr, UNROLL: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The same with every SLICES-th group of WIDTH rows j in a thread, then the sum over these."""
    COLUMNS: tl.constexpr = across.shape[0]
    four = tl.arange(0, 4)[:, None]
    zero = tl.zeros((4, COLUMNS), dtype=G_ptr.dtype.element_ty)
    sum0, sum1, sum2, sum3 = zero, zero, zero, zero
    mine = slice.to(tl.int64) * WIDTH
    across_x, across_g = across + mine * stride_k, mine * stride_g
    for step in range(0, tl.cdiv(last, SLICES * UNROLL * WIDTH)):
        for u in tl.static_range(UNROLL):
            j = (tl.cast(step, tl.int64) * UNROLL + u) * (SLICES * WIDTH)
            for i in tl.static_range(WIDTH):
                swept = j + i + mine < last
                place = X_ptr + (j + i) * stride_k + across_x
                x = tl.load(place, mask=swept & kept, other=0.0)[None, :]
                place = G_ptr + (j + i) * stride_g + four + across_g[None, :]
                if WHOLE:
                    place = tl.multiple_of(place, (16, 4))
                swept = swept[None, :]
                sum0 += x * tl.load(place, mask=_below(swept, four, left, WHOLE), other=0.0)
                sum1 += x * tl.load(place + 4, mask=_below(swept, four + 4, left, WHOLE), other=0.0)
                sum2 += x * tl.load(place + 8, mask=_below(swept, four + 8, left, WHOLE), other=0.0)
                sum3 += x * tl.load(
                    place + 12, mask=_below(swept, four + 12, left, WHOLE), other=0.0
                )
    total = tl.join(tl.join(sum0, sum1), tl.join(sum2, sum3))
    total = tl.reshape(tl.permute(total, (3, 2, 0, 1)), (ROWS, SLICES, COLUMNS // SLICES))
    total = tl.broadcast_to(tl.sum(total, 1)[:, None, :], (ROWS, SLICES, COLUMNS // SLICES))
    total = tl.reshape(total, (ROWS, COLUMNS))
    rows, rest = tl.arange(0, ROWS), ()
    for k in tl.static_range(ROWS):
        rest += (r[k] - pick_row(total, rows == k),)
    return _stacked(rest)


@triton.jit
def _swept(
    r, f, inverses, G_ptr, stride_g, left, ROWS: tl.constexpr, ROUND: tl.constexpr,
    WHOLE: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """The new f and Δ of ROWS concepts, as tuples, given their rows r (ROWS, columns) of R; and
    ‖Δ‖² and ‖F‖² of every column. ROUND: Δ is rounded to tf32. BOUNDED: f is ≥ 0."""
    rows = tl.arange(0, ROWS)
    changed = tl.zeros((r.shape[1],), dtype=r.dtype)
    squared = tl.zeros((r.shape[1],), dtype=r.dtype)
    after, deltas = (), ()
    for k in tl.static_range(ROWS):
        delta = pick_row(r, rows == k) * inverses[k]
        if BOUNDED:
            # max(0, f + step) − f, one operation shorter, and exactly zero where it is clipped
            delta = tl.maximum(delta, -f[k])
        new = f[k] + delta
        changed += delta * delta
        squared += new * new
        if ROUND:
            delta = round_tf32(delta)
        if k + 1 < ROWS:
            g = _row_of_g(G_ptr, left, ROWS, WHOLE)
            G_ptr += stride_g if WHOLE else tl.where(k + 1 < left, stride_g, 0)
            r = r - g[:, None] * delta[None, :]
        after += (new,)
        deltas += (delta,)
    return after, deltas, changed, squared


@triton.jit
def _subtract_before_(
    R_ptr, stride_r, G_ptr, stride_g, delta_ptr, stride_d, m, first, s, SUB: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """R_i − G_ij Δ_j for i in the SUB concepts from `first` on and all j before them, in tf32, for
    BLOCK_M samples, into the first SUB rows of R, which are no longer needed: they stay in L2."""
    columns = tl.arange(0, BLOCK_M)
    inside = (columns < m // 4 * 4)[None, :]
    rows = tl.arange(0, SUB)
    steps = tl.arange(0, BLOCK_T)
    here = rows[:, None] < s - first
    product = tl.zeros((SUB, BLOCK_M), dtype=tl.float32)
    for step in range(0, first // BLOCK_T):
        j = tl.cast(step, tl.int64) * BLOCK_T
        place = G_ptr + first * stride_g + j + rows[:, None] * stride_g + steps[None, :]
        g = tl.load(tl.multiple_of(place, (4, 16)), mask=here, other=0.0)
        place = delta_ptr + j * stride_d + steps[:, None] * stride_d + columns[None, :]
        delta = tl.load(tl.multiple_of(place, (4, 16)), mask=inside, other=0.0)
        product = tl.dot(round_tf32(g), delta, product, input_precision="tf32")
    across = rows[:, None] * stride_r + columns[None, :]
    place = tl.multiple_of(R_ptr + first * stride_r + across, (4, 16))
    rest = tl.load(place, mask=here & inside, other=0.0) - product
    tl.store(tl.multiple_of(R_ptr + across, (4, 16)), rest, mask=here & inside)


@triton.jit(do_not_specialize=NUMBERS)
def _hals_block_kernel(
    F_ptr, R_ptr, G_ptr, delta_ptr, partial_ptr, s, m, stride_fk, stride_fm, stride_r, stride_g,
    stride_d, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, SLICES: tl.constexpr, SUB: tl.constexpr,
    BLOCK_T: tl.constexpr, UNROLL: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    ROUND: tl.constexpr, DOT: tl.constexpr, BOUNDED: tl.constexpr = True,
):  # fmt: skip
    number: tl.constexpr = F_ptr.dtype.element_ty
    stride_fk, stride_fm = tl.cast(stride_fk, tl.int64), tl.cast(stride_fm, tl.int64)
    stride_r, stride_d = tl.cast(stride_r, tl.int64), tl.cast(stride_d, tl.int64)
    stride_g = tl.cast(stride_g, tl.int64)
    begin = tl.program_id(0).to(tl.int64) * BLOCK_M
    F_ptr, R_ptr, delta_ptr = F_ptr + begin * stride_fm, R_ptr + begin, delta_ptr + begin
    columns = tl.arange(0, SLICES * BLOCK_M) % BLOCK_M
    slice = tl.arange(0, SLICES * BLOCK_M) // BLOCK_M
    inside = columns < m - begin
    stores = inside & (slice == 0)
    across_f = columns * stride_fm
    changed = tl.zeros((SLICES * BLOCK_M,), dtype=number)
    squared = tl.zeros((SLICES * BLOCK_M,), dtype=number)
    for outer in range(0, tl.cdiv(s, SUB)):
        first = tl.cast(outer, tl.int64) * SUB
        done, rest_ptr = first * 0, R_ptr + first * stride_r
        if DOT:
            done = first
            if outer > 0:
                rest_ptr = R_ptr
                # in four parts: all samples at once exceed the registers
                for part in range(0, 4):
                    at = part * (BLOCK_M // 4)
                    _subtract_before_(
                        R_ptr + at, stride_r, G_ptr, stride_g, delta_ptr + at, stride_d,
                        m - begin - at, first, s, SUB, BLOCK_M // 4, BLOCK_T,
                    )  # fmt: skip
                tl.debug_barrier()
        for inner in range(0, tl.cdiv(tl.minimum(s - outer * SUB, SUB), ROWS)):
            k = first + inner * ROWS
            left = s - (outer * SUB + inner * ROWS)
            diagonal = G_ptr + k * (stride_g + 1)
            f = _load_rows(
                F_ptr + k * stride_fk, stride_fk, across_f, inside, left, ROWS, WIDTH, WHOLE
            )
            r = _load_rows(
                rest_ptr + inner * ROWS * stride_r, stride_r, columns, inside, left, ROWS, 1, WHOLE
            )
            inverses = _inverses(diagonal, stride_g, left, ROWS, WHOLE)
            rest = _subtract(
                r, delta_ptr + done * stride_d, stride_d, columns, inside,
                G_ptr + done * stride_g + k, stride_g, slice, tl.cast(k - done, tl.int32), left,
                ROWS, 1, SLICES, UNROLL, WHOLE,
            )  # fmt: skip
            f, delta, more_changed, more_squared = _swept(
                rest, f, inverses, diagonal, stride_g, left, ROWS, ROUND, WHOLE, BOUNDED
            )
            changed += more_changed
            squared += more_squared
            _store_rows(
                delta_ptr + k * stride_d, stride_d, columns, stores, left, delta, ROWS, 1, WHOLE
            )
            _store_rows(
                F_ptr + k * stride_fk, stride_fk, across_f, stores, left, f, ROWS, WIDTH, WHOLE
            )
            # other threads of this program may read Δ and R after this
            tl.debug_barrier()
    alone = slice == 0
    store_partial(partial_ptr, tl.where(alone, changed, 0.0), tl.where(alone, squared, 0.0))


@triton.jit(do_not_specialize=NUMBERS)
def _hals_sweep_kernel(
    F_ptr, C_ptr, G_ptr, partial_ptr, s, m, sweeps, stride_fk, stride_fm, stride_ck, stride_cm,
    stride_g, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, SLICES: tl.constexpr,
    UNROLL: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, BOUNDED: tl.constexpr = True,
):  # fmt: skip
    """Whole sweeps in normal form: the rows of R of a tile are C − G F, with the newest F."""
    number: tl.constexpr = F_ptr.dtype.element_ty
    stride_fk, stride_fm = tl.cast(stride_fk, tl.int64), tl.cast(stride_fm, tl.int64)
    stride_ck, stride_cm = tl.cast(stride_ck, tl.int64), tl.cast(stride_cm, tl.int64)
    stride_g = tl.cast(stride_g, tl.int64)
    begin = tl.program_id(0).to(tl.int64) * BLOCK_M
    F_ptr, C_ptr = F_ptr + begin * stride_fm, C_ptr + begin * stride_cm
    columns = tl.arange(0, SLICES * BLOCK_M) % BLOCK_M
    slice = tl.arange(0, SLICES * BLOCK_M) // BLOCK_M
    inside = columns < m - begin
    stores = inside & (slice == 0)
    across_f, across_c = columns * stride_fm, columns * stride_cm
    changed = tl.zeros((SLICES * BLOCK_M,), dtype=number)
    squared = tl.zeros((SLICES * BLOCK_M,), dtype=number)
    for _sweep in range(0, sweeps):
        for tile in range(0, tl.cdiv(s, ROWS)):
            k = tl.cast(tile, tl.int64) * ROWS
            left = s - tile * ROWS
            diagonal = G_ptr + k * (stride_g + 1)
            f_ptr, c_ptr = F_ptr + k * stride_fk, C_ptr + k * stride_ck
            f = _load_rows(f_ptr, stride_fk, across_f, inside, left, ROWS, WIDTH, WHOLE)
            c = _load_rows(c_ptr, stride_ck, across_c, inside, left, ROWS, WIDTH, WHOLE)
            inverses = _inverses(diagonal, stride_g, left, ROWS, WHOLE)
            rest = _subtract(
                c, F_ptr, stride_fk, across_f, inside, G_ptr + k, stride_g, slice, s, left, ROWS,
                WIDTH, SLICES, UNROLL // WIDTH, WHOLE,
            )  # fmt: skip
            f, _, more_changed, more_squared = _swept(
                rest, f, inverses, diagonal, stride_g, left, ROWS, False, WHOLE, BOUNDED
            )
            changed += more_changed
            squared += more_squared
            _store_rows(f_ptr, stride_fk, across_f, stores, left, f, ROWS, WIDTH, WHOLE)
            tl.debug_barrier()
    alone = slice == 0
    store_partial(partial_ptr, tl.where(alone, changed, 0.0), tl.where(alone, squared, 0.0))


def aligned(X: torch.Tensor) -> bool:
    """Whether every row of X is aligned to 16 bytes in float32."""
    return X.stride(0) % 4 == 0 and X.data_ptr() % 16 == 0


def width(X: torch.Tensor) -> int:
    """Concepts of one sample that a thread reads at once: four where they are adjacent and every
    row is aligned, else one."""
    return 4 if X.stride(0) == 1 and aligned(X.T) and X.dtype == torch.float32 else 1


def options_of(F: torch.Tensor, G: torch.Tensor) -> dict[str, int | bool]:
    """What both kernels are compiled for: tile, order of F, and WHOLE: every tile has ROWS concepts
    and rows of G are aligned."""
    tiles, whole = TILES[F.element_size()], len(G) % ROWS == 0 and aligned(G)
    block, slices, warps, registers = next(tile for least, *tile in tiles if F.shape[1] >= least)
    unroll = UNROLL
    if not whole:
        # masks take registers: one sample a thread, one thread a sample, fewer rows of G at once
        block = block if slices == 1 else 32
        slices, warps, registers, unroll = 1, block // 32, 255, 16 // F.element_size()
    # Triton has no such option for AMD
    limit = {} if torch.version.hip else {"maxnreg": registers}
    return {"ROWS": ROWS, "BLOCK_M": block, "SLICES": slices, "UNROLL": unroll,
            "WHOLE": whole, "WIDTH": width(F) if whole else 1, "num_warps": warps,
            "num_stages": 3, **FUSED, **limit}  # fmt: skip


def by_dot(F: torch.Tensor, R: torch.Tensor, delta: torch.Tensor, options: dict) -> bool:
    """Whether earlier sub-blocks are subtracted by products in tf32: with many samples, in rows
    that are copied 16 bytes at once."""
    m = F.shape[1]
    few = options["SLICES"] > 1 or len(F) <= SUB or not options["WHOLE"]
    return in_tf32(F) and not few and m % 4 == 0 and aligned(R) and aligned(delta)


def hals_block_(F, R, G, delta, sums, bounded=True) -> None:
    """F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k; k = 0 … s−1, in place.
    Without `bounded` entries may be negative: F_k ← F_k + R_k / G_kk.

    F (s, m) with any strides; R, delta (s, m) with contiguous rows; G (s, s), symmetric, with
    contiguous rows. R is destroyed, delta receives the change of F, rounded to tf32 where products
    are tf32. sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². m s² flops. Two launches; does not
    synchronise.
    """
    (s, m), options = F.shape, options_of(F, G)
    partials = empty_partials(F, triton.cdiv(m, options["BLOCK_M"]))
    _hals_block_kernel[(len(partials),)](
        F, R, G, delta, partials, s, m, *F.stride(), R.stride(0), G.stride(0), delta.stride(0),
        SUB=SUB, BLOCK_T=BLOCK_T, ROUND=in_tf32(F), DOT=by_dot(F, R, delta, options),
        BOUNDED=bounded, **options,
    )  # fmt: skip
    add_partials_(sums, partials)


def hals_sweep_(F, C, G, sums, sweeps=1, bounded=True) -> None:
    """F_k ← max(0, F_k + (C_k − G_k F) / G_kk); k = 0 … K−1, in place: sweeps of few concepts.
    Without `bounded` entries may be negative.

    F, C (K, m) with any strides; G (K, K), symmetric, with contiguous rows. sums as for
    hals_block_. 2 m K² flops a sweep, always in the dtype of F. Two launches; does not synchronise.
    """
    (K, m), options = F.shape, options_of(F, G)
    options["WIDTH"] = min(options["WIDTH"], width(C))
    partials = empty_partials(F, triton.cdiv(m, options["BLOCK_M"]))
    _hals_sweep_kernel[(len(partials),)](
        F, C, G, partials, K, m, sweeps, *F.stride(), *C.stride(), G.stride(0), BOUNDED=bounded,
        **options,
    )  # fmt: skip
    add_partials_(sums, partials)
