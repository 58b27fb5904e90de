"""GPUs as the cost model sees them: what a card can do, and what the compiled kernels ask of it.

Rates of cards come from their data sheets, those of kernels from their instructions. Nothing here
was measured with fastnmf."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from ..solvers.base import Size


@dataclass(frozen=True)
class Card:
    """Rates of a card, in flops and bytes a second.

    memory: its bytes. processors: multiprocessors. clock: cycles a second under load. tf32,
    float32: products of large matrices by cuBLAS. far, near: the memory, and the L2 cache of
    `cache` bytes.
    """

    memory: float
    processors: int
    clock: float
    tf32: float
    float32: float
    far: float
    near: float
    cache: int


# products at 75 % of the data sheet, memory at 90 %
H100 = Card(85e9, 132, 1.75e9, 370e12, 50e12, 3.0e12, 5.5e12, 50 << 20)
# 4.3e12 bytes a second were measured on such a card; its data sheet has 4.8e12
H200 = replace(H100, memory=150e9, far=4.3e12)
_H100_NVL = replace(H100, memory=100e9, far=3.5e12)
_H100_PCIE = replace(H100, processors=114, tf32=320e12, float32=43e12, far=1.8e12)
A100 = Card(85e9, 108, 1.4e9, 117e12, 16e12, 1.8e12, 3.5e12, 40 << 20)
_A100_40 = replace(A100, memory=42e9, far=1.4e12)
# part of the name, bytes of memory at least; a GH200 has the memory of one or of the other
_CARDS = (
    ("GH200", 120e9, H200),
    ("GH200", 0, _H100_NVL),
    ("H200", 0, H200),
    ("H100 PCIe", 0, _H100_PCIE),
    ("H100", 90e9, _H100_NVL),
    ("H100", 0, H100),
    ("A100", 60e9, A100),
    ("A100", 0, _A100_40),
)


class Properties(Protocol):
    """What torch.cuda.get_device_properties returns."""

    name: str
    total_memory: int
    multi_processor_count: int


def card_of(found: Properties) -> Card:
    """The Card with these properties, by its name and memory, since torch reports no bandwidth.

    A card that is not listed counts as an H100. Of one with fewer or more multiprocessors, such as
    a part of a card, all rates are proportional to their number.
    """
    listed = (
        card for part, least, card in _CARDS if part in found.name and found.total_memory >= least
    )
    card = next(listed, H100)
    share = found.multi_processor_count / card.processors
    rates = {name: getattr(card, name) * share for name in ("tf32", "float32", "far", "near")}
    return replace(card, memory=found.total_memory, processors=found.multi_processor_count, **rates)


@dataclass(frozen=True)
class Sweep:
    """One compiled block sweep of hals, by its instructions.

    samples: columns of F that a program sweeps. resident: programs that a multiprocessor holds, by
    registers and shared memory. For a concept, and as `earlier_…` for each concept of the block
    before it: latency: cycles that a program takes which waits for nobody; busy: cycles that one
    sample keeps a multiprocessor busy; moved: entries that are read or written for one sample.
    """

    samples: int
    resident: int
    latency: float
    earlier_latency: float
    busy: float
    earlier_busy: float
    moved: float
    earlier_moved: float

    def seconds(self, m: int, size: Size, itemsize: int, card: Card) -> float:
        """The seconds of sweeps of all K concepts in blocks, of m columns of F in one launch: of
        the waves of programs, the busiest multiprocessor, or the memory, whichever is longest."""
        earlier = min(size.block, size.K) / 2
        waves = math.ceil(math.ceil(m / self.samples) / (self.resident * card.processors))
        cycles = max(
            waves * (self.latency + earlier * self.earlier_latency),
            m * (self.busy + earlier * self.earlier_busy) / card.processors,
        )
        moved = m * (self.moved + earlier * self.earlier_moved) * itemsize
        return size.K * max(cycles / card.clock, moved / card.far)


@dataclass(frozen=True)
class Kernels:
    """What kernels/ takes, by the instructions of sm_90.

    many, few: the block sweep in tf32, for at least `many_samples` samples and for fewer;
    many_float32, few_float32: in float32. fused, fused_float32: the rate of products in a kernel
    that updates too, relative to cuBLAS; it reads tiles of `tile` rows and columns from L2. alone:
    operands from which on a multiprocessor holds one such program, so that nothing computes while
    it reads and writes F. rounding: how often a factor is read or written to be rounded to tf32.
    gram_tf32: whether Gram matrices are formed in tf32 where products are.
    """

    many: Sweep
    few: Sweep
    many_float32: Sweep
    few_float32: Sweep
    many_samples: int = 4_096
    fused: float = 1.0
    fused_float32: float = 0.97
    tile: int = 128
    alone: int = 2
    rounding: int = 2
    gram_tf32: bool = True

    def sweep(self, samples: int, tf32: bool) -> Sweep:
        if samples >= self.many_samples:
            return self.many if tf32 else self.many_float32
        return self.few if tf32 else self.few_float32


@dataclass(frozen=True)
class Gpu:
    """A card, what runs on it, and whether products in residual form are tf32."""

    card: Card
    kernels: Kernels
    tf32: bool


# many: limited by what is read from L1 and shared memory; few: by latency
KERNELS = Kernels(
    many=Sweep(128, 6, 290, 0.73, 0.77, 0.0036, 4, 0.008),
    few=Sweep(8, 2, 110, 0.27, 9, 0.033, 4, 1 / 16),
    many_float32=Sweep(128, 6, 110, 4.3, 0.34, 0.0176, 4, 0.008),
    few_float32=Sweep(8, 2, 110, 0.27, 9, 0.033, 4, 1 / 16),
)
# those whose instructions were counted first, to compare with
FORMER_KERNELS = replace(
    KERNELS,
    many=Sweep(128, 2, 1050, 0, 0, 0, 6, 0),
    few=Sweep(32, 8, 1050, 0, 0, 0, 6, 0),
    many_float32=Sweep(128, 4, 1050, 9.6, 0, 0, 6, 0),
    few_float32=Sweep(32, 11, 1050, 16, 0, 0, 6, 0),
    many_samples=16_384,
    fused=0.2,
    fused_float32=0.76,
    rounding=4,
    gram_tf32=False,
)
