"""Timing: rounds, peak memory, the rate of a matrix product, and the machine they were taken on."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from support.workloads import Problem

# seconds for the rounds of one benchmark, and the fewest and the most rounds
BUDGET, QUICK_BUDGET = 3.0, 0.6
ROUNDS = (3, 30)
PACKAGES = ("torch", "numpy", "fastnmf", "overcomplete", "scikit-learn", "nmf-torch")


@dataclass(frozen=True)
class Timing:
    """What is timed: an iteration takes `fixed_seconds` + `scale` × the seconds of step(*fresh()).

    fresh returns new arguments and is not timed. step returns the factors (Z, D), or None where it
    is only a part of an iteration; measured_on then says which part, and is empty otherwise.
    label: fields for the results file.
    """

    fresh: Callable[[], tuple]
    step: Callable[..., tuple | None]
    label: dict[str, Any]
    scale: float = 1.0
    fixed_seconds: float = 0.0
    measured_on: str = ""


@dataclass(frozen=True)
class Bench:
    """The `benchmark` fixture for one problem; budget: seconds that its rounds should take.

    rounds: the fewest, even if they take longer, and the most.
    """

    benchmark: Any
    problem: Problem
    budget: float
    rounds: tuple[int, int] = ROUNDS

    def record(self, timing: Timing, first_call: tuple | None = None, **more: Any) -> tuple | None:
        """Time the step in rounds and store the figures in extra_info; return its last result.

        first_call: (seconds, MiB) of an earlier call, which decides how many rounds there are;
        None: the fewest.
        """
        first_seconds, growth = first_call or (self.budget, 0.0)
        fewest, most = self.rounds
        marks: list[int] = []
        risen: list[float] = [growth]

        def fresh() -> tuple[tuple, dict]:
            if marks:
                risen.append((peak_kib() - marks[-1]) / 1024)
            state = timing.fresh()
            marks.append(_start_peak())
            return state, {}

        self._name_group(timing.label)
        result = self.benchmark.pedantic(
            timing.step,
            setup=fresh,
            rounds=min(max(int(self.budget / first_seconds), fewest), most),
        )
        risen.append((peak_kib() - marks[-1]) / 1024)
        seconds = timing.fixed_seconds + timing.scale * self.benchmark.stats.stats.min
        self.note(
            **timing.label,
            **more,
            scale=timing.scale,
            fixed_seconds=timing.fixed_seconds,
            measured_on=timing.measured_on,
            seconds=seconds,
            # a part of an iteration does not hold what the whole would
            peak_growth_mib=None if timing.measured_on else max(risen),
        )
        if flops := timing.label.get("flops"):
            self.note(gflops=flops / seconds / 1e9, gemm_gflops=usual_gflops())
        return result

    def note(self, **more: Any) -> None:
        """Add fields to extra_info, and those that every entry of the results file has."""
        n, d, K = self.problem.sizes
        info = self.benchmark.extra_info
        info.update(
            workload=self.problem.workload.name,
            title=self.problem.workload.title,
            data=self.problem.source,
            n=n,
            d=d,
            K=K,
            dtype=str(self.problem.A.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            machine=machine(),
            **more,
        )

    def _name_group(self, label: dict[str, Any]) -> None:
        solver = label.get("solver")
        kind = f"{solver} {label['kind']}" if solver else label["kind"]
        self.benchmark.group = f"{kind}, {self.problem.workload.title}"


def imported(module: str, package: str) -> Any:
    """Import a module, or skip the benchmark with the reason why it cannot be imported."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        pytest.skip(f"{package}: {error}")
    except AttributeError as error:
        # overcomplete 0.3 reads plt.cm.get_cmap, which matplotlib 3.9 no longer has
        pytest.skip(f"{package} does not import (overcomplete 0.3 needs matplotlib<3.9): {error}")


def once(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Call once: (result, seconds, MiB by which the peak memory of the process rose)."""
    before = _start_peak()
    begun = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begun
    return result, seconds, max(0.0, (peak_kib() - before) / 1024)


def called(timing: Timing) -> tuple[Any, float, float]:
    """`once` for the step of a timing; making its arguments is not counted."""
    state = timing.fresh()
    return once(lambda: timing.step(*state))


def gemm_gflops() -> float:
    """GF/s of torch.mm of 2048³ in float32, best of five."""
    A, B = torch.rand(2048, 2048), torch.rand(2048, 2048)
    out = torch.empty(2048, 2048)
    return 2 * 2048**3 / min(once(lambda: torch.mm(A, B, out=out))[1] for _ in range(5)) / 1e9


# measured once a run, for figures that need no more precision
usual_gflops = functools.cache(gemm_gflops)


def machine() -> dict[str, Any]:
    """CPU, instruction set, threads and versions; no host names and no paths."""
    return {**_machine(), "threads": torch.get_num_threads()}


@functools.cache
def _machine() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "fastnmf" not in versions:
        from fastnmf import __version__

        versions["fastnmf"] = __version__
    return {
        "cpu": _cpu_model(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _start_peak() -> int:
    """Reset the peak of this process; return the KiB in use, or the peak if it cannot be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_kib()
    return _status_kib("VmRSS")


def peak_kib() -> int:
    """The peak memory of this process in KiB.

    From VmHWM where there is one: ru_maxrss starts at the peak of the parent process.
    """
    try:
        return _status_kib("VmHWM")
    except (OSError, StopIteration):
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest // 1024 if platform.system() == "Darwin" else highest


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
