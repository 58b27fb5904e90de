"""Errors that fastnmf raises. A message says what was given, what is allowed and what to do."""

from __future__ import annotations


class InvalidInput(ValueError, AssertionError):
    """Data, a file or an option value cannot be used.

    It is also an AssertionError because Overcomplete asserts, and code that catches its errors must
    still work.
    """


class NotFitted(ValueError):
    """The model has no dictionary yet: call fit, or load one."""


class BackendUnavailable(RuntimeError):
    """A backend that was named cannot be used here; the message has every backend's reason."""
