"""The progress bar of `verbose` and the user's callback, as one function for the loop to call."""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import checks
from ..engine.state import Iteration, Stopping
from .time_left import Way

Each = Callable[[Iteration], bool | None]

# tqdm's own percentage and time left would be those of max_iter, before which most fits end
_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| [{elapsed}{postfix}]"
# seconds before a time left is shown
_SETTLED = 1.0


class Progress:
    """A context whose value is the function to call after every iteration, or None if there is
    neither a bar nor a callback.

    stopping: when the run ends. label: what the bar is about. begins: what it is about before the
    first iteration. streamed: whether an iteration is a pass through data that are read. rows: if
    chunks of rows have a run each, after which `done` is called, how many rows there are, and in a
    chunk. A context that is left by an exception takes its bar away.
    """

    def __init__(
        self,
        verbose: bool,
        stopping: Stopping,
        callback: Each | None = None,
        *,
        streamed: bool = False,
        label: str = "fit",
        begins: str | None = None,
        rows: tuple[int, int] | None = None,
    ) -> None:
        self._callback, self._label, self._stopping = callback, label, stopping
        self._unit = "pass" if streamed else "it"
        self._rows, self._rows_done, self._begun = rows, 0, time.perf_counter()
        self._way, self._last, self._shown_at = Way(stopping), None, -float("inf")
        # of the last iteration that was measured on other rows
        self._held_out: str | None = None
        self._bar = None
        if verbose:
            from tqdm.auto import tqdm

            about = begins or self._where()
            self._bar = tqdm(total=1.0, desc=about, bar_format=_FORMAT)
            if self._bar.disable:
                self._bar = None

    def note(self, text: str) -> None:
        """Show what is running before the first iteration."""
        if self._bar is not None:
            self._bar.set_description_str(text)

    def done(self, rows: int) -> None:
        """Count rows as done. Iterations after this are of other rows."""
        self._rows_done += rows
        self._way, self._last = Way(self._stopping), None
        self._show()

    def __enter__(self) -> Each | None:
        return self._each if self._bar is not None or self._callback is not None else None

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._show(at_once=True)
            self._bar.leave = kind is None
            self._bar.close()

    def _each(self, info: Iteration) -> bool | None:
        if self._bar is not None:
            self._way.add(info)
            self._last = info
            if info.validation_error is not None:
                self._held_out = f"{info.validation_error:.5f}"
            self._show()
        return checks.truth("callback", self._callback(info)) if self._callback else None

    def _show(self, *, at_once: bool = False) -> None:
        """Draw the bar, unless it was drawn a moment ago."""
        bar, now = self._bar, time.perf_counter()
        if bar is None or not (at_once or now - self._shown_at >= bar.mininterval):
            return
        self._shown_at = now
        if self._last is not None or self._rows_done:
            bar.n = self._share()
            bar.set_description_str(self._where(), refresh=False)
            bar.set_postfix_str(", ".join(self._facts(ended=at_once)), refresh=False)
        if not at_once:
            bar.refresh()

    def _where(self) -> str:
        """What the bar is about, and how far that is."""
        if self._rows is not None:
            return f"{self._label} {self._rows_done:,}/{self._rows[0]:,} rows"
        made = self._last.iteration if self._last is not None else 0
        return f"{self._label} {made}/{self._stopping.max_iter}"

    def _share(self) -> float:
        """The share of the way to the end, from 0 to 1."""
        if self._rows is None:
            return self._way.share
        rows, chunk = self._rows
        return min((self._rows_done + self._way.share * min(chunk, rows)) / rows, 1.0)

    def _facts(self, *, ended: bool) -> list[str]:
        """What is shown beside the bar."""
        facts, info = [], self._last
        left = None if ended else self._left()
        if left is not None:
            facts.append(f"{_span(*left)} left")
        if info is None:
            return facts
        per_second = self._way.speed
        if per_second is not None:
            rate = f"{per_second:.3g}{self._unit}/s"
            facts.append(rate if per_second >= 1 else f"{1 / per_second:.3g}s/{self._unit}")
        if info.relative_change == info.relative_change:
            facts.append(f"change={info.relative_change:.2e}")
        if info.relative_error == info.relative_error:
            facts.append(f"error={info.relative_error:.5f}")
        if self._held_out is not None:
            facts.append(f"validation={self._held_out}")
        return facts

    def _left(self) -> tuple[float, float] | None:
        """The least and the most seconds that are left, or None as long as they mean nothing."""
        passed = time.perf_counter() - self._begun
        if passed < _SETTLED:
            return None
        if self._rows is None:
            return self._way.left()
        if not self._rows_done:
            return None
        left = passed * (self._rows[0] / self._rows_done - 1)
        return left, left


def _span(least: float, most: float) -> str:
    """A range of seconds, in words that are as exact as it is."""
    if round(most) < 60:
        first, last, unit = f"{least:.0f}", f"{most:.0f}", "s"
    else:
        first, last, unit = _clock(least), _clock(most), ""
    if first == last:
        return f"{last}{unit}"
    return f"at most {last}{unit}" if round(least) == 0 else f"{first}-{last}{unit}"


def _clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
