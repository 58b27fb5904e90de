"""What the kernels that make products of tiles share: the product itself, tiles, programs,
precision."""

import torch
import triton
import triton.language as tl

from .registers import FUSED, round_tf32

# Tiles of rows, columns and what is summed over, by whether products are in tf32 and by the bytes
# of a number. By the code they are compiled to for sm_90 (README.md): in tf32, a smaller tile reads
# more bytes for each flop than the L2 cache gives; in float32, two to four programs of 64 × 64 are
# resident on a multiprocessor where one of 128 × 64 is; more than these spills.
TILES = {
    (True, 4): {"BLOCK_M": 128, "BLOCK_K": 128, "BLOCK_P": 32, "num_warps": 8, "PARTS": 4},
    (False, 4): {"BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_P": 32, "num_warps": 4, "PARTS": 2},
    (False, 8): {"BLOCK_M": 32, "BLOCK_K": 32, "BLOCK_P": 16, "num_warps": 4, "PARTS": 1},
}
# With two, nothing would be copied during a product. GPUs of AMD have 64 KB to hold what is copied.
STAGES, STAGES_ON_AMD = 3, 2
# rows of tiles that programs go through together, so that these share operands in the L2 cache
GROUP = 8


@triton.jit
def product_of(
    left_ptr, right_ptr, rows, columns, height, width, p, stride_lr, stride_lp, stride_rp,
    stride_rc, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """The tile (rows, columns) of left (height, p) times right (p, width), any strides."""
    number: tl.constexpr = left_ptr.dtype.element_ty
    precision: tl.constexpr = "tf32" if TF32 else "ieee"
    product = tl.zeros((BLOCK_M, BLOCK_K), dtype=number)
    for step in range(0, tl.cdiv(p, BLOCK_P)):
        j = tl.cast(step, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        place = left_ptr + rows[:, None] * stride_lr + j[None, :] * stride_lp
        x = tl.load(place, mask=(rows < height)[:, None] & (j < p)[None, :], other=0.0)
        place = right_ptr + j[:, None] * stride_rp + columns[None, :] * stride_rc
        b = tl.load(place, mask=(j < p)[:, None] & (columns < width)[None, :], other=0.0)
        if TF32:
            x, b = round_tf32(x), round_tf32(b)
        product = tl.dot(x, b, product, input_precision=precision, out_dtype=number)
    return product


def options_of(F: torch.Tensor, tf32: bool) -> dict[str, int]:
    """Tile, warps and stages of a kernel that makes products of F's dtype."""
    stages = STAGES_ON_AMD if torch.version.hip else STAGES
    return {**TILES[tf32, F.element_size()], "GROUP": GROUP, "num_stages": stages, **FUSED}


def programs_of(height: int, width: int, options: dict[str, int]) -> int:
    """One a tile of a (height, width) matrix."""
    return triton.cdiv(height, options["BLOCK_M"]) * triton.cdiv(width, options["BLOCK_K"])


def in_units(*numbers: int) -> tuple[int, list[int]]:
    """(16, the numbers by 16) where 16 divides all of them, and loads may be of several numbers,
    else (1, the numbers). So there are two compiled kernels, and not one for each mixture."""
    unit = 16 if all(number % 16 == 0 for number in numbers) else 1
    return unit, [number // unit for number in numbers]


def lengths_of(options: dict[str, int], *numbers: int) -> tuple[int, list[int]]:
    """`in_units` in tf32. In float32 in units of one: it takes 1 to 4 % of a kernel that multiplies
    for so long, by its code, and two kernels fewer are compiled."""
    return in_units(*numbers) if options["TF32"] else (1, list(numbers))


def with_adjacent_columns(M: torch.Tensor) -> torch.Tensor:
    """M itself where its columns are adjacent, else a copy."""
    return M if M.stride(1) == 1 else M.contiguous()


def in_tf32(F: torch.Tensor) -> bool:
    """Whether torch lets products of F be tf32."""
    if F.dtype != torch.float32:
        return False
    # torch 2.9 and later; the older interface raises where this one contradicts it
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() != "highest" if newer is None else newer == "tf32"


def on_hopper(F: torch.Tensor) -> bool:
    """Whether F is on a GPU with wgmma, whose products take few registers, or without memory."""
    if F.device.type != "cuda" or torch.version.hip:
        return F.device.type == "meta" and not torch.version.hip
    return torch.cuda.get_device_capability(F.device)[0] >= 9


def penalty_of(F: torch.Tensor, l1: float, curvature: torch.Tensor | None) -> tuple:
    """Whether there is a penalty, l1 as a tensor, since a number given to a kernel is float32, and
    the curvature; without a penalty 0, and F twice, which is not read."""
    return (0, F, F) if curvature is None else (1, F.new_full((1,), l1), curvature)
