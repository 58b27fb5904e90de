"""What iterations measured, brought to the host: one transfer for as many as need not be watched."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..data.storage import NotKept
from .state import Iteration, State, Stopping

# of the residual's norm: beyond this drift it is computed anew twice as often
_MOST_DRIFT = 1e-2


class History:
    """The history of a State in progress; what was measured is read when it is asked for."""

    def __init__(self, state: State, squared_norm: Tensor | float, *, learns: bool = True) -> None:
        """squared_norm: ‖A‖². learns: whether the dictionary is updated, so that errors exist."""
        self._state, self._squared_norm, self._learns = state, squared_norm, learns
        self._unread: list[tuple[int, Tensor, float]] = []
        earlier = state.history[-1].seconds if state.history else 0.0
        self._begun = time.perf_counter() - earlier

    def __len__(self) -> int:
        """How many iterations are not read yet."""
        return len(self._unread)

    def add(self, iteration: int, sums: Tensor, *, watched: bool) -> None:
        """Add what an iteration measured; not watched: it is read after later ones."""
        seconds = time.perf_counter() - self._begun
        self._unread.append((iteration, sums if watched else sums.clone(), seconds))

    def read(self) -> None:
        """Append what was added to the history of the State."""
        self._state.history += self.take()

    def ends(self, stopping: Stopping, iteration: int) -> bool:
        """Read, and whether a run without processes or checkpoints ends here; the State says why."""
        self.read()
        history = self._state.history
        if stopping.each is not None and bool(stopping.each(history[-1])):
            self._state.stopped_by = "callback"
        elif stopping.converged(history):
            self._state.stopped_by = stopping.converged_by
        elif stopping.late():
            self._state.stopped_by = "max_seconds"
        else:
            return False
        return True

    def take(self) -> list[Iteration]:
        """The Iterations that were not read, in one transfer. Drifts found are noted; where one is
        large, the residual is computed anew more often. Raises ArithmeticError where the factors
        overflowed."""
        if not self._unread:
            return []
        # one that is on a device is read once
        self._squared_norm = float(self._squared_norm)
        sums = [sums for _, sums, _ in self._unread]
        stacked = sums[0][None] if len(sums) == 1 else torch.stack(sums)
        read = [
            self._iteration(number, *measured, seconds)
            for (number, _, seconds), measured in zip(self._unread, stacked.tolist(), strict=True)
        ]
        self._unread.clear()
        return read

    def _iteration(
        self, number: int, codes: list[float], dictionary: list[float], seconds: float
    ) -> Iteration:
        state, (change, norm, _, drift), (error, twice) = self._state, codes, dictionary[2:]
        if isinstance(state.Z, NotKept):
            change, norm = dictionary[:2]
        if not (norm < float("inf") and error < float("inf")):
            raise ArithmeticError(
                f"the factors overflowed in iteration {number}: A is too large for its dtype; "
                "scale it down (A / A.max()) or pass it as float64"
            )
        if drift > 0 and error > 0:
            state.drifts.append((drift / error) ** 0.5)
            large = state.drifts[-1] > _MOST_DRIFT
            state.refresh = max(1, state.refresh // 2) if large else state.refresh
        relative_change = (change / norm) ** 0.5 if norm > 0 else 0.0 if change == 0 else 1.0
        total = self._squared_norm
        error, objective = (
            (squared / total) ** 0.5 if total > 0 else 0.0
            for squared in (max(0.0, error), max(0.0, error) + twice)
        )
        if not self._learns:
            error = objective = float("nan")
        return Iteration(number, relative_change, error, seconds, relative_objective=objective)
