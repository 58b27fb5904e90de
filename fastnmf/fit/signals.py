"""SIGINT and SIGTERM that wait for a moment at which they may do what they do."""

from __future__ import annotations

import logging
import signal
import threading

log = logging.getLogger(__name__)


class Interrupts:
    """A context in which SIGINT and SIGTERM wait, in the main thread, until `leave`, and do then
    what they would have done; a second one does so at once, and a first at the end of the context.

    waits: whether one does.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._handlers: dict[int, object] = {}

    @property
    def waits(self) -> bool:
        return self._number is not None

    def leave(self) -> None:
        """Let the signal do what it would have done; the context goes on where that is nothing."""
        number, self._number = self._number, None
        self._release()
        signal.raise_signal(number)
        self._catch()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._catch()
        return self

    def __exit__(self, *_: object) -> None:
        if self.waits:
            self.leave()
        self._release()

    def _catch(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            # None: a handler that is not Python's, and cannot be put back
            if before not in (None, signal.SIG_IGN):
                self._handlers[number] = before
                signal.signal(number, self._wait)

    def _release(self) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)
        self._handlers.clear()

    def _wait(self, number: int, _: object) -> None:
        if self.waits:
            self.leave()
            return
        self._number = number
        log.warning("saving after this iteration; once more leaves without")
