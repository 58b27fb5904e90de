"""The penalty of a fit that asks for a mean number of active concepts per row: it follows what the
codes have after each of their half-steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...solvers.penalties import Penalties

# of the root mean square norm of a row: where the penalty starts, and the least that it may be
_START, _LEAST = 0.01, 1e-7
# the share of the target by which the mean may be off before the penalty changes, and by which it
# counts as reached
_HELD, REACHED = 0.02, 0.05
# an error that is small enough; and one that the penalty cannot have answered yet, at the start
_LEAST_ERROR, _LARGE = 0.035, 0.65
# factors by which the penalty may grow and fall in one iteration: where it grew four times, all
# codes could become zero at once, and concepts alike
_GROWS, _FALLS = 2.0, 0.25
# the exponent grows by the first factor, below 1 by the second, while an error stays above this
# share of the one before: near as many active concepts as the data use without a penalty, the mean
# hardly depends on it. It falls by half where the error changes its sign by more than the share
# _HELD: codes of few features, or exact ones, follow the penalty more than in proportion, and would
# swing
_FASTER, _BACK, _STAYS, _SLOWER = 1.25, 1.5, 0.8, 0.5
_FLATTEST, _STEEPEST = 1 / 16, 3.0
# iterations with one penalty, after which a stopping rule compares like with like
_SETTLED = 10


@dataclass
class TargetL0:
    """The penalty l1 of the codes that gives `target` active concepts per row on average.

    After each half-step of the codes l1 ← l1 (mean_l0 / target)^exponent, clipped: it has no unit,
    and depends neither on the number of rows nor on that of features. While the mean is within 2 %
    of the target l1 stays. least: the smallest l1. mean_l0: after the last half-step, NaN before
    the first. error: log(mean_l0 / target) that l1 followed last. held: for how many iterations l1
    was not changed. It is part of the State of a fit.
    """

    target: float
    l1: float
    least: float
    mean_l0: float = math.nan
    error: float = math.nan
    exponent: float = 1.0
    held: int = 0

    @classmethod
    def begin(cls, target: float, squared_norm: float, n: int) -> TargetL0:
        """The penalty to start with, for n rows with this sum of squares."""
        norm = (squared_norm / n) ** 0.5
        return cls(target, _START * norm, _LEAST * norm)

    def follow(self) -> TargetL0:
        """Change l1 by what the last half-step left, before the next; return self."""
        if math.isnan(self.mean_l0):
            return self
        ratio = self.mean_l0 / self.target
        error = math.log(min(_GROWS, max(_FALLS, ratio)))
        self._learn(error)
        self.error = error
        factor = min(_GROWS, max(_FALLS, math.exp(self.exponent * error)))
        l1 = max(self.least, self.l1 * factor)
        if self.is_near(_HELD) or l1 == self.l1:
            self.held += 1
        else:
            self.l1, self.held = l1, 0
        return self

    def _learn(self, error: float) -> None:
        """Choose the exponent by how the error answered to the last change."""
        before = self.error
        if math.isnan(before):
            return
        if error * before <= 0:
            swings = min(abs(error), abs(before)) > _HELD
            self.exponent = self.exponent * _SLOWER if swings else min(1.0, self.exponent)
            self.exponent = max(_FLATTEST, self.exponent)
        elif max(_LEAST_ERROR, _STAYS * abs(before)) < abs(error) < _LARGE:
            grown = self.exponent * (_FASTER if self.exponent >= 1 else _BACK)
            self.exponent = min(_STEEPEST, grown)

    def is_near(self, share: float = REACHED) -> bool:
        """Whether the mean is off by this share of the target at most."""
        return abs(self.mean_l0 / self.target - 1) <= share

    @property
    def settled(self) -> bool:
        """Whether iterations may be compared: the penalty has been the same for some."""
        return self.held >= _SETTLED

    @property
    def is_least(self) -> bool:
        """Whether the penalty is as small as it may be."""
        return self.l1 <= self.least

    def penalties(self, d: int) -> Penalties:
        """The penalties of fits with d features that l1 stands for."""
        return Penalties(self.l1 / d, 0.0, 1.0, True)
