"""Errors that fastnmf raises. A message says what was given, what is allowed and what to do."""

from __future__ import annotations


class InvalidInput(ValueError, AssertionError):
    """Raise for data or an option value that cannot be used.

    Is a ValueError; is an AssertionError as well because Overcomplete asserts, and code that
    catches its error must go on working.
    """


class NotFitted(ValueError):
    """Raise when a model is asked for what only `fit` (or loading a dictionary) can give it."""


class BackendUnavailable(RuntimeError):
    """Raise when a backend that was asked for by name cannot be used here; names every backend's
    reason."""
