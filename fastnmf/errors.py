"""Errors that fastnmf raises and warnings that it gives. A message says what was given, what is
allowed and what to do."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

_PACKAGE = os.path.dirname(__file__) + os.sep


class InvalidInput(ValueError, AssertionError):
    """Data, a file or an option value cannot be used.

    It is also an AssertionError because Overcomplete asserts, and code that catches its errors must
    still work.
    """


class NotFitted(ValueError):
    """The model has no dictionary yet: call fit, or load one."""


class FitsFailed(ValueError):
    """Some fits of `fit_many` failed, and the others are there.

    Attributes
    ----------
    models : list
        The fitted models in the order of the matrices, None in the place of those that failed.
    errors : dict
        Index of a matrix → what its fit raised.
    """

    def __init__(self, models: list[Any], errors: dict[int, Exception]) -> None:
        self.models, self.errors = models, errors
        shown = "; ".join(f"matrix {i}: {error}" for i, error in list(errors.items())[:3])
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        super().__init__(
            f"{len(errors)} of {len(models)} fits failed: {shown}{more}. The models of the others "
            "are in the attribute models of this error; errors='return' returns them"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.models, self.errors)


class BackendUnavailable(RuntimeError):
    """A backend that was named cannot be used here; the message has every backend's reason."""


class FastnmfWarning(UserWarning):
    """A result that is probably not what was wanted; all warnings of fastnmf are of this class."""


class ConvergenceWarning(FastnmfWarning):
    """An iteration ended at its limit, before its stopping rule was met."""


_SILENT: ContextVar[tuple[type[Warning], ...]] = ContextVar("silent", default=())


def warn(message: str, category: type[Warning] = FastnmfWarning) -> None:
    """Give a warning that names the line of the caller's code, not one of fastnmf."""
    if issubclass(category, _SILENT.get()):
        return
    # wrappers of torch's no_grad, of contexts and of scikit-learn's estimators stand between two
    # functions of fastnmf
    loaded = (sys.modules.get(name) for name in ("torch", "sklearn"))
    between = (os.path.dirname(each.__file__ or "") + os.sep for each in loaded if each)
    inside = _PACKAGE, *between, contextlib.__file__
    level, frame = 1, sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def silenced(category: type[Warning]) -> Generator[None, None, None]:
    """Give no warnings of this category, in this context and thread."""
    token = _SILENT.set((*_SILENT.get(), category))
    try:
        yield
    finally:
        _SILENT.reset(token)


_HELD: ContextVar[dict[type, tuple[int, str]] | None] = ContextVar("held", default=None)


def warn_once(message: str, category: type[FastnmfWarning]) -> None:
    """In hold_warnings: replace the message of this category that is given at its end. Else
    warn."""
    held = _HELD.get()
    if held is None:
        return warn(message, category)
    held[category] = held.get(category, (0, ""))[0] + 1, message


@contextlib.contextmanager
def hold_warnings() -> Generator[None, None, None]:
    """Give the last warning of each category of warn_once at the end, with how many there were;
    none if an error is raised."""
    held: dict[type, tuple[int, str]] = {}
    token = _HELD.set(held)
    try:
        yield
    finally:
        _HELD.reset(token)
    for category, (times, message) in held.items():
        warn(message if times == 1 else f"{message} ({times} times, the last is shown)", category)
