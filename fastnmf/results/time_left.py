"""How far a run is on the way to its end, and how long it still takes: from its stopping rule, its
limits, and the trend of what the rule measures."""

from __future__ import annotations

import math
import time
from collections import deque

from ..engine.state import STOPPING_RULES, Iteration, Stopping

# iterations before a trend is looked for; those that it is taken from, as shares of those made; and
# how far the truth may be outside, a factor. Of 53 fits, replayed, 85 % of the estimates held.
_LEAST, _SHARES, _MARGIN = 20, (0.15, 0.3), 2.0
# a wider range than this factor says nothing
_WIDEST = 6.0
# the most iterations that a trend is taken from, and those that the speed is measured over
_MOST, _TIMED = 2000, 50
# iterations whose mean is compared with tol
_SMOOTHED = 5


class Way:
    """The way of a run to its end. `stopping` says when that is."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping, self._made, self._share = stopping, 0, 0.0
        self._begun = time.perf_counter()
        self._history: list[Iteration] = []
        # log of what the rule measures, of each iteration that it was measured in
        self._logs: deque[float] = deque(maxlen=_MOST)
        self._first = -math.inf
        self._times: deque[tuple[int, float]] = deque(maxlen=_TIMED)
        self._ended = False

    def add(self, info: Iteration) -> None:
        """Note an iteration."""
        now, stopping = time.perf_counter(), self._stopping
        self._history.append(info)
        self._made = info.iteration
        self._times.append((info.iteration, now))
        measured = STOPPING_RULES[stopping.rule].measure(self._history)
        self._ended = self._made >= stopping.max_iter or measured <= stopping.tol > 0
        if self._trends and measured == measured:
            self._logs.append(math.log(max(measured, stopping.tol)))
            self._first = max(self._first, self._logs[-1])

    @property
    def _trends(self) -> bool:
        """Whether what the rule measures falls to tol little by little."""
        return self._stopping.tol > 0 and STOPPING_RULES[self._stopping.rule].of_training

    @property
    def share(self) -> float:
        """The share of the way that has been made, from 0 to 1, which never falls: of the
        iterations, of the time, or of the fall to tol on a log scale, whichever is most."""
        stopping, shares = self._stopping, [self._share]
        if stopping.max_iter > 0:
            shares.append(self._made / stopping.max_iter)
        if stopping.deadline < math.inf:
            length = stopping.deadline - self._begun
            shares.append((time.perf_counter() - self._begun) / length if length > 0 else 1.0)
        if self._logs:
            recent = list(self._logs)[-_SMOOTHED:]
            height = self._first - math.log(stopping.tol)
            fallen = self._first - sum(recent) / len(recent)
            shares.append(fallen / height if height > 0 else 1.0)
        self._share = 1.0 if self._ended else min(max(shares), 1.0)
        return self._share

    @property
    def speed(self) -> float | None:
        """Iterations a second, of the last ones; None before there are two."""
        if len(self._times) < 2:
            return None
        (before, since), (made, now) = self._times[0], self._times[-1]
        return (made - before) / max(now - since, 1e-9)

    def left(self) -> tuple[float, float] | None:
        """The least and the most seconds that are left, the least 0 where the rule may end the run
        at any time; None as long as nothing can be said."""
        speed, stopping = self.speed, self._stopping
        if speed is None:
            return None
        seconds = 1 / speed
        most = seconds * max(stopping.max_iter - self._made, 0)
        most = min(most, max(stopping.deadline - time.perf_counter(), 0.0))
        if stopping.tol <= 0:
            return most, most
        if not self._trends or len(self._logs) < _LEAST:
            return 0.0, most
        estimates = [each for share in _SHARES for each in self._iterations(share)]
        shortest = min(seconds * min(estimates) / _MARGIN, most)
        longest = min(seconds * max(estimates) * _MARGIN, most)
        # a few iterations more or less are no width
        says = shortest < most and longest + 3 * seconds <= _WIDEST * (shortest + 3 * seconds)
        return (shortest, longest) if says else (0.0, most)

    def _iterations(self, share: float) -> tuple[float, float]:
        """Iterations until the trend of the last ones is at tol: if it falls exponentially, and as
        a power of the iterations."""
        width = max(int(len(self._logs) * share), _LEAST // 2)
        logs, target = list(self._logs)[-width:], math.log(self._stopping.tol)
        numbers = range(self._made - width + 1, self._made + 1)
        exponential = _steps([float(number) for number in numbers], logs, target)
        power = _steps([math.log(number) for number in numbers], logs, target)
        return exponential, self._made * math.expm1(min(power, 700.0))


def _steps(x: list[float], y: list[float], target: float) -> float:
    """How far beyond the last x the line through the points is at the target; infinite where it
    does not fall."""
    middle, mean = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True))
    slope = products / sum((a - middle) ** 2 for a in x)
    now = mean + slope * (x[-1] - middle)
    return max(now - target, 0.0) / -slope if slope < 0 else math.inf
