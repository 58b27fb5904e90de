"""The cost model of iterations that are restricted to few concepts of each row: when they take less
time than those of all concepts. No tensors and no devices here."""

from __future__ import annotations

import math

from .hardware import Machine
from .plan import Candidate, Plan, Problem, predict

# bytes of the slopes of a tile: as many rows as products need to be fast; they are read twice while
# they are in the cache
_SLOPE_BYTES, _LEAST_ROWS, _MOST_ROWS = 16 << 20, 64, 1024
# what an active code costs, in units of reading its concept: some three candidates for each, whose
# concepts come from anywhere, and their sweeps
_PASSES = 120.0
# the calls of a restricted iteration of any size
_CALLS_SECONDS = 0.8e-3
# what a restricted iteration must gain: its time depends on how many slopes are above the penalty
_WORTH = 1.3


def slope_rows(K: int, itemsize: int) -> int:
    """Rows of a tile whose slopes of all K concepts are computed at once."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, _SLOPE_BYTES // (K * itemsize)))


def restricted_seconds(problem: Problem, plan: Plan, active: float, on: Machine) -> float:
    """The seconds of a restricted iteration, of `active` concepts per row."""
    n, d, K, itemsize = problem.n, problem.d, problem.K, problem.itemsize
    single = on.threads * 4 / itemsize
    seconds = _CALLS_SECONDS + 2 * n * d * K / (on.gemm * single)
    # slopes, and codes, which are read and written where they are
    seconds += 6 * n * K * itemsize / (on.far * on.threads)
    seconds += _PASSES * n * active * d * itemsize / (on.near * on.threads)
    if plan.dictionary == "normal":
        pairs = n * active**2
        seconds += pairs * 20e-9 + 2 * K * K * d / (on.gemm * single)
    return seconds


def restricting_pays(problem: Problem, plan: Plan, on: Machine, active: float) -> bool:
    """Whether a restricted iteration takes less time than one of the plan, where the last one left
    `active` concepts per row; NaN: there was none. Never without compiled sweeps: in plain torch
    those of few concepts take five times as long as those of all (2,000 × 384, K = 2,000)."""
    if math.isnan(active) or on.concept_seconds > 0:
        return False
    candidate = Candidate(plan.codes, plan.dictionary, plan.block, plan.tile_rows)
    of_all = predict(problem, candidate, on)
    return _WORTH * restricted_seconds(problem, plan, active, on) < of_all.seconds


def restricting_may_pay(problem: Problem, plan: Plan, on: Machine) -> bool:
    """Whether it does with one active concept per row: else they need not be counted."""
    return restricting_pays(problem, plan, on, 1.0)
