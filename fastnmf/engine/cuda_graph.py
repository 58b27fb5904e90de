"""CUDA graphs: iterations that are the same launches at the same addresses every time are recorded
once and then repeated by one launch. Which fits are, is decided in fit/batch.py and loop.py."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

log = logging.getLogger(__name__)
# bytes of a graph whose memory is kept for the next graph
_KEPT_BYTES = 32 << 20


class Recorder(Protocol):
    """Records the launches of a step and repeats them."""

    def warm(self, step: Callable[[], None]) -> None:
        """Do a step under the conditions of a recording, so that all that is allocated or compiled
        at first use exists."""

    def record(self, step: Callable[[], None]) -> bool:
        """Record a step without doing it; return whether that was possible."""

    def replay(self) -> None:
        """Do the recorded step."""

    def release(self) -> None:
        """Free the recording."""


def refuses(device: torch.device) -> str | None:
    """Return why there are no CUDA graphs on this device, or None."""
    if device.type != "cuda":
        return f"there are none on {device.type}"
    if torch.version.hip is not None:
        return "graphs of ROCm are not supported"
    return None


class Replay:
    """A step that is done normally at the first calls, then recorded, then repeated.

    From its second call on the step must read and write at the same addresses and change no state
    of Python, since repeats do not run Python. A step that cannot be recorded is always done
    normally. A context that frees the recording at its end. repeats: the number of calls that were
    repeats.
    """

    def __init__(self, step: Callable[[], None], recorder: Recorder | None) -> None:
        self._step, self._recorder, self._calls = step, recorder, 0
        self.repeats = 0

    def __call__(self) -> None:
        self._calls += 1
        if self._recorder is None or self._calls == 1:
            return self._step()
        if self._calls == 2:
            return self._recorder.warm(self._step)
        if self._calls == 3 and not self._recorder.record(self._step):
            self._recorder = None
            return self._step()
        self._recorder.replay()
        self.repeats += 1

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._recorder is not None:
            self._recorder.release()


class _Place:
    """The recordings of one CUDA device: a stream, one recording on it at a time; used graphs, of
    which the next takes the memory; and whether a recording has failed."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._stream = torch.cuda.Stream(device)
        self.done: list[torch.cuda.CUDAGraph] = []
        self.failed = False

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context on that stream, in order with the current one."""
        with self._lock, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            # restores the stream also after an error in a recording, which torch.cuda.graph may not
            with torch.cuda.stream(self._stream):
                yield
            here.wait_stream(self._stream)


# one stream for all graphs of a device, since cuBLAS keeps a workspace for each stream
_place = functools.cache(_Place)


class CudaGraph:
    """A Recorder on a CUDA device.

    must: raise if a step cannot be recorded; else log it, and record nothing more on this device.
    Keeps at most _KEPT_BYTES of device memory after its release.
    """

    def __init__(self, device: torch.device, *, must: bool) -> None:
        self._device, self._must = device, must
        self._place = _place(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._bytes = 0

    def warm(self, step: Callable[[], None]) -> None:
        with self._place.aside():
            step()

    def record(self, step: Callable[[], None]) -> bool:
        if self._place.failed and not self._must:
            return False
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved(self._device)
        try:
            with self._place.aside():
                former = self._place.done.pop() if self._place.done else None
                _capture(graph, step, former)
        except RuntimeError as error:
            if self._must:
                raise
            self._place.failed = True
            log.debug("iterations are not recorded as a CUDA graph: %s", error)
            return False
        if former is not None:
            former.reset()
        self._graph = graph
        self._bytes = torch.cuda.memory_reserved(self._device) - before
        return True

    def replay(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        if self._graph is None:
            return
        graph, self._graph = self._graph, None
        # a replay may still be running when an exception ends the fit
        torch.cuda.current_stream(self._device).synchronize()
        if self._bytes <= _KEPT_BYTES:
            self._place.done.append(graph)
        else:
            graph.reset()


def _capture(graph: torch.cuda.CUDAGraph, step: Callable[[], None], former) -> None:
    """Record the step on the current stream, in the memory of a former graph if there is one.

    Unlike torch.cuda.graph this keeps the cache of the allocator, and lets other threads allocate.
    """
    pool = () if former is None else (former.pool(),)
    graph.capture_begin(*pool, capture_error_mode="thread_local")
    try:
        step()
    except BaseException:
        # the error of the step is raised, not what it causes in the recording
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        with contextlib.suppress(RuntimeError):
            graph.reset()
        raise
    graph.capture_end()
