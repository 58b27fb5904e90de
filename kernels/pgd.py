"""F' = max(0, Y − step · gradient), Y' = F' + momentum · (F' − F): a projected gradient step with
momentum and its product in one kernel.

A program makes a tile of F' and Y', (BLOCK_M, BLOCK_K) in samples and concepts, and its part of the
norms. In residual form the gradient is −B Eᵀ with E = X − Yᵀ B, in normal form G Y − C; the second
needs all of Y, so Y' goes elsewhere. A penalty of F adds l1 + curvature ∘ Y to the gradient; in
normal form C and G have it already. Limited by the tensor cores in tf32, by multiply-adds in
float32, and by memory where p is small: F, Y are read and F', Y' written.
"""

import triton
import triton.language as tl

from .products import in_tf32, launch_of, penalty_of
from .registers import round_tf32, tile_of_program
from .sums import add_partials_, empty_partials, store_partial


@triton.jit
def _pgd_kernel(
    F_ptr, Y_ptr, X_ptr, B_ptr, C_ptr, next_F_ptr, next_Y_ptr, start_ptr, step_ptr, momentum_ptr,
    l1_ptr, curvature_ptr, partial_ptr, K, m, p, stride_fk, stride_fm, stride_yk, stride_ym,
    stride_xm, stride_xp, stride_bk, stride_bp, stride_ck, stride_cm, stride_nk, stride_nm,
    stride_mk, stride_mm, stride_sk, stride_sm, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, GROUP: tl.constexpr, TF32: tl.constexpr, NORMAL: tl.constexpr,
    LAST: tl.constexpr, PENALISED: tl.constexpr,
):  # fmt: skip
    """NORMAL: X is Yᵀ and B is G, and C is subtracted; else X is the residual E. LAST: the norms
    are those of F' − start and F', else nothing is added. PENALISED: l1 + curvature ∘ Y is added
    to the gradient."""
    number: tl.constexpr = F_ptr.dtype.element_ty
    precision: tl.constexpr = "tf32" if TF32 else "ieee"
    row, column = tile_of_program(m, K, BLOCK_M, BLOCK_K, GROUP)
    samples = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    concepts = column.to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    product = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    for index in range(0, tl.cdiv(p, BLOCK_P)):
        j = tl.cast(index, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        place = X_ptr + samples[:, None] * stride_xm + j[None, :] * stride_xp
        x = tl.load(place, mask=(samples < m)[:, None] & (j < p)[None, :], other=0.0)
        place_b = B_ptr + j[:, None] * stride_bp + concepts[None, :] * stride_bk
        b = tl.load(place_b, mask=(j < p)[:, None] & (concepts < K)[None, :], other=0.0)
        if TF32:
            x, b = round_tf32(x), round_tf32(b)
        product = tl.dot(x, b, product, input_precision=precision, out_dtype=number)
    kept = (samples < m)[:, None] & (concepts < K)[None, :]
    if NORMAL:
        place = C_ptr + samples[:, None] * stride_cm + concepts[None, :] * stride_ck
        product = tl.load(place, mask=kept, other=0.0) - product
    place = Y_ptr + samples[:, None] * stride_ym + concepts[None, :] * stride_yk
    y = tl.load(place, mask=kept, other=0.0)
    place = F_ptr + samples[:, None] * stride_fm + concepts[None, :] * stride_fk
    f = tl.load(place, mask=kept, other=0.0)
    product *= tl.load(step_ptr)
    if PENALISED:
        # Y − step · (l1 + curvature ∘ Y), so written that it takes no more registers
        curvature = tl.load(curvature_ptr + concepts, mask=concepts < K, other=0.0)
        scale = 1.0 - tl.load(step_ptr) * curvature
        y = y * scale[None, :] - tl.load(step_ptr) * tl.load(l1_ptr)
    new = tl.maximum(y + product, 0.0)
    if LAST:
        place = start_ptr + samples[:, None] * stride_sm + concepts[None, :] * stride_sk
        change = new - tl.load(place, mask=kept, other=0.0)
        new = tl.where(kept, new, 0.0)
        store_partial(partial_ptr, tl.where(kept, change * change, 0.0), new * new)
    else:
        place = next_Y_ptr + samples[:, None] * stride_mm + concepts[None, :] * stride_mk
        tl.store(place, new + tl.load(momentum_ptr) * (new - f), mask=kept)
    place = next_F_ptr + samples[:, None] * stride_nm + concepts[None, :] * stride_nk
    tl.store(place, new, mask=kept)


def _launch(F, Y, X, B, C, step, penalty=(0.0, None)):
    """X (m, p) times Bᵀ for B (K, p), into a step; see _pgd_kernel. C: None in residual form."""
    programs, options = launch_of(F)
    partials = empty_partials(F, programs)
    normal, last = C is not None, step.sums is not None
    C = C if normal else F
    _pgd_kernel[(programs,)](
        F, Y, X, B, C, step.next_F, step.next_Y, step.start, step.length,
        F.new_full((1,), step.momentum), *penalty_of(F, *penalty), partials, *F.shape, X.shape[1],
        *F.stride(), *Y.stride(), *X.stride(), *B.stride(), *C.stride(), *step.next_F.stride(),
        *step.next_Y.stride(), *step.start.stride(), TF32=not normal and in_tf32(F), NORMAL=normal,
        LAST=last, PENALISED=penalty[1] is not None, **options,
    )  # fmt: skip
    if last:
        add_partials_(step.sums, partials)


def pgd_residual_(F, Y, E, B, step, l1=0.0, curvature=None) -> None:
    """next_F = max(0, Y + length · (B Eᵀ − l1 − curvature ∘ Y)), E = X − Yᵀ B, and next_Y = next_F
    + momentum · (next_F − F).

    step: a GradientStep (fastnmf/solvers/pgd.py), of which next_F may be F and next_Y may be Y.
    F, Y, next_F, next_Y, start (K, m), E (m, p), B (K, p), any strides; length a tensor of one
    number; curvature (K, 1), contiguous, or None without a penalty. sums None, or (2,) float64
    increased by ‖next_F − start‖² and ‖next_F‖²; next_Y is not written then. 2 m p K flops, in tf32
    where torch allows it. Does not synchronise. Source: Nesterov (1983).
    """
    _launch(F, Y, E, B, None, step, (l1, curvature))


def pgd_normal_(F, Y, C, G, step) -> None:
    """next_F = max(0, Y + length · (C − G Y)), next_Y = next_F + momentum · (next_F − F).

    C (K, m) any strides; G (K, K); next_Y must not be Y. The rest as for pgd_residual_. 2 m K²
    flops, always in the dtype of F: C − G Y is a difference of large numbers.
    """
    _launch(F, Y, Y.T, G, C, step)
