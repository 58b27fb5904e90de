"""Triton kernels that the GPU study launches, compiled ahead by several processes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from fastnmf.backends import triton
from fastnmf.precision import products_in
from support import checkout
from support.gpu_checks import IN_FLOAT32, PACKED, called, cases
from support.gpu_sizes import FULL, Sizes

PRECISIONS = ("highest", "high")


def calls(sizes: Sizes, device: str = "meta") -> list[Callable[[], None]]:
    """Every launch of the checks; what is timed is specialised alike."""
    ops = triton.load()

    def call(case, precision) -> None:
        with products_in(precision):
            called(case, ops, device)

    found = [
        *cases(sizes.checked),
        *cases(sizes.normal, IN_FLOAT32),
        *cases(sizes.unpacked, PACKED, narrow=False),
    ]
    every = [(case, precision) for case in found for precision in PRECISIONS]
    return [
        lambda case=case, precision=precision: call(case, precision) for case, precision in every
    ]


def compiled(sizes: Sizes, target=None, most: int | None = None) -> Iterator[dict]:
    """Compile them for the current device, or for a target; `most`: the first only."""
    ahead = importlib.import_module("fastnmf.kernels.ahead")
    begun = time.perf_counter()
    every = calls(sizes)
    found = ahead.compile_ahead(every if most is None else every[:most], target=target)
    wall = time.perf_counter() - begun
    slowest = max(found, key=found.get)
    yield {"note": f"{len(found)} variants of Triton kernels compiled ahead",
           "variants": len(found), "seconds": wall, "of_one_process": sum(found.values()),
           "processes": min(os.cpu_count() or 1, len(found)),
           "slowest": f"{slowest}: {found[slowest]:.1f} s"}  # fmt: skip


def for_sm_90(most: int | None) -> Iterator[dict]:
    """As `compiled`, where there is no GPU."""
    from triton.backends.compiler import GPUTarget

    return compiled(FULL, GPUTarget("cuda", 90, 32), most)


def elsewhere(most: int) -> Iterator[dict]:
    """The same by a process where kernels are not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    study = checkout.ROOT / "bench" / "studies" / "gpu.py"
    command = [sys.executable, str(study), "--compile", str(most)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip().splitlines()[-1])
    yield {"note": ran.stdout.strip()}
