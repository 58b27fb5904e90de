"""The penalty l1 at which exact codes have a given mean number of active concepts per row."""

from __future__ import annotations

import math
from collections.abc import Callable

# the share to which the mean is found, by so many encodings at most
CLOSE, _MOST_ENCODINGS = 0.005, 16
# how log(mean) answers to log(l1) where only one penalty was tried, and bounds of what two find
_SLOPE, _FLATTEST, _STEEPEST = -0.5, -0.1, -4.0
# the logarithm of a factor by which the penalty may change while it is not bracketed; from which on
# a change tells whether the mean still answers; and to which it is found
_LARGEST, _LONG, _NARROW = 4.0, 1.5, 1e-4
# the share of what is missed by which the mean must move in such a change
_ANSWERS = 0.02
# a mean that counts as zero
_NONE = 1e-3


def find_penalty(
    target: float, mean_l0: Callable[[float], float], guess: float, close: float = CLOSE
) -> float:
    """The l1 whose mean_l0(l1) is nearest to the target, of those that are tried.

    mean_l0 falls with l1, in steps of one code. guess: an l1 > 0 to begin with. close: the share of
    the target by which the mean may be off. A secant of the logarithms, which are then bracketed
    and interpolated (Illinois). Ends as well where smaller penalties change the mean no more.
    """
    found: list[tuple[float, float, float]] = []

    def miss(x: float) -> float:
        y = math.log(max(mean_l0(math.exp(x)), _NONE) / target)
        found.append((abs(y), x, y))
        return y

    def ends() -> bool:
        return min(found)[0] <= close or len(found) >= _MOST_ENCODINGS

    a, b = _bracket(miss, math.log(guess), ends, math.log(_NONE / target))
    while a[1] * b[1] < 0 and not ends() and abs(b[0] - a[0]) > _NARROW:
        x = (a[0] * b[1] - b[0] * a[1]) / (b[1] - a[1])
        new = x, miss(x)
        # b is the newest; one that stays again counts half
        a = b if new[1] * b[1] < 0 else (a[0], a[1] / 2)
        b = new
    return math.exp(min(found)[1])


Point = tuple[float, float]


def _bracket(
    miss: Callable[[float], float], x: float, ends: Callable[[], bool], zero: float
) -> tuple[Point, Point]:
    """Two points (x, y) between which y = miss(x) changes its sign; or where ends() is true, or
    smaller x change y no more, the last two. zero: y of codes that are all zero."""
    slope, step, flat = _SLOPE, 0.0, 0
    now = before = x, miss(x)
    while not ends():
        before, (x, y) = now, now
        # at least doubled where the mean hardly answers
        least = 2 * abs(step) if slope == _FLATTEST else 0.0
        step = math.copysign(min(_LARGEST, max(least, abs(y / slope))), y)
        now = x + step, miss(x + step)
        if now[1] * y <= 0:
            break
        moved = abs(now[1] - y)
        stays = y < 0 and now[1] > zero and moved < _ANSWERS * abs(y) and abs(step) >= _LONG
        flat = flat + 1 if stays else 0
        if flat == 2:
            break
        slope = max(_STEEPEST, min(_FLATTEST, (now[1] - y) / step))
    return before, now
