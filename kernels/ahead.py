"""Kernels compiled before their first launch, by several processes, into Triton's cache on disk,
where launches find them. No GPU is needed where the target is given."""

import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver


@dataclass(frozen=True)
class Variant:
    """A kernel for one specialisation of its arguments: what is compiled once.

    module, kernel: where the kernel is. launched_as: all that it is specialised by, as JSON that
    Triton reads. key: Triton's name of it, for this kernel and target.
    """

    module: str
    kernel: str
    launched_as: str
    key: str

    def __str__(self) -> str:
        launched = json.loads(self.launched_as)
        names = list(launched["signature"])
        given = zip(launched["constant_keys"], launched["constant_vals"], strict=True)
        constants = ", ".join(f"{names[place]}={value}" for (place,), value in given)
        return f"{self.kernel}({constants})"


class _Target:
    """In place of Triton's driver: it has a target, and no device to launch on."""

    def __init__(self, target: GPUTarget, purpose: str) -> None:
        self._target, self._purpose = target, purpose

    def get_current_device(self) -> str:
        # kernels are kept by device, and one that is found is launched: none is found under this
        return f"{self._purpose} for {self._target}"

    def get_current_stream(self, _device: str) -> None:
        return None

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextlib.contextmanager
def _without_device(target: GPUTarget, purpose: str) -> Iterator[None]:
    # Triton creates its driver at first use, and without a GPU it has none
    before = driver._active
    driver.set_active(_Target(target, purpose))
    try:
        yield
    finally:
        driver._active = before


def variants(calls: Iterable[Callable], target: GPUTarget | None = None) -> list[Variant]:
    """What the launches in the calls would compile, each once, in the order of first launches.

    calls: functions without arguments that call launchers; nothing is launched, so their tensors
    may be without memory (device "meta"). target: that of the current device if None. Not to be
    used while other threads launch kernels.
    """
    found: dict[tuple, Variant] = {}

    def record(fn, compile, **_) -> bool:
        variant = Variant(fn.module, fn.name, compile["specialization_data"], compile["key"])
        found.setdefault((variant.module, variant.kernel, variant.key), variant)
        # it is not to be compiled, and so not launched
        return True

    runtime = triton.knobs.runtime
    before, target = runtime.jit_cache_hook, target or driver.active.get_current_target()
    with _without_device(target, "recorded"):
        runtime.jit_cache_hook = record
        try:
            for call in calls:
                call()
        finally:
            runtime.jit_cache_hook = before
    return list(found.values())


def compiled(variant: Variant, target: GPUTarget) -> triton.compiler.CompiledKernel:
    """The kernel, compiled now or read from Triton's cache."""
    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    with _without_device(target, "compiled"):
        return kernel.preload(variant.launched_as)


def _seconds(variant: Variant, target: tuple) -> float:
    begun = time.perf_counter()
    compiled(variant, GPUTarget(*target))
    return time.perf_counter() - begun


def compile_ahead(
    calls: Iterable[Callable], workers: int | None = None, target: GPUTarget | None = None
) -> dict[Variant, float]:
    """Compile what the calls would launch by `workers` processes, as many as processors if None.

    calls, target: as for `variants`. Returns the seconds that each variant took, next to nothing
    where it was in the cache. A program that calls this must be a file that can be imported, since
    the processes begin by importing it.
    """
    target = target or driver.active.get_current_target()
    found = variants(calls, target)
    workers = min(workers or os.cpu_count() or 1, len(found))
    to = (target.backend, target.arch, target.warp_size)
    if workers <= 1:
        return {variant: _seconds(variant, to) for variant in found}
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawned) as pool:
        seconds = pool.map(_seconds, found, [to] * len(found))
        return dict(zip(found, seconds, strict=True))
