"""A thread that prepares the next item while the current one is used, and host memory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

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
