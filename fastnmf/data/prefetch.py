"""A thread that prepares the next item while the current one is used, and host memory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..backends.products import dense
from .storage import row_blocks

T = TypeVar("T")
_END = object()


class Prefetcher:
    """A context with one thread, which ends with the context.

    An exception in the thread is raised where its item, or the result of `later`, is awaited.
    """

    def __init__(self) -> None:
        self._later: Future | None = None

    def __enter__(self) -> Prefetcher:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fastnmf-prefetch")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items; while one is used the thread prepares the next. Two exist at a time."""
        waiting = self._pool.submit(next, items, _END)
        try:
            while (item := waiting.result()) is not _END:
                waiting = self._pool.submit(next, items, _END)
                yield item
        finally:
            # what the thread has begun must end before its buffers are used elsewhere
            waiting.cancel()
            wait([waiting])

    def later(self, do: Callable[..., Any], *given: Any) -> None:
        """Call do(*given) in the thread, after the previous call has ended."""
        self.wait()
        self._later = self._pool.submit(do, *given)

    def wait(self) -> None:
        """Wait for the last call of `later`."""
        later, self._later = self._later, None
        if later is not None:
            later.result()


@dataclass
class Buffer:
    """Host memory for a chunk, and the event after which its copy to the device is complete."""

    host: Tensor
    copied: torch.cuda.Event | None = None

    @classmethod
    def of(cls, rows: int, like: Tensor) -> Buffer:
        """Memory for `rows` rows of the width and dtype of `like` (0, d), pinned for its GPU."""
        pinned = like.device.type == "cuda"
        shape = rows, like.shape[1]
        return cls(torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=pinned))

    def free(self) -> Tensor:
        """The memory, once its copy is complete."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.host


class Copies:
    """Copies of chunks to a device, on a CUDA stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, buffer: Buffer | None, host: Any) -> Any:
        """The chunk on the device; its buffer may be written to after the event `copied`."""
        if self._stream is None or buffer is None:
            return host.to(device=self._device)
        here = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            X = host.to(self._device, non_blocking=True)
            buffer.copied = self._stream.record_event()
        here.wait_event(buffer.copied)
        X.record_stream(here)
        return X


def minus_row(chunks: Iterator[Any], row: Tensor, most: int) -> Iterator[Any]:
    """Chunks (part, X, Z) of the data, dense and minus a row: copies of up to `most` rows."""
    for part, X, Z in chunks:
        for some in row_blocks(len(X), most):
            of_all = slice(part.start + some.start, part.start + some.stop)
            yield of_all, dense(X[some]) - row, None if Z is None else Z[some]
