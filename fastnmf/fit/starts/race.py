"""Several starts of one fit: short runs of all of them, of which the better half goes on, twice as
long, until one is left. The iterations are those of engine/loop.py."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...engine.state import Iteration, Starts, State, Stopping

log = logging.getLogger(__name__)

# a first run ends with the first iteration, from the LEAST-th on, that lowers the objective by less
# than the share _FALL of it: where errors of runs rank as they will at the end (bench/studies/
# starts.py)
_LEAST, _FALL = 10, 1e-3


@dataclass
class _Entry:
    """A start that is still in the race: its number, and the State of its run."""

    number: int
    state: State

    @property
    def objective(self) -> float:
        """What runs are compared by; one that has not begun is the worst."""
        history = self.state.history
        return history[-1].relative_objective if history else float("inf")


@dataclass(frozen=True)
class Race:
    """How starts are compared. make(number): the State that start `number` begins with.
    run_(state, stopping): iterate on it. stopping: that of the whole fit, whose callback short runs
    do not call. note(text): shows what is running."""

    make: Callable[[int], State]
    run_: Callable[[State, Stopping], None]
    stopping: Stopping
    note: Callable[[str], None]

    def best_of(self, count: int) -> State:
        """The State of the best of `count` starts after its last short run, which the fit goes on
        from, with a record of all of them."""
        errors = [float("inf")] * count
        entries: list[_Entry] = []
        length, spent = 0, 0
        for number in range(count):
            self.note(f"start {number + 1} of {count}")
            entry = _Entry(number, self.make(number))
            length = self._run_first_(entry.state, length)
            spent += len(entry.state.history)
            # codes of no more than the better half are kept
            entries = self._best([*entries, entry], count // 2, errors)
            if self.stopping.late():
                break
        while len(entries) > 1 and not self.stopping.late():
            length *= 2
            for entry in entries:
                self.note(f"{len(entries)} starts left")
                before = len(entry.state.history)
                self._run_(entry.state, length)
                spent += len(entry.state.history) - before
            entries = self._best(entries, len(entries) // 2, errors)
        best = self._best(entries, 1, errors)[0]
        log.info("start %d of %d is the best, after %d iterations", best.number, count, spent)
        record = Starts(best.number, tuple(errors), spent)
        return replace(best.state, stopped_by="max_iter", starts=record)

    def _run_first_(self, state: State, length: int) -> int:
        """Run a start for `length` iterations; 0: until its objective falls slowly. Return how many
        it was."""
        if length:
            self._run_(state, length)
            return length
        self._run_(state, self.stopping.max_iter, Slow())
        return max(1, len(state.history))

    def _run_(self, state: State, length: int, each: Slow | None = None) -> None:
        if state.stopped_by != "max_iter":
            # it has converged
            return
        most = min(length, self.stopping.max_iter)
        self.run_(state, replace(self.stopping, max_iter=most, each=each))
        if each is not None and state.stopped_by == "callback":
            state.stopped_by = "max_iter"
        # what a run leaves for its next iteration takes as much memory as the data
        state.E, state.G, state.iterations_since_fresh = None, None, 0

    @staticmethod
    def _best(entries: list[_Entry], count: int, errors: list[float]) -> list[_Entry]:
        """The best of the entries, at least one; the objectives of all go into `errors`."""
        for entry in entries:
            errors[entry.number] = entry.objective
        return sorted(entries, key=lambda entry: entry.objective)[: max(1, count)]


class Slow:
    """A callback that ends a run after an iteration, from the LEAST-th on, that lowers its
    objective by less than a share of it."""

    def __init__(self, fall: float = _FALL) -> None:
        self._before, self._fall = float("inf"), fall

    def __call__(self, iteration: Iteration) -> bool:
        now = iteration.relative_objective
        before, self._before = self._before, now
        return iteration.iteration >= _LEAST and before - now < self._fall * before
