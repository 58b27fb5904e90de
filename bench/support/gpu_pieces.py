"""Which pieces of an iteration take how long on a GPU: products, Gram matrices, sweeps, rounding,
refreshes; by events between the launches, and by the profiler of torch where it works."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastnmf
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import State, Stopping
from support.gaussian import draw
from support.gpu_sizes import Size
from support.gpu_times import method_of, planned, titled
from support.seconds import seconds_of

PACKAGE = str(Path(fastnmf.__file__).parent)
HALVES = {"update_codes_": "codes", "update_dictionary_": "dictionary"}
# pieces that are listed, and kernels that the profiler names
LEAST_SHARE, LISTED = 0.002, 12


class Pieces(TorchDispatchMode):
    """Records an event before and after whatever is launched.

    measured: (half, where it is called from, operation) → pairs of events. The device computes in
    the order of the launches, so that a pair holds one launch, if the host is ahead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.measured: dict[tuple[str, str, str], list] = defaultdict(list)
        self._inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        call = lambda: func(*args, **(kwargs or {}))  # noqa: E731
        name = func.overloadpacket.__name__
        if self._inside or func.is_view or "empty" in name or name == "detach":
            return call()
        return self._timed(name, call)

    def operation(self, name: str, op: Callable) -> Callable:
        """An operation of a backend, timed as one."""

        def timed(*given, **options):
            return self._timed(name, lambda: op(*given, **options))

        return timed

    def _timed(self, name: str, call: Callable):
        if self._inside:
            return call()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        half, function = _caller()
        began.record()
        self._inside = True
        try:
            return call()
        finally:
            self._inside = False
            ended.record()
            self.measured[half, function, name].append((began, ended))

    def seconds(self) -> dict[tuple[str, str, str], tuple[float, int]]:
        """Label → (seconds in all, launches), the longest first."""
        torch.cuda.synchronize()
        summed = {
            label: (sum(a.elapsed_time(b) for a, b in pairs) / 1e3, len(pairs))
            for label, pairs in self.measured.items()
        }
        return dict(sorted(summed.items(), key=lambda item: -item[1][0]))


def _caller() -> tuple[str, str]:
    """The half of the iteration, and the innermost function of fastnmf."""
    frame, function, half = sys._getframe(2), "", ""
    while frame is not None and not half:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            function = function or code.co_name
            half = HALVES.get(code.co_name, "")
        frame = frame.f_back
    return half, function


def pieces(size: Size, together: int, precision: str, device: str) -> Iterator[dict]:
    """The pieces of an iteration of hals: the mean of those that share one residual."""
    torch.set_float32_matmul_precision(precision)
    A, Z, D = draw(*size, device)
    method, recorded = method_of("hals", A.device), Pieces()
    plan = planned(method, A, size[2])
    ops = {name: recorded.operation(name, op) for name, op in method.ops.items()}

    def iterate(by) -> None:
        factorize_(State(InMemory(Z), D), Data(A), by, plan, Stopping(together, 0))

    iterate(method)
    with recorded:
        seconds, _ = seconds_of(lambda: iterate(replace(method, ops=ops)), device)
    what, found = f"hals, {titled(size)}, {precision}", recorded.seconds()
    whole = sum(spent for spent, _ in found.values()) / together
    for (half, function, name), (spent, calls) in found.items():
        spent, calls = spent / together, calls / together
        if spent < LEAST_SHARE * whole:
            break
        yield {"of": what, "half": half, "piece": f"{function}: {name}", "ms": 1e3 * spent,
               "calls": calls, "share": spent / whole}  # fmt: skip
    yield {"of": what, "piece": "all pieces", "ms": 1e3 * whole}
    yield {"of": what, "piece": "the host's time, with the events", "ms": 1e3 * seconds / together}
    yield from profiled(what, lambda: iterate(method), together)


def profiled(what: str, call: Callable[[], None], iterations: int) -> Iterator[dict]:
    """The kernels that took the longest in iterations, by torch.profiler."""
    activity = torch.profiler.ProfilerActivity.CUDA
    if activity not in torch.profiler.supported_activities():
        yield {"note": "torch.profiler cannot trace this device"}
        return
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        torch.cuda.synchronize()
    spent = {each.key: (_device_time(each), each.count) for each in profile.key_averages()}
    longest = sorted(spent.items(), key=lambda item: -item[1][0])[:LISTED]
    for name, (microseconds, count) in longest:
        if microseconds:
            yield {"of": what, "kernel": name[:120], "ms": microseconds / 1e3 / iterations,
                   "calls": count / iterations}  # fmt: skip


def _device_time(entry) -> float:
    """Microseconds of an entry of the profiler, by the name that this torch has for them."""
    for name in ("self_device_time_total", "self_cuda_time_total"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return 0.0
