"""How the kernels that make products of tiles are launched: tiles, programs, precision."""

import torch
import triton

# by the bytes of a number; 128 × 128 in float32 spills, and so do mu's two accumulators of more
# than these in float64
TILES = {
    4: {"BLOCK_M": 128, "BLOCK_K": 64, "BLOCK_P": 32, "GROUP": 8},
    8: {"BLOCK_M": 32, "BLOCK_K": 32, "BLOCK_P": 16, "GROUP": 8},
}


def launch_of(F: torch.Tensor) -> tuple[int, dict[str, int]]:
    """Programs for F (K, m), one a tile, and the options that mu and pgd are launched with."""
    (K, m), size = F.shape, F.element_size()
    tile = TILES[size]
    programs = triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(K, tile["BLOCK_K"])
    return programs, {**tile, "num_warps": 8 if size == 4 else 4, "num_stages": 2}


def in_tf32(F: torch.Tensor) -> bool:
    """Whether torch lets products of F be tf32."""
    if F.dtype != torch.float32:
        return False
    # torch 2.9 and later; the older interface raises where this one contradicts it
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() != "highest" if newer is None else newer == "tf32"


def penalty_of(F: torch.Tensor, l1: float, curvature: torch.Tensor | None) -> tuple:
    """l1 as a tensor, since a number given to a kernel is float32, and the curvature; without a
    penalty F twice, which is not read."""
    return (F, F) if curvature is None else (F.new_full((1,), l1), curvature)
