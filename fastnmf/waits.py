"""Shorter waits of threads for each other while other processes want the same cores.

A thread of OpenMP that waits for the others of its team spins, for milliseconds. While it does, it
takes time from the very thread that it waits for, if that has lost its core to another process.
Beside one busy process on two cores an iteration took 2.1 to 4.5 times as long, and takes 1.5 to
2.3 times as long if waiting threads sleep. So they do where that happens. Where each has a core
they spin, as waking them can take up to 8 % longer.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType

import torch

try:
    import resource
except ImportError:  # Windows
    resource: ModuleType | None = None

# how often a second of processor time a thread loses its core against its will, from which waits
# are shortened: on two cores 25 to 45 times alone, and 130 to 190 beside one busy process
OFTEN = 90.0
# seconds of processor time from one decision to the next: while waits are long, and while they are
# short, after which they are long again for as long as it takes to see whether they may stay so
SPINNING, SLEEPING = 0.1, 1.0


@dataclass
class Waits:
    """Of all teams of the process. short: whether waiting threads sleep soon."""

    short: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # at the last decision
    _seconds: float = 0.0
    _lost: int = 0

    def look(self) -> None:
        """Shorten waits where threads lost their cores often since the last decision. To be called
        once an iteration, or a public call: it takes 1 µs."""
        if torch.get_num_threads() == 1 or resource is None or not self._lock.acquire(False):
            return
        try:
            used = resource.getrusage(resource.RUSAGE_SELF)
            self._decide(used.ru_utime + used.ru_stime, used.ru_nivcsw)
        finally:
            self._lock.release()

    def _decide(self, seconds: float, lost: int) -> None:
        """seconds of processor time that the process has used, and how often it lost a core."""
        since = seconds - self._seconds
        if since < (SLEEPING if self.short else SPINNING):
            return
        shorten = not self.short and lost - self._lost > OFTEN * since
        self._seconds, self._lost = seconds, lost
        if shorten != self.short:
            self.short = _shorten(shorten)


def _shorten(shorten: bool) -> bool:
    """Whether waits are short then: never without the extension."""
    extension = sys.modules.get("fastnmf._C")
    return extension is not None and extension.shorten_waits(shorten, torch.get_num_threads())


WAITS = Waits()
look = WAITS.look
