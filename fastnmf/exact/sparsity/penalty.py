"""The penalty l1 at which exact codes have a given mean number of active concepts per row."""

from __future__ import annotations

import math
from collections.abc import Callable

# the mean of a sample of rows is found to this share, by so many encodings of it at most
_CLOSE, _MOST_ENCODINGS = 0.005, 16
# the logarithm of a factor by which the penalty may change while it is not bracketed
_FIRST, _LARGEST = 0.7, 4.0


def find_penalty(target: float, mean_l0: Callable[[float], float], guess: float) -> float:
    """The l1 whose mean_l0(l1) is nearest to the target, of those that are tried.

    mean_l0 falls with l1, in steps of one code. guess: an l1 > 0 to begin with. The logarithms are
    bracketed, then interpolated (Illinois).
    """
    found: list[tuple[float, float, float]] = []

    def miss(x: float) -> float:
        y = math.log(max(mean_l0(math.exp(x)), 1e-3) / target)
        found.append((abs(y), x, y))
        return y

    x = math.log(guess)
    y, step = miss(x), _FIRST
    low = high = (x, y)
    while low[1] * high[1] > 0 and not _ends(found):
        # outwards, by steps that grow
        x, step = (low[0] - step if y < 0 else high[0] + step), min(2 * step, _LARGEST)
        y = miss(x)
        low, high = ((x, y), low) if x < low[0] else (high, (x, y))
    while not _ends(found):
        (a, ya), (b, yb) = low, high
        x = (a * yb - b * ya) / (yb - ya)
        y = miss(x)
        if y * yb < 0:
            low, high = (b, yb), (x, y)
        else:
            low, high = (a, ya / 2), (x, y)
    return math.exp(min(found)[1])


def _ends(found: list[tuple[float, float, float]]) -> bool:
    return min(found)[0] <= _CLOSE or len(found) >= _MOST_ENCODINGS
