"""F' = max(0, Y − step · gradient), Y' = F' + momentum · (F' − F): a projected gradient step with
momentum and its product in one kernel; without the maximum where F is not BOUNDED.

A program makes a tile of F' and Y', (BLOCK_M, BLOCK_K) in samples and concepts, and its part of the
norms. In residual form the gradient is −B Eᵀ with E = X − Yᵀ B, in normal form G Y − C; the second
needs all of Y, so Y' goes elsewhere. A penalty of F adds l1 + curvature ∘ Y to the gradient; in
normal form C and G have it already. Limited by the tensor cores in tf32, by multiply-adds in
float32, and by memory where p is small: F, Y are read and F', Y' written.
"""

import torch
import triton
import triton.language as tl

from .packing import packed_chunks, packs
from .products import (
    in_tf32,
    in_units,
    lengths_of,
    on_hopper,
    options_of,
    penalty_of,
    product_of,
    programs_of,
    with_adjacent_columns,
)
from .registers import parts_of, tile_of_program
from .sums import add_partials_, empty_partials, store_partial


@triton.jit
def _store_part(
    F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, length, momentum_ptr, penalised, l1_ptr,
    curvature_ptr, last, descent, rows, begin, height, width, stride_f, stride_y, stride_n,
    stride_m, stride_s, CURVED: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """F' and Y' of the columns from `begin` on; returns ‖F' − start‖² and ‖F'‖² of every row."""
    columns = begin + tl.arange(0, descent.shape[1])
    kept = (rows < height)[:, None] & (columns < width)[None, :]
    y = tl.load(Y_ptr + rows[:, None] * stride_y + columns[None, :], mask=kept, other=0.0)
    if CURVED:
        # Y − step · (l1 + curvature ∘ Y), so written that it takes no more registers
        some = columns < width * penalised
        scale = 1.0 - length * tl.load(curvature_ptr + columns, mask=some, other=0.0)
        y = y * scale[None, :] - length * tl.load(l1_ptr, mask=penalised != 0, other=0.0)
    new = y + descent * length
    if BOUNDED:
        new = tl.maximum(new, 0.0)
    new = tl.where(kept, new, 0.0)
    change = tl.zeros_like(new)
    if last != 0:
        place = start_ptr + rows[:, None] * stride_s + columns[None, :]
        change = new - tl.load(place, mask=kept, other=0.0)
    else:
        f = tl.load(F_ptr + rows[:, None] * stride_f + columns[None, :], mask=kept, other=0.0)
        place = next_Y_ptr + rows[:, None] * stride_m + columns[None, :]
        tl.store(place, new + tl.load(momentum_ptr) * (new - f), mask=kept)
    tl.store(next_F_ptr + rows[:, None] * stride_n + columns[None, :], new, mask=kept)
    return tl.sum(change * change, 1), tl.sum(new * new, 1)


@triton.jit
def _store_step(
    F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, step_ptr, momentum_ptr, penalised, l1_ptr,
    curvature_ptr, partial_ptr, last, descent, rows, begin, height, width, stride_f, stride_y,
    stride_n, stride_m, stride_s, CURVED: tl.constexpr, PARTS: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """F' and Y' of one tile from `descent`, less the gradient. penalised: it is without l1 and
    curvature ∘ Y, where CURVED, and columns are concepts then. last: the norms are left, those of
    F' − start and F', and no Y'. PARTS: in which
    columns are done one after the other, which takes fewer registers."""
    length = tl.load(step_ptr)
    parts = parts_of(descent, PARTS)
    changed = tl.zeros((descent.shape[0],), dtype=descent.dtype)
    squared = tl.zeros((descent.shape[0],), dtype=descent.dtype)
    for part in tl.static_range(PARTS):
        more = _store_part(
            F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, length, momentum_ptr, penalised,
            l1_ptr, curvature_ptr, last, parts[part], rows,
            begin + part * (descent.shape[1] // PARTS), height, width, stride_f, stride_y,
            stride_n, stride_m, stride_s, CURVED, BOUNDED,
        )  # fmt: skip
        changed += more[0]
        squared += more[1]
    if last != 0:
        store_partial(partial_ptr, changed, squared)


@triton.jit(
    do_not_specialize=[
        "penalised", "last", "first", "m", "K", "stride_f", "stride_y", "stride_n", "stride_m",
        "stride_s",
    ]
)  # fmt: skip
def _pgd_packed_kernel(
    F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, E_ptr, B_ptr, step_ptr, momentum_ptr,
    penalised, l1_ptr, curvature_ptr, partial_ptr, last, first, m, K, width, stride_f, stride_y,
    stride_n, stride_m, stride_s, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, TF32: tl.constexpr,
    UNIT: tl.constexpr, BOUNDED: tl.constexpr = True,
):  # fmt: skip
    """E and B as `packed` makes them, (…, width) in whole tiles; the others (m, K). first: the
    number of programs that were launched for other samples."""
    K, stride_f, stride_y = K * UNIT, stride_f * UNIT, stride_y * UNIT
    stride_n, stride_m, stride_s = stride_n * UNIT, stride_m * UNIT, stride_s * UNIT
    number: tl.constexpr = F_ptr.dtype.element_ty
    precision: tl.constexpr = "tf32" if TF32 else "ieee"
    row, column = tile_of_program(m, K, BLOCK_M, BLOCK_K, GROUP)
    samples = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    concepts = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    product = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    for step in range(0, width // BLOCK_P):
        j = step * BLOCK_P + tl.arange(0, BLOCK_P)
        x = tl.load(E_ptr + samples[:, None] * width + j[None, :])
        b = tl.load(B_ptr + concepts[None, :] * width + j[:, None])
        product = tl.dot(x, b, product, input_precision=precision, out_dtype=number)
    _store_step(
        F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, step_ptr, momentum_ptr, penalised, l1_ptr,
        curvature_ptr, partial_ptr + 2 * first, last, product, samples,
        column.to(tl.int64) * BLOCK_K, m, K, stride_f, stride_y, stride_n, stride_m, stride_s, True,
        PARTS, BOUNDED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["penalised", "last", "p"])
def _pgd_residual_kernel(
    F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, E_ptr, B_ptr, step_ptr, momentum_ptr,
    penalised, l1_ptr, curvature_ptr, partial_ptr, last, m, K, p, stride_f, stride_y, stride_n,
    stride_m, stride_s, stride_em, stride_ep, stride_bk, stride_bp, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
    TF32: tl.constexpr, BOUNDED: tl.constexpr = True,
):  # fmt: skip
    """The same with E and B where they are."""
    row, column = tile_of_program(m, K, BLOCK_M, BLOCK_K, GROUP)
    samples = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    concepts = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    product = product_of(
        E_ptr, B_ptr, samples, concepts, m, K, p, stride_em, stride_ep, stride_bp, stride_bk,
        BLOCK_M, BLOCK_K, BLOCK_P, TF32,
    )  # fmt: skip
    _store_step(
        F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, step_ptr, momentum_ptr, penalised, l1_ptr,
        curvature_ptr, partial_ptr, last, product, samples, column.to(tl.int64) * BLOCK_K, m, K,
        stride_f, stride_y, stride_n, stride_m, stride_s, True, PARTS, BOUNDED,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "last", "height", "width", "K", "stride_f", "stride_y", "stride_n", "stride_m", "stride_s",
        "stride_l", "stride_r", "stride_c",
    ]
)  # fmt: skip
def _pgd_normal_kernel(
    F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, left_ptr, right_ptr, C_ptr, step_ptr,
    momentum_ptr, partial_ptr, last, height, width, K, stride_f, stride_y, stride_n, stride_m,
    stride_s, stride_l, stride_r, stride_c, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, UNIT: tl.constexpr,
    BOUNDED: tl.constexpr = True,
):  # fmt: skip
    """F and all that has its shape, (height, width), of which either are concepts: left (height, K)
    times right is G Y, or its transpose. Lengths of rows, and strides, in units of UNIT."""
    width, K = width * UNIT, K * UNIT
    stride_f, stride_y, stride_n = stride_f * UNIT, stride_y * UNIT, stride_n * UNIT
    stride_m, stride_s = stride_m * UNIT, stride_s * UNIT
    stride_l, stride_r, stride_c = stride_l * UNIT, stride_r * UNIT, stride_c * UNIT
    row, column = tile_of_program(height, width, BLOCK_M, BLOCK_K, GROUP)
    rows = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    product = product_of(
        left_ptr, right_ptr, rows, columns, height, width, K, stride_l, 1, stride_r, 1, BLOCK_M,
        BLOCK_K, BLOCK_P, False,
    )  # fmt: skip
    kept = (rows < height)[:, None] & (columns < width)[None, :]
    C = tl.load(C_ptr + rows[:, None] * stride_c + columns[None, :], mask=kept, other=0.0)
    _store_step(
        F_ptr, Y_ptr, next_F_ptr, next_Y_ptr, start_ptr, step_ptr, momentum_ptr, 0, F_ptr, F_ptr,
        partial_ptr, last, C - product, rows, column.to(tl.int64) * BLOCK_K, height, width,
        stride_f, stride_y, stride_n, stride_m, stride_s, False, PARTS, BOUNDED,
    )  # fmt: skip


def _with_copies(F, Y, step, turned, launch) -> None:
    """Call launch(F, Y, next_F, next_Y, start), each `turned` and with adjacent columns, and add
    the norms of the last step. What has them not is copied, and back."""
    last = step.sums is not None
    f, y = (with_adjacent_columns(turned(M)) for M in (F, Y))
    start = with_adjacent_columns(turned(step.start)) if last else f
    written = [turned(M) for M in ([step.next_F] if last else [step.next_F, step.next_Y])]
    places = [M if M.stride(1) == 1 else torch.empty_like(f) for M in written]
    partials = launch(f, y, places[0], places[-1], start)
    for M, place in zip(written, places, strict=True):
        if place is not M:
            M.copy_(place)
    if last:
        add_partials_(step.sums, partials)


def _packed(shaped, E, B, numbers, options, last):
    """A step from copies of E and B; returns the partial norms. shaped: F and all like it."""
    partials, first = empty_partials(B, programs_of(*shaped[0].shape, options)), 0
    unit, lengths = lengths_of(options, shaped[0].shape[1], *(M.stride(0) for M in shaped))
    for samples, (copy,), whole in packed_chunks([E], B, options):
        some = [M[samples] for M in shaped]
        programs = programs_of(*some[0].shape, options)
        _pgd_packed_kernel[(programs,)](
            *some, copy, whole, *numbers, partials, last, first, len(some[0]), lengths[0],
            whole.shape[1], *lengths[1:], UNIT=unit, **options,
        )  # fmt: skip
        first += programs
    return partials


def pgd_residual_(F, Y, E, B, step, l1=0.0, curvature=None) -> None:
    """next_F = max(0, Y + length · (B Eᵀ − l1 − curvature ∘ Y)), E = X − Yᵀ B, and next_Y = next_F
    + momentum · (next_F − F).

    step: a GradientStep (fastnmf/solvers/pgd.py), of which next_F may be F and next_Y may be Y.
    F, Y, next_F, next_Y, start (K, m), E (m, p), B (K, p), any strides; length a tensor of one
    number; curvature (K, 1), contiguous, or None without a penalty. sums None, or (2,) float64
    increased by ‖next_F − start‖² and ‖next_F‖²; next_Y is not written then. 2 m p K flops, in tf32
    where torch allows it. Does not synchronise. Source: Nesterov (1983).
    """
    tf32, last = in_tf32(F), int(step.sums is not None)
    options = {**options_of(F, tf32), "TF32": tf32, "BOUNDED": step.bounded}
    if tf32 and len(F) % 16 == 0 and on_hopper(F):
        # two programs on a multiprocessor: one reads and writes F and Y while the other multiplies
        options["maxnreg"] = 128
    numbers = step.length, F.new_full((1,), step.momentum), *penalty_of(F, l1, curvature)

    def launch(*shaped):
        if packs([E], B):
            return _packed(shaped, E, B, numbers, options, last)
        partials = empty_partials(F, programs_of(*shaped[0].shape, options))
        _pgd_residual_kernel[(len(partials),)](
            *shaped, E, B, *numbers, partials, last, *shaped[0].shape, E.shape[1],
            *(M.stride(0) for M in shaped), *E.stride(), *B.stride(), **options,
        )  # fmt: skip
        return partials

    _with_copies(F, Y, step, lambda M: M.T, launch)


def pgd_normal_(F, Y, C, G, step) -> None:
    """next_F = max(0, Y + length · (C − G Y)), next_Y = next_F + momentum · (next_F − F).

    C (K, m) any strides; G (K, K) symmetric, with contiguous rows; next_Y must not be Y. The rest
    as for pgd_residual_. 2 m K² flops, always in the dtype of F: C − G Y is a difference of large
    numbers.
    """
    # rows are read along: concepts are rows where samples are adjacent
    across, last = F.stride(1) == 1, int(step.sums is not None)
    options = {**options_of(F, False), "BOUNDED": step.bounded}
    momentum = F.new_full((1,), step.momentum)

    def turned(M):
        return M if across else M.T

    def launch(*shaped):
        cross, (height, width) = with_adjacent_columns(turned(C)), shaped[0].shape
        left, right = (G, shaped[1]) if across else (shaped[1], G)
        strides = (M.stride(0) for M in (*shaped, left, right, cross))
        unit, lengths = in_units(width, len(G), *strides)
        if unit == 1:
            options["BLOCK_P"] = 16
        partials = empty_partials(F, programs_of(height, width, options))
        _pgd_normal_kernel[(len(partials),)](
            *shaped, left, right, cross, step.length, momentum, partials, last, height,
            *lengths, UNIT=unit, **options,
        )  # fmt: skip
        return partials

    _with_copies(F, Y, step, turned, launch)
