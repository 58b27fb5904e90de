"""What the launchers of the kernels launch at the sizes that are timed on a GPU, with tensors
without memory, and what it is compiled to."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import sass
import torch
import triton
from fastnmf.kernels import ahead, hals, mu, pgd
from fastnmf.kernels import round as rounding
from triton.backends.compiler import GPUTarget

from fastnmf.precision import products_in
from fastnmf.solvers.pgd import GradientStep

# bytes of shared memory that one program may take
SHARED = {80: 163 << 10, 90: 227 << 10}
# n, d, K, and the concepts of a block
MANY, BLOCK, FEW = (100_000, 768, 10_000), 1024, (63_700, 2_048, 10)
# of an H100 or H200
MULTIPROCESSORS = 132


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(dtype: torch.dtype = torch.float32) -> dict[str, Callable]:
    """Name → a call of a launcher, with the layouts of the codes (n × K) or the dictionary."""
    new = functools.partial(empty, dtype=dtype)
    sums, step = empty(3, dtype=torch.float64), new()
    n, d, K = MANY
    Zt, D, A = new(n, K).T, new(K, d), new(n, d)
    penalty = 0.5, new(K, 1)

    def hals_block(F):
        m = F.shape[1]
        return lambda: hals.hals_block_(
            F[:BLOCK], new(BLOCK, m), new(BLOCK, BLOCK), new(BLOCK, m), sums
        )

    def to(F, last=True):
        return GradientStep(F, F, F, step, 0.5, sums if last else None)

    found = {
        "hals_block codes": hals_block(Zt),
        "hals_block dictionary": hals_block(D),
        # neither are tiles of concepts full, nor rows aligned
        "few hals_block codes": lambda: hals.hals_block_(
            new(n, 131).T, new(131, n), new(131, 131), new(131, n), sums
        ),
        "mu_residual codes": lambda: mu.mu_residual_(Zt, A, A, D, sums, *penalty),
        "mu_residual dictionary": lambda: mu.mu_residual_(D, A.T, A.T, Zt, sums),
        "pgd_residual codes": lambda: pgd.pgd_residual_(Zt, Zt, A, D, to(Zt), *penalty),
        "pgd_residual dictionary": lambda: pgd.pgd_residual_(D, D, A.T, Zt, to(D, False)),
        "16-bit mu_residual codes": lambda: mu.mu_residual_(Zt, A.bfloat16(), A, D, sums),
        "16-bit mu_residual dictionary": lambda: mu.mu_residual_(D, A.half().T, A.T, Zt, sums),
    }
    if dtype == torch.float32:
        wide, small = new(n, BLOCK), new(BLOCK, d)
        found |= {
            "round_tf32 codes": lambda: rounding.round_tf32_(wide.T, Zt[BLOCK : 2 * BLOCK]),
            "round_tf32 dictionary": lambda: rounding.round_tf32_(small, D[:BLOCK]),
        }
    for K, name in ((FEW[2], "few "), (256, "")):
        n, d, _ = FEW
        found |= {
            f"{name}{call}": make
            for call, make in normal_calls(new(n, K).T, new(K, d), new(K, K), to, sums).items()
        }
    return found


def normal_calls(Zt, D, G, to, sums) -> dict[str, Callable]:
    return {
        "hals_sweep codes": lambda: hals.hals_sweep_(Zt, Zt, G, sums, 3),
        "hals_sweep dictionary": lambda: hals.hals_sweep_(D, D, G, sums),
        "mu_normal codes": lambda: mu.mu_normal_(Zt, Zt, G, Zt, sums),
        "mu_normal dictionary": lambda: mu.mu_normal_(D, D, G, D, sums, 0.5),
        "pgd_normal codes": lambda: pgd.pgd_normal_(Zt, Zt, Zt, G, to(Zt)),
        "pgd_normal dictionary": lambda: pgd.pgd_normal_(D, D, D, G, to(D, False)),
    }


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched, and its programs at each launch."""

    variant: ahead.Variant
    programs: tuple[int, ...]


def launches(call: Callable, precision: str, target: GPUTarget) -> list[Launch]:
    """Of the call, every variant once."""
    runs, run = [], triton.runtime.jit.JITFunction.run

    def record(kernel, *given, grid, warmup, **options):
        again = functools.partial(run, kernel, *given, grid=grid, warmup=warmup, **options)
        runs.append((again, functools.reduce(lambda a, b: a * b, grid)))

    hopper = mock.patch.object(pgd, "on_hopper", return_value=target.arch == 90)
    launching = mock.patch.object(triton.runtime.jit.JITFunction, "run", record)
    with hopper, launching, products_in(precision):
        call()
    found: dict[ahead.Variant, tuple[int, ...]] = {}
    for again, programs in runs:
        (variant,) = ahead.variants([again], target)
        found[variant] = (*found.get(variant, ()), programs)
    return [Launch(*each) for each in found.items()]


@dataclass(frozen=True)
class Built:
    """A compiled kernel: its code, and what it occupies."""

    launch: Launch
    code: sass.Code
    shared: int
    warps: int
    capability: int

    @property
    def resident(self) -> int:
        """Programs that a multiprocessor holds at once."""
        return self.code.resident(self.shared, self.warps, self.capability)

    @property
    def waves(self) -> float:
        """Rounds of programs that fill the device, over all launches."""
        return sum(self.launch.programs) / (self.resident * MULTIPROCESSORS)


def built(call: Callable, precision: str, capability: int) -> Iterator[Built]:
    """Every kernel that the call launches, compiled."""
    target = GPUTarget("cuda", capability, 32)
    for launch in launches(call, precision, target):
        kernel = ahead.compiled(launch.variant, target)
        code, metadata = sass.read(kernel.asm["cubin"]), kernel.metadata
        yield Built(launch, code, metadata.shared, metadata.num_warps, capability)


def names() -> list[str]:
    return list(calls()) if importlib.util.find_spec("fastnmf.kernels") else []


def in_tf32(name: str) -> bool:
    """Whether this call computes products in tf32 where torch allows it."""
    return "block" in name or "residual" in name
