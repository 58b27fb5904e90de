"""Iterations that are the same launches at the same addresses every time: recorded once, as a CUDA
graph, and repeated by one launch."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

log = logging.getLogger(__name__)
# bytes that the memory of a graph may keep until the next one takes it over
_KEPT_BYTES = 32 << 20


class Recorder(Protocol):
    """What can repeat the launches of a step."""

    def warm(self, step: Callable[[], None]) -> None:
        """Do a step as it will be recorded: what is made or compiled at its first use is there."""

    def record(self, step: Callable[[], None]) -> bool:
        """Record what a step would do, without doing it; whether that was possible."""

    def replay(self) -> None:
        """Do once more what was recorded."""

    def release(self) -> None:
        """Forget it."""


def refuses(device: torch.device) -> str | None:
    """Why no CUDA graph can be had on this device, or None."""
    if device.type != "cuda":
        return f"there are none on {device.type}"
    if torch.version.hip is not None:
        return "graphs of ROCm were never tried"
    return None


class Replay:
    """A step, to be called again and again: done as it is at first, then recorded, then repeated.

    From its second call on it reads and writes at the same addresses, given the same numbers, and
    leaves nothing behind in Python, where repeats do not come by. recorder: None repeats nothing;
    told to forget at the end of the context. repeats: how many calls were.
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
    """A CUDA device to record on: a stream for that, of which one recording at a time is made,
    graphs that are done with and keep their memory for the next, and whether one has failed."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._stream = torch.cuda.Stream(device)
        self.done: list[torch.cuda.CUDAGraph] = []
        self.failed = False

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """On that stream, after what was launched before and before what comes."""
        with self._lock, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            # restores the stream whatever ends a recording, which torch.cuda.graph may not
            with torch.cuda.stream(self._stream):
                yield
            here.wait_stream(self._stream)


# one stream for all graphs of a device, since cuBLAS keeps a workspace for each that it meets
_place = functools.cache(_Place)


class CudaGraph:
    """A Recorder on a CUDA device, which holds some memory until it is released, and little then.

    must: a step that cannot be recorded raises; else that is logged, and none is tried again on
    this device.
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
        # a replay may still run where an exception ended the fit
        torch.cuda.current_stream(self._device).synchronize()
        if self._bytes <= _KEPT_BYTES:
            self._place.done.append(graph)
        else:
            graph.reset()


def _capture(graph: torch.cuda.CUDAGraph, step: Callable[[], None], former) -> None:
    """Record the step on the current stream, in the memory of a former graph if there is one.

    Unlike torch.cuda.graph it leaves the allocator's cache as it is, and other threads may
    allocate meanwhile.
    """
    pool = () if former is None else (former.pool(),)
    graph.capture_begin(*pool, capture_error_mode="thread_local")
    try:
        step()
    except BaseException:
        # what ended the step is told, not what that makes of the recording
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        with contextlib.suppress(RuntimeError):
            graph.reset()
        raise
    graph.capture_end()
