"""A thread that makes the next item while the last one is used."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_END = object()
# while the number of threads of all is another
_ONE_AT_A_TIME = threading.Lock()


class Ahead:
    """A context with one thread, which ends with it however it ends.

    What is raised in the thread is raised where its item, or the next call of `later`, is awaited.
    What torch does in the thread it does alone: with threads of its own there would be more of them
    than processors, where OpenMP's no longer wait for work but sleep after every operation, which
    takes a fifth of a fit (measured, libgomp on 2 cores).
    """

    def __init__(self) -> None:
        self._later: Future | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if "_pool" in self.__dict__:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(1, thread_name_prefix="fastnmf-ahead")
        # a thread takes the number of all when it is first asked for it, and then keeps its own
        torch.get_num_threads()
        with _ONE_AT_A_TIME, ThreadPoolExecutor(1) as another:
            of_all = pool.submit(torch.get_num_threads).result()
            pool.submit(torch.set_num_threads, 1).result()
            # the caller may have a number of its own
            another.submit(torch.set_num_threads, of_all).result()
        return pool

    def __call__(self, items: Iterator[T]) -> Iterator[T]:
        """The items; while one is used the next is made. Two exist at a time."""
        waiting = self._pool.submit(next, items, _END)
        try:
            while (item := waiting.result()) is not _END:
                waiting = self._pool.submit(next, items, _END)
                yield item
        finally:
            # what was begun ends before anybody else uses what it writes to
            waiting.cancel()
            wait([waiting])

    def later(self, do: Callable[..., Any], *given: Any) -> None:
        """Call do(*given) in the thread, after what was to be done there before."""
        self.settle()
        self._later = self._pool.submit(do, *given)

    def settle(self) -> None:
        """Wait for what `later` was given."""
        later, self._later = self._later, None
        if later is not None:
            later.result()
