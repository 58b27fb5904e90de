"""Errors that fastnmf raises and warnings that it gives. A message says what was given, what is
allowed and what to do."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = os.path.dirname(__file__) + os.sep


class InvalidInput(ValueError, AssertionError):
    """Data, a file or an option value cannot be used.

    It is also an AssertionError because Overcomplete asserts, and code that catches its errors must
    still work.
    """


class NotFitted(ValueError):
    """The model has no dictionary yet: call fit, or load one."""


class BackendUnavailable(RuntimeError):
    """A backend that was named cannot be used here; the message has every backend's reason."""


class FastnmfWarning(UserWarning):
    """A result that is probably not what was wanted; all warnings of fastnmf are of this class."""


class ConvergenceWarning(FastnmfWarning):
    """An iteration ended at its limit, before its stopping rule was met."""


def warn(message: str, category: type[FastnmfWarning] = FastnmfWarning) -> None:
    """Give a warning that names the line of the caller's code, not one of fastnmf."""
    # torch's wrapper of no_grad and the like stands between two functions of fastnmf
    torch = os.path.dirname(sys.modules["torch"].__file__ or "") + os.sep
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, torch)):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
