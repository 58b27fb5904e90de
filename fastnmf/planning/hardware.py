"""What a processor or a GPU can do and has free: the Machine of the cost model."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..numerics import compute_dtype, in_tf32

# concepts swept between two GEMMs, and bytes of a tile of rows with its workspaces: what is tried
BLOCKS = (64, 128, 256)
# without a sweep between them only the size of the products counts
WIDE_BLOCKS = (512, 1024)
TILE_BYTES = tuple(1 << power for power in range(21, 28))


@dataclass(frozen=True)
class Machine:
    """What a half-step runs on: rates in flops and bytes a second, in float32 and for one thread.

    gemm: products of large matrices. sweep: the block sweep. elementwise: bytes a second of mu's
    and pgd's updates. near, far: bytes a second of what fits in the cache and of what does not.
    link, reduce_seconds: bytes a second to other processes, and the time of a sum however small,
    with the wait for the slowest of them.
    block_seconds, concept_seconds: the time of the calls, a block and a concept of it. blocks (of
    solvers that sweep), wide_blocks (of others), tile_bytes: what is tried. The numbers are those
    of two cores with AVX2; the choice depends on their ratios.
    """

    threads: int = 1
    cache_bytes: int = 16 << 20
    gemm: float = 80e9
    sweep: float = 45e9
    elementwise: float = 8e9
    near: float = 60e9
    far: float = 8e9
    link: float = 1e9
    reduce_seconds: float = 2e-3
    block_seconds: float = 40e-6
    concept_seconds: float = 0.0
    blocks: tuple[int, ...] = BLOCKS
    wide_blocks: tuple[int, ...] = WIDE_BLOCKS
    tile_bytes: tuple[int, ...] = TILE_BYTES


def _cache_bytes() -> int:
    """The last cache of the first core, or 0 where Linux does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max((int(size.read_text().strip().rstrip("K")) << 10 for size in sizes), default=0)
    except (OSError, ValueError):
        return 0


@functools.cache
def machine(threads: int, compiled: bool, wide: bool = False) -> Machine:
    """This machine, with so many threads; without the compiled sweep every concept takes calls.
    wide: whether it has AVX-512."""
    # a virtual machine may be told of a cache that it shares with many
    cache_bytes = min(max(_cache_bytes(), 4 << 20), 16 << 20)
    on = Machine(threads, cache_bytes)
    if wide:
        # measured on two cores of a Xeon (Sapphire Rapids)
        on = replace(on, gemm=160e9, sweep=95e9, elementwise=12e9, near=100e9, far=12e9)
    if compiled:
        return on
    return replace(on, sweep=12e9, elementwise=4e9, concept_seconds=9e-6)


# what a product of tiles needs at least to fill a device
_GPU_TILES = tuple(1 << power for power in range(28, 34))
# Counted and estimated for one H100 (SXM, 132 processors), not measured: products in tf32 at 80 %
# of the data sheet, memory at 90 %, a launch of 5 µs, four a block, 400 Gbit/s to others
H100 = Machine(
    cache_bytes=50 << 20,
    gemm=400e12,
    sweep=150e12,
    elementwise=2.4e12,
    near=5.5e12,
    far=3e12,
    link=50e9,
    reduce_seconds=100e-6,
    block_seconds=20e-6,
    blocks=(128, 256, 512, 1024),
    tile_bytes=_GPU_TILES,
)
H100_FLOAT32 = replace(H100, gemm=50e12, sweep=50e12)


def machine_of(A: Tensor, backend: str) -> Machine:
    """The Machine for data A and this backend; a GPU by the number of its processors."""
    if A.device.type != "cuda":
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        return machine(torch.get_num_threads(), backend != "torch", wide)
    on = H100 if in_tf32(A.new_empty(0, dtype=compute_dtype(A))) else H100_FLOAT32
    share = torch.cuda.get_device_properties(A.device).multi_processor_count / 132
    # without the kernel a concept takes two launches, and reads what is left of its block
    calls = {"concept_seconds": 10e-6, "sweep": 5e12} if backend == "torch" else {}
    rates = {name: getattr(on, name) * share for name in ("gemm", "sweep", "elementwise", "near")}
    return replace(on, **{**rates, **calls})


def floor_seconds(A: Tensor, flops: float) -> float:
    """What an iteration on data A takes on an H100 at least: its flops in float32, or A read
    twice."""
    return max(flops / H100_FLOAT32.gemm, 2 * A.numel() * A.element_size() / H100_FLOAT32.far)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that torch can still allocate there; None where nobody can tell."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
