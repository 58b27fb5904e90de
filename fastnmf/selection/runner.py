"""The fits of one call, several at a time, each by one thread; or one after the other."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

from ..models.factorization import Factorization

# entries of data up to which a fit is made by one thread beside others, which are divided among
# threads at a loss, and of which each of them has a copy
_SMALL = 1 << 22


def at_a_time(model: Factorization, entries: int = 0) -> int:
    """How many fits of such a model run at a time: as many as torch has threads on a CPU, with data
    of few entries; else one, with all threads."""
    on_cpu = torch.device(model.device).type == "cpu"
    return torch.get_num_threads() if on_cpu and entries <= _SMALL else 1


def run_each(
    make: Callable[[int], Any],
    count: int,
    done: Callable[[int], object],
    most: int,
    failures: tuple[type[Exception], ...] = (),
) -> list[Any]:
    """[make(0), make(1), …], `count` of them, up to `most` at a time, each then with one thread of
    torch; an exception of `failures` takes the place of what was to be made. done(number): called
    in this thread for each, in their order. After another exception, or an interrupt, in any
    thread, nothing further begins."""
    stopped, found = threading.Event(), [None] * count

    def run(number: int) -> None:
        if stopped.is_set():
            return
        try:
            found[number] = make(number)
        except failures as error:
            found[number] = error
        except BaseException:
            stopped.set()
            raise

    workers = min(most, count)
    if workers <= 1:
        for number in range(count):
            run(number)
            done(number)
        return found
    with ThreadPoolExecutor(workers) as pool:
        _give_one_thread_each(pool, workers)
        futures = [
            pool.submit(contextvars.copy_context().run, run, number) for number in range(count)
        ]
        try:
            for number, future in enumerate(futures):
                future.result()
                done(number)
        except BaseException:
            stopped.set()
            raise
    return found


def _give_one_thread_each(pool: ThreadPoolExecutor, workers: int) -> None:
    """Start the workers of a pool, which then compute with one thread of torch each."""
    threads, ready = torch.get_num_threads(), threading.Barrier(workers + 1)

    def begin() -> None:
        # the first call takes the number of the process, which would replace one that was set
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    try:
        started = [pool.submit(begin) for _ in range(workers)]
        ready.wait()
    except BaseException:
        # no thread waits for those that could not be started
        ready.abort()
        raise
    wait(started)
    # which is also that of threads to come
    torch.set_num_threads(threads)
