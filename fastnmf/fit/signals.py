"""Signals during a fit that saves: SIGINT and SIGTERM are delayed until the end of an iteration."""

from __future__ import annotations

import logging
import signal
import threading

log = logging.getLogger(__name__)


class Interrupts:
    """A context in which SIGINT and SIGTERM, in the main thread, take effect only at `leave`, or at
    the end of the context; a second signal takes effect at once.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._handlers: dict[int, object] = {}

    @property
    def waits(self) -> bool:
        """Whether a signal was received that has not taken effect."""
        return self._number is not None

    def leave(self) -> None:
        """Let the signal take effect. The context goes on if its handler returns."""
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
            # None: a handler that is not Python's, and cannot be restored
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
        log.warning("saving after this iteration; a second signal leaves without saving")
