"""F ← F ∘ (B Xᵀ) / (B Bᵀ F): multiplicative updates, products and update in one kernel.

A program makes a tile of F. In residual form numerator and denominator are both products with B, of
X and of W = Fᵀ B: they share the tile of B, stay in registers, and F is updated in place. The
operands are packed first (packing.py), unless B is too large for a copy. In normal form the
numerator C is given (it serves many updates) and the denominator G F needs all of F, so the new F
goes elsewhere. A penalty of F adds l1 + curvature ∘ F to the denominator, from the same tile of F
(G includes the curvature). Limited by the L2 cache in tf32, by multiply-adds in float32.
"""

import torch
import triton
import triton.language as tl

from .packing import packed_chunks, packs
from .products import (
    in_tf32,
    in_units,
    lengths_of,
    options_of,
    penalty_of,
    product_of,
    programs_of,
    with_adjacent_columns,
)
from .registers import parts_of, round_tf32, tile_of_program
from .sums import add_partials_, empty_partials, store_partial


@triton.jit
def _store_part(
    F_ptr, updated_ptr, numerator, denominator, penalised, l1_ptr, curvature_ptr, rows, begin,
    height, width, stride_f, stride_u, CURVED: tl.constexpr,
):  # fmt: skip
    """F ∘ numerator / denominator → updated, of the columns from `begin` on; returns ‖Δ‖² and ‖F‖²
    of every row."""
    columns = begin + tl.arange(0, numerator.shape[1])
    kept = (rows < height)[:, None] & (columns < width)[None, :]
    place = F_ptr + rows[:, None] * stride_f + columns[None, :]
    f = tl.load(place, mask=kept, other=0.0)
    denominator += tl.load(l1_ptr, mask=penalised != 0, other=0.0)
    if CURVED:
        some = columns < width * penalised
        denominator += tl.load(curvature_ptr + columns, mask=some, other=0.0)[None, :] * f
    least = 1.1754943508222875e-38 if f.dtype.primitive_bitwidth == 32 else 2.2250738585072014e-308
    # F ∘ C first: the quotient is bounded, while C / denominator can overflow
    new = f * numerator / tl.maximum(denominator, least)
    new = tl.where(denominator > 0, new, f)
    place = updated_ptr + rows[:, None] * stride_u + columns[None, :]
    tl.store(place, new, mask=kept)
    return tl.sum((new - f) * (new - f), 1), tl.sum(new * new, 1)


@triton.jit
def _store_update(
    F_ptr, updated_ptr, partial_ptr, numerator, denominator, penalised, l1_ptr, curvature_ptr, rows,
    begin, height, width, stride_f, stride_u, CURVED: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """F ∘ numerator / denominator → updated, of one tile; leaves its part of the norms. penalised:
    the denominator has l1 as well; CURVED: and curvature ∘ F, where columns are concepts. PARTS: in
    which columns are done one after the other, which takes fewer registers."""
    numerators, denominators = parts_of(numerator, PARTS), parts_of(denominator, PARTS)
    changed = tl.zeros((numerator.shape[0],), dtype=numerator.dtype)
    squared = tl.zeros((numerator.shape[0],), dtype=numerator.dtype)
    for part in tl.static_range(PARTS):
        more = _store_part(
            F_ptr, updated_ptr, numerators[part], denominators[part], penalised, l1_ptr,
            curvature_ptr, rows, begin + part * (numerator.shape[1] // PARTS), height, width,
            stride_f, stride_u, CURVED,
        )  # fmt: skip
        changed += more[0]
        squared += more[1]
    store_partial(partial_ptr, changed, squared)


@triton.jit(do_not_specialize=["penalised", "first", "m", "K", "stride_f"])
def _mu_packed_kernel(
    F_ptr, X_ptr, W_ptr, B_ptr, penalised, l1_ptr, curvature_ptr, partial_ptr, first, m, K, width,
    stride_f, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr, PARTS: tl.constexpr, TF32: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """X, W and B as `packed` makes them, (…, width) in whole tiles; concepts of F adjacent. first:
    the number of programs that were launched for other samples."""
    number: tl.constexpr = F_ptr.dtype.element_ty
    precision: tl.constexpr = "tf32" if TF32 else "ieee"
    K, stride_f = K * UNIT, stride_f * UNIT
    row, column = tile_of_program(m, K, BLOCK_M, BLOCK_K, GROUP)
    samples = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    concepts = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    numerator = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    denominator = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    for step in range(0, width // BLOCK_P):
        j = step * BLOCK_P + tl.arange(0, BLOCK_P)
        b = tl.load(B_ptr + concepts[None, :] * width + j[:, None])
        x = tl.load(X_ptr + samples[:, None] * width + j[None, :])
        w = tl.load(W_ptr + samples[:, None] * width + j[None, :])
        numerator = tl.dot(x, b, numerator, input_precision=precision, out_dtype=number)
        denominator = tl.dot(w, b, denominator, input_precision=precision, out_dtype=number)
    _store_update(
        F_ptr, F_ptr, partial_ptr + 2 * first, numerator, denominator, penalised, l1_ptr,
        curvature_ptr, samples, column.to(tl.int64) * BLOCK_K, m, K, stride_f, stride_f, True,
        PARTS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["penalised", "p"])
def _mu_residual_kernel(
    F_ptr, X_ptr, W_ptr, B_ptr, penalised, l1_ptr, curvature_ptr, partial_ptr, m, K, p, stride_f,
    stride_xm, stride_xp, stride_wm, stride_wp, stride_bk, stride_bp, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """The same with X, W and B where they are."""
    number: tl.constexpr = F_ptr.dtype.element_ty
    precision: tl.constexpr = "tf32" if TF32 else "ieee"
    row, column = tile_of_program(m, K, BLOCK_M, BLOCK_K, GROUP)
    samples = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    concepts = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    numerator = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    denominator = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    for step in range(0, tl.cdiv(p, BLOCK_P)):
        j = tl.cast(step, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        kept = (samples < m)[:, None] & (j < p)[None, :]
        place = B_ptr + j[:, None] * stride_bp + concepts[None, :] * stride_bk
        b = tl.load(place, mask=(j < p)[:, None] & (concepts < K)[None, :], other=0.0)
        place_x = X_ptr + samples[:, None] * stride_xm + j[None, :] * stride_xp
        x = tl.load(place_x, mask=kept, other=0.0)
        place_w = W_ptr + samples[:, None] * stride_wm + j[None, :] * stride_wp
        w = tl.load(place_w, mask=kept, other=0.0)
        if TF32:
            b, w = round_tf32(b), round_tf32(w)
            if x.dtype == number:
                x = round_tf32(x)
        # 16-bit numbers are exact in tf32
        x = x.to(number)
        numerator = tl.dot(x, b, numerator, input_precision=precision, out_dtype=number)
        denominator = tl.dot(w, b, denominator, input_precision=precision, out_dtype=number)
    _store_update(
        F_ptr, F_ptr, partial_ptr, numerator, denominator, penalised, l1_ptr, curvature_ptr,
        samples, column.to(tl.int64) * BLOCK_K, m, K, stride_f, stride_f, True, PARTS,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "penalised", "height", "width", "K", "stride_f", "stride_l", "stride_r", "stride_c",
        "stride_u",
    ]
)  # fmt: skip
def _mu_normal_kernel(
    F_ptr, left_ptr, right_ptr, C_ptr, updated_ptr, penalised, l1_ptr, partial_ptr, height, width,
    K, stride_f, stride_l, stride_r, stride_c, stride_u, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """F, C, updated (height, width), of which either are concepts: left (height, K) times right is
    G F, or its transpose. Lengths of rows, and strides, in units of UNIT."""
    width, K = width * UNIT, K * UNIT
    stride_f, stride_l, stride_r = stride_f * UNIT, stride_l * UNIT, stride_r * UNIT
    stride_c, stride_u = stride_c * UNIT, stride_u * UNIT
    row, column = tile_of_program(height, width, BLOCK_M, BLOCK_K, GROUP)
    rows = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    denominator = product_of(
        left_ptr, right_ptr, rows, columns, height, width, K, stride_l, 1, stride_r, 1, BLOCK_M,
        BLOCK_K, BLOCK_P, False,
    )  # fmt: skip
    kept = (rows < height)[:, None] & (columns < width)[None, :]
    C = tl.load(C_ptr + rows[:, None] * stride_c + columns[None, :], mask=kept, other=0.0)
    _store_update(
        F_ptr, updated_ptr, partial_ptr, C, denominator, penalised, l1_ptr, l1_ptr, rows,
        column.to(tl.int64) * BLOCK_K, height, width, stride_f, stride_u, False, PARTS,
    )  # fmt: skip


def mu_residual_(F, X, W, B, sums, l1=0.0, curvature=None) -> None:
    """F ← F ∘ (B Xᵀ) / (B Wᵀ + l1 + curvature ∘ F) in place, W = Fᵀ B; where the denominator is
    zero F is left as it is.

    F (K, m), X, W (m, p), B (K, p), any strides; X in F's dtype or in 16 bits; curvature (K, 1),
    contiguous, or None without a penalty. sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². 4 m p K
    flops, in tf32 where torch allows it. Does not synchronise.
    """
    # the dictionary is small beside what it is multiplied with
    rows, tf32 = with_adjacent_columns(F.T), in_tf32(F)
    options, penalty = options_of(F, tf32), penalty_of(F, l1, curvature)
    partials = empty_partials(F, programs_of(*rows.shape, options))
    if packs((X, W), B):
        _packed_(rows, (X, W), B, partials, penalty, {**options, "TF32": tf32})
    else:
        if X.dtype != F.dtype and not tf32:
            # with more, X goes through thousands of bytes of stack
            options["num_stages"] = 1
        _mu_residual_kernel[(len(partials),)](
            rows, X, W, B, *penalty, partials, *rows.shape, X.shape[1], rows.stride(0),
            *X.stride(), *W.stride(), *B.stride(), TF32=tf32, **options,
        )  # fmt: skip
    if rows.data_ptr() != F.data_ptr():
        F.copy_(rows.T)
    add_partials_(sums, partials)


def _packed_(rows, operands, B, partials, penalty, options) -> None:
    """mu_residual_ from copies of its operands, X and W, and of B."""
    first, (unit, (K, stride)) = 0, lengths_of(options, rows.shape[1], rows.stride(0))
    for samples, copies, whole in packed_chunks(operands, B, options):
        some = rows[samples]
        programs = programs_of(*some.shape, options)
        _mu_packed_kernel[(programs,)](
            some, *copies, whole, *penalty, partials, first, len(some), K, whole.shape[1], stride,
            UNIT=unit, **options,
        )  # fmt: skip
        first += programs


def mu_normal_(F, C, G, updated, sums, l1=0.0) -> None:
    """updated = F ∘ C / (G F + l1); where the denominator is zero F is copied as it is.

    F, C, updated (K, m), any strides; G (K, K) symmetric, with contiguous rows. The rest as for
    mu_residual_. 2 m K² flops, always in the dtype of F: in tf32 the difference to the fixed point
    is lost.
    """
    # rows are read along: concepts are rows where samples are adjacent
    across = F.stride(1) == 1
    f, cross, new = (M if across else M.T for M in (F, C, updated))
    given, f, cross = new, with_adjacent_columns(f), with_adjacent_columns(cross)
    new = given if given.stride(1) == 1 else torch.empty_like(f)
    left, right = (G, f) if across else (f, G)
    options, (height, width) = options_of(F, False), f.shape
    strides = (M.stride(0) for M in (f, left, right, cross, new))
    unit, numbers = in_units(width, len(G), *strides)
    if unit == 1:
        options["BLOCK_P"] = 16
    partials = empty_partials(F, programs_of(height, width, options))
    # a number given to a kernel is float32
    slope = F.new_full((1,), l1) if l1 else F
    _mu_normal_kernel[(len(partials),)](
        f, left, right, cross, new, int(l1 > 0), slope, partials, height, *numbers,
        UNIT=unit, **options,
    )  # fmt: skip
    if new is not given:
        given.copy_(new)
    add_partials_(sums, partials)
