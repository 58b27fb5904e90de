"""F ← F ∘ (B Xᵀ) / (B Bᵀ F): multiplicative updates, products and update in one kernel.

A program makes a tile of F, (BLOCK_M, BLOCK_K) in samples and concepts. In residual form numerator
and denominator are both products with B, of X and of W = Fᵀ B: they share the tile of B, stay in
registers, and F is updated in place. In normal form the numerator C is given (it serves many
updates) and the denominator G F needs all of F, so the new F goes elsewhere. A penalty of F adds
l1 + curvature ∘ F to the denominator, from the same tile of F (G includes the curvature).
Limited by the tensor cores in tf32, by multiply-adds in float32.
"""

import triton
import triton.language as tl

from .products import in_tf32, launch_of, penalty_of
from .registers import round_tf32, tile_of_program
from .sums import add_partials_, empty_partials, store_partial


@triton.jit
def _store_update(
    F_ptr, updated_ptr, partial_ptr, numerator, denominator, l1_ptr, curvature_ptr, samples,
    concepts, m, K, stride_fk, stride_fm, stride_uk, stride_um, SLOPED: tl.constexpr,
    CURVED: tl.constexpr,
):  # fmt: skip
    """F ∘ numerator / denominator → updated, of one tile; leaves its part of the norms. SLOPED: the
    denominator has l1 as well; CURVED: and curvature ∘ F."""
    kept = (samples < m)[:, None] & (concepts < K)[None, :]
    place = F_ptr + samples[:, None] * stride_fm + concepts[None, :] * stride_fk
    f = tl.load(place, mask=kept, other=0.0)
    if SLOPED:
        denominator += tl.load(l1_ptr)
    if CURVED:
        denominator += tl.load(curvature_ptr + concepts, mask=concepts < K, other=0.0)[None, :] * f
    least = 1.1754943508222875e-38 if f.dtype.primitive_bitwidth == 32 else 2.2250738585072014e-308
    # F ∘ C first: the quotient is bounded, while C / denominator can overflow
    new = f * numerator / tl.maximum(denominator, least)
    new = tl.where((denominator > 0) & kept, new, f)
    store_partial(partial_ptr, (new - f) * (new - f), new * new)
    place = updated_ptr + samples[:, None] * stride_um + concepts[None, :] * stride_uk
    tl.store(place, new, mask=kept)


@triton.jit
def _mu_residual_kernel(
    F_ptr, X_ptr, W_ptr, B_ptr, l1_ptr, curvature_ptr, partial_ptr, K, m, p, stride_fk, stride_fm,
    stride_xm, stride_xp, stride_wm, stride_wp, stride_bk, stride_bp, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, GROUP: tl.constexpr, TF32: tl.constexpr,
    PENALISED: tl.constexpr,
):  # fmt: skip
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
        F_ptr, F_ptr, partial_ptr, numerator, denominator, l1_ptr, curvature_ptr, samples,
        concepts, m, K, stride_fk, stride_fm, stride_fk, stride_fm, PENALISED, PENALISED,
    )  # fmt: skip


@triton.jit
def _mu_normal_kernel(
    F_ptr, C_ptr, G_ptr, updated_ptr, l1_ptr, partial_ptr, K, m, stride_fk, stride_fm,
    stride_ck, stride_cm, stride_g, stride_uk, stride_um, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, GROUP: tl.constexpr, SLOPED: tl.constexpr,
):  # fmt: skip
    number: tl.constexpr = F_ptr.dtype.element_ty
    row, column = tile_of_program(m, K, BLOCK_M, BLOCK_K, GROUP)
    samples = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    concepts = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    denominator = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    for step in range(0, tl.cdiv(K, BLOCK_P)):
        j = tl.cast(step, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        place = F_ptr + samples[:, None] * stride_fm + j[None, :] * stride_fk
        f = tl.load(place, mask=(samples < m)[:, None] & (j < K)[None, :], other=0.0)
        # G is symmetric: read along its rows, as the tensor cores want it
        place_g = G_ptr + concepts[None, :] * stride_g + j[:, None]
        g = tl.load(place_g, mask=(j < K)[:, None] & (concepts < K)[None, :], other=0.0)
        denominator = tl.dot(f, g, denominator, input_precision="ieee", out_dtype=number)
    place_c = C_ptr + samples[:, None] * stride_cm + concepts[None, :] * stride_ck
    kept = (samples < m)[:, None] & (concepts < K)[None, :]
    _store_update(
        F_ptr, updated_ptr, partial_ptr, tl.load(place_c, mask=kept, other=0.0),
        denominator, l1_ptr, l1_ptr, samples, concepts, m, K, stride_fk, stride_fm, stride_uk,
        stride_um, SLOPED, False,
    )  # fmt: skip


def mu_residual_(F, X, W, B, sums, l1=0.0, curvature=None) -> None:
    """F ← F ∘ (B Xᵀ) / (B Wᵀ + l1 + curvature ∘ F) in place, W = Fᵀ B; where the denominator is
    zero F is left as it is.

    F (K, m), X, W (m, p), B (K, p), any strides; X in F's dtype or in 16 bits; curvature (K, 1),
    contiguous, or None without a penalty. sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². 4 m p K
    flops, in tf32 where torch allows it. Does not synchronise.
    """
    programs, options = launch_of(F)
    if X.dtype != F.dtype and not in_tf32(F):
        # with two, X goes through 4,752 bytes of stack, in one variant also with three
        options["num_stages"] = 1
    partials = empty_partials(F, programs)
    _mu_residual_kernel[(programs,)](
        F, X, W, B, *penalty_of(F, l1, curvature), partials, *F.shape, X.shape[1], *F.stride(),
        *X.stride(), *W.stride(), *B.stride(), TF32=in_tf32(F), PENALISED=curvature is not None,
        **options,
    )  # fmt: skip
    add_partials_(sums, partials)


def mu_normal_(F, C, G, updated, sums, l1=0.0) -> None:
    """updated = F ∘ C / (G F + l1); where the denominator is zero F is copied as it is.

    F, C, updated (K, m), any strides; G (K, K) with contiguous rows. The rest as for mu_residual_.
    2 m K² flops, always in the dtype of F: in tf32 the difference to the fixed point is lost.
    """
    programs, options = launch_of(F)
    partials = empty_partials(F, programs)
    # a number given to a kernel is float32
    slope = F.new_full((1,), l1) if l1 else F
    _mu_normal_kernel[(programs,)](
        F, C, G, updated, slope, partials, *F.shape, *F.stride(), *C.stride(), G.stride(0),
        *updated.stride(), SLOPED=l1 > 0, **options,
    )  # fmt: skip
    add_partials_(sums, partials)
