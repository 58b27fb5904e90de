"""The Machine of the cost model: the rates of a processor or a GPU, and its free memory. Those of
GPUs are in cards.py."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..numerics import compute_dtype
from ..precision import in_tf32
from .cards import KERNELS, Card, Gpu, Kernels, card_of

# the candidates of a plan: concepts swept between two GEMMs
BLOCKS = (64, 128, 256)
# without a sweep between them only the size of the products matters
WIDE_BLOCKS = (512, 1024)
# and bytes of a tile of rows with its workspaces
TILE_BYTES = tuple(1 << power for power in range(21, 28))


@dataclass(frozen=True)
class Machine:
    """Rates of a machine in flops and bytes a second, in float32 and for one thread.

    gemm: flops of products of large matrices. sweep: flops of the block sweep. elementwise: bytes
    of the updates of mu and pgd. sparse: flops of products with a sparse matrix, besides
    stored_seconds for each of its entries. near, far: bytes of data that fit in the cache, and that
    do not. link: bytes to other processes. reduce_seconds: the time of the smallest sum over
    processes, with the wait for the slowest. block_seconds, concept_seconds: the time of the calls
    for a block, and for each concept in it. blocks (solvers that sweep), wide_blocks (others),
    tile_bytes: the candidates of a plan. gpu: what the model of a GPU (gpu.py) takes instead of
    gemm, elementwise and block_seconds. The defaults are those of two cores with AVX2; the choice
    depends on their ratios.
    """

    threads: int = 1
    cache_bytes: int = 16 << 20
    gemm: float = 80e9
    sweep: float = 45e9
    elementwise: float = 8e9
    sparse: float = 30e9
    stored_seconds: float = 0.9e-9
    near: float = 60e9
    far: float = 8e9
    link: float = 1e9
    reduce_seconds: float = 2e-3
    block_seconds: float = 40e-6
    concept_seconds: float = 0.0
    blocks: tuple[int, ...] = BLOCKS
    wide_blocks: tuple[int, ...] = WIDE_BLOCKS
    tile_bytes: tuple[int, ...] = TILE_BYTES
    gpu: Gpu | None = None


def _cache_bytes() -> int:
    """The largest cache of the first core, or 0 where Linux does not report it."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max((int(size.read_text().strip().rstrip("K")) << 10 for size in sizes), default=0)
    except (OSError, ValueError):
        return 0


@functools.cache
def machine(threads: int, compiled: bool, wide: bool = False) -> Machine:
    """The Machine of this processor.

    compiled: whether the sweep is compiled; else each concept takes calls. wide: whether it has
    AVX-512.
    """
    # a virtual machine may report a cache that it shares with many others
    cache_bytes = min(max(_cache_bytes(), 4 << 20), 16 << 20)
    on = Machine(threads, cache_bytes)
    if wide:
        # measured on two cores of a Xeon (Sapphire Rapids)
        on = replace(on, gemm=160e9, sweep=95e9, elementwise=12e9, near=100e9, far=12e9)
    if compiled:
        return on
    return replace(on, sweep=12e9, elementwise=4e9, concept_seconds=9e-6)


# candidates on a GPU; bytes of tiles: from 256 MB on, products fill a device
_GPU_BLOCKS = (128, 256, 512, 1024)
_GPU_TILES = tuple(1 << power for power in range(28, 34))


def gpu_machine(
    card: Card, *, tf32: bool, compiled: bool = True, kernels: Kernels = KERNELS
) -> Machine:
    """The Machine of a card. tf32: whether products in residual form are. compiled: whether there
    are kernels for it; else a concept takes two launches, and reads the rest of its block.

    Assumed: 400 Gbit/s to other processes.
    """
    return Machine(
        cache_bytes=card.cache,
        sweep=5e12,
        near=card.near,
        far=card.far,
        link=50e9,
        reduce_seconds=100e-6,
        concept_seconds=0.0 if compiled else 10e-6,
        blocks=_GPU_BLOCKS,
        tile_bytes=_GPU_TILES,
        gpu=Gpu(card, kernels, tf32),
    )


def machine_of(A: Tensor, backend: str) -> Machine:
    """The Machine for data A and a backend."""
    if A.device.type != "cuda":
        wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
        return machine(torch.get_num_threads(), backend != "torch", wide)
    card = card_of(torch.cuda.get_device_properties(A.device))
    tf32 = in_tf32(torch.empty(0, dtype=compute_dtype(A), device=A.device))
    return gpu_machine(card, tf32=tf32, compiled=backend != "torch")


def floor_seconds(on: Machine, flops: float, bytes_: float) -> float:
    """The least time of an iteration in normal form: its flops in float32, or reading its data
    twice."""
    return max(flops / (on.gpu.card.float32 if on.gpu else on.gemm), 2 * bytes_ / on.far)


def sparse_seconds(on: Machine, entries: float, K: int, itemsize: int) -> float:
    """The time of a product of a sparse matrix of so many entries with one of K columns or rows."""
    each = 2 * K * itemsize / (4 * on.sparse) + on.stored_seconds
    return entries * each / on.threads


def free_bytes(device: torch.device) -> int | None:
    """Bytes that torch can still allocate on a GPU; None on other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
