"""How a public call is kept apart from the state of torch in its process: autocast, precision of
products on a CPU, inference mode, tracing by torch.compile, threads after a fork; and calls that
change a model from each other."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

from .precision import products_in
from .waits import look

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

_PROCESS = os.getpid()


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """The function, computed in the dtypes that it names whatever autocast is in effect, on a CPU
    also whatever precision torch allows products, with results that are normal tensors in inference
    mode, never traced by torch.compile, which breaks its graph there, and with one thread in a
    forked process."""

    @functools.wraps(function)
    def run(*given: P.args, **named: P.kwargs) -> R:
        _use_one_thread_after_a_fork()
        look()
        with products_in(None):
            if not (torch.is_inference_mode_enabled() or _autocasts()):
                return function(*given, **named)
            with _plain():
                return function(*given, **named)

    @functools.wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        return (_untraced.get(run) or _prepared(run))(*given, **named)

    return _not_traced(call)


def _not_traced(function: Callable[P, R]) -> Callable[P, R]:
    """The function, marked as torch.compiler.disable marks it: compiled code calls it."""
    vars(function)["_torchdynamo_disable"] = True
    return function


# a function → the same, and all that it calls, not traced by torch.compile
_untraced: dict[Callable[..., Any], Callable[..., Any]] = {}


@_not_traced
def _prepared(run: Callable[P, R]) -> Callable[P, R]:
    """The function to call in the place of `run`: itself while nothing is compiled, as
    torch.compiler.disable loads the compiler, which takes a second."""
    if "torch._dynamo" not in sys.modules:
        return run
    return _untraced.setdefault(run, torch.compiler.disable(run))


def one_at_a_time(method: Callable[P, R]) -> Callable[P, R]:
    """The method of a model, isolated, which waits for such methods that other threads run on the
    same model. A call within a call, as from a callback, does not wait."""

    @functools.wraps(method)
    def call(*given: P.args, **named: P.kwargs) -> R:
        with _locks.of(given[0]):
            return method(*given, **named)

    return isolated(call)


@contextmanager
def without_autocast() -> Iterator[None]:
    """A context without autocast, on any device."""
    with ExitStack() as stack:
        for device in _autocasts():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _autocasts() -> list[str]:
    """The types of devices for which autocast is in effect."""
    return [device for device in _devices_of_autocast() if torch.is_autocast_enabled(device)]


@functools.cache
def _devices_of_autocast() -> tuple[str, ...]:
    known = ("cpu", "cuda", "xpu", "mps")
    return tuple(device for device in known if torch.amp.is_autocast_available(device))


@contextmanager
def _plain() -> Iterator[None]:
    """A context without autocast and inference mode."""
    with ExitStack() as stack:
        stack.enter_context(without_autocast())
        if torch.is_inference_mode_enabled():
            # which turns gradients on
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


def _use_one_thread_after_a_fork() -> None:
    """Threads of OpenMP do not live on in a forked process: there, the first operation of a team
    waits for them for ever, once the parent has had a team."""
    if torch.get_num_threads() > 1 and (os.getpid() != _PROCESS or _came_from_a_fork()):
        torch.set_num_threads(1)
        log.info(
            "process %d was forked, where threads of torch may hang: it computes with one thread "
            "(multiprocessing.set_start_method('spawn') keeps all)",
            os.getpid(),
        )


@functools.cache
def _came_from_a_fork() -> bool:
    """Whether multiprocessing forked this process before fastnmf was imported."""
    if multiprocessing.parent_process() is None:
        return False
    started_by = getattr(multiprocessing.current_process(), "_start_method", None)
    return (started_by or multiprocessing.get_start_method(allow_none=True)) == "fork"


class _Locks:
    """A lock for each model, kept outside it, as locks cannot be copied or pickled."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process, self._guard = os.getpid(), threading.Lock()
        self._by_model: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def of(self, model: Any) -> Any:
        if self._process != os.getpid():
            # in a forked process nothing releases what other threads held
            self._begin()
        with self._guard:
            return self._by_model.setdefault(model, threading.RLock())


_locks = _Locks()
