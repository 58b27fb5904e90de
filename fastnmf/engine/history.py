"""The history of a run: what iterations measured, transferred to the host for several at a time
where no rule reads them; and what iterations of any kind share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..data.dataset import Data
from ..data.storage import NotKept
from ..distributed import Processes
from ..planning.plan import Plan
from ..solvers.half_step import Compute
from .acceleration import Extrapolation
from .state import Iteration, Method, State, Stopping
from .statistics import Statistics
from .unit_norm import UnitNorm

# the drift of a residual, relative to its norm, beyond which it is computed anew twice as often
_MOST_DRIFT = 1e-2


# what rounding may add to a squared relative error, in units of the dtype's precision: to one that
# is computed in normal form, a difference of large numbers, at most 30 were seen; and between two
# iterations
_NOISE, _NOISE_BETWEEN = 32, 4
# the relative error of an error that is good enough
_ACCURATE = 0.01
# the relative error down to which solvers that form the residual in every half-step may do so in
# tf32: rounding alone gives an error of 2e-4
_COARSE_DOWN_TO = 1e-2


def error_is_large(history: list[Iteration]) -> bool:
    """Whether the residual may be formed coarsely in the next iteration."""
    return not history or history[-1].relative_error > _COARSE_DOWN_TO


class History:
    """Reads what iterations measured into the history of a State, when it is needed."""

    def __init__(
        self,
        state: State,
        squared_norm: Tensor | float,
        *,
        learns: bool = True,
        least: float | None = None,
    ) -> None:
        """squared_norm: ‖A‖². learns: whether the dictionary is updated, so that errors exist.
        least: the least of the numbers that an error is the difference of, by default ‖A‖²."""
        self._least = least
        self._state, self._squared_norm, self._learns = state, squared_norm, learns
        self._eps = torch.finfo(state.D.dtype).eps
        self._unread: list[tuple[int, Tensor, float]] = []
        # that of the numbers of which the last error read is a difference, relative to ‖A‖²
        self._size = 1.0
        earlier = state.history[-1].seconds if state.history else 0.0
        self._begun = time.perf_counter() - earlier

    @property
    def _least_size(self) -> float:
        if self._least is None:
            return 1.0
        total = float(self._squared_norm)
        return 1.0 if total == 0 else self._least / total

    def __len__(self) -> int:
        """The number of iterations that are not read yet."""
        return len(self._unread)

    def add(self, iteration: int, sums: Tensor, *, watched: bool) -> None:
        """Add what an iteration measured. sums: Statistics.sums, which are copied unless they are
        `watched`: read before the next iteration. Does not synchronise."""
        seconds = time.perf_counter() - self._begun
        self._unread.append((iteration, sums if watched else sums.clone(), seconds))

    def read(self) -> None:
        """Append what was added to the history of the State. Synchronises."""
        self._state.history += self.take()

    def ends(self, stopping: Stopping) -> bool:
        """Read, and return whether a run of one process without checkpoints ends here, with the
        reason in the State."""
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
        """Return the Iterations that were not read, by one transfer. Drifts of the residual are
        added to the State; after a large one the residual is computed anew more often. Raises
        ArithmeticError if the factors overflowed."""
        if not self._unread:
            return []
        # one that is on a device is read once
        self._squared_norm = float(self._squared_norm)
        sums = [sums for _, sums, _ in self._unread]
        numbers = [sums[0].tolist()] if len(sums) == 1 else torch.stack(sums).tolist()
        read = [
            self._iteration(number, *measured, seconds)
            for (number, _, seconds), measured in zip(self._unread, numbers, strict=True)
        ]
        self._unread.clear()
        return read

    def measured(
        self, normal: bool, carries: bool, squared_error: Callable[[], float], processes: Processes
    ) -> tuple[list[Iteration], float]:
        """The Iterations that were not read, and what rounding may add to the squared error of the
        last, whose error is computed from the residual where it is too coarse. normal: whether the
        dictionary half-step is in normal form. carries: whether the residual is kept. A collective
        call."""
        read = self.take()
        last = read[-1]
        coarse = normal and any(processes.any(self.is_coarse(last)))
        if coarse:
            last = self.with_error(last, squared_error())
        elif carries and self.may_be_rounded(read):
            exact = self.with_error(last, squared_error())
            if abs(exact.relative_error - last.relative_error) > _ACCURATE * exact.relative_error:
                last, self._state.iterations_since_fresh = exact, 0
        return [*read[:-1], last], self.noise(last, of_difference=normal and not coarse)

    def with_error(self, iteration: Iteration, squared_error: float) -> Iteration:
        """The Iteration with the errors that follow from ‖A − Z D‖²."""
        total = float(self._squared_norm)
        squared = squared_error / total if total > 0 else 0.0
        penalties = iteration.relative_objective**2 - iteration.relative_error**2
        objective = (squared + max(0.0, penalties)) ** 0.5
        return replace(iteration, relative_error=squared**0.5, relative_objective=objective)

    def is_coarse(self, iteration: Iteration) -> bool:
        """Whether rounding may change an error in normal form by more than 1 %."""
        rounding = _NOISE * self._eps * self._size
        return 2 * _ACCURATE * iteration.relative_error**2 < rounding

    def may_be_rounded(self, read: list[Iteration]) -> bool:
        """Whether an updated residual may hold the rounding of a larger one, of the start or since
        it was computed anew, by which the error of the last iteration read is 1 % off."""
        state = self._state
        updates = state.iterations_since_fresh or state.refresh
        earlier = [*state.history, *read[:-1]][-updates:]
        largest = max((one.relative_error for one in earlier), default=float("inf"))
        rounding = updates * torch.finfo(state.D.dtype).eps * largest
        return rounding > _ACCURATE * read[-1].relative_error

    def noise(self, iteration: Iteration, *, of_difference: bool) -> float:
        """What rounding may add to the squared relative error between two iterations.
        of_difference: whether that is computed in normal form."""
        eps = self._eps
        # where concepts cancel more than that is rounding: to allow it would allow true rises
        size = self._least_size if of_difference else iteration.relative_error**2 + eps / 4
        return _NOISE_BETWEEN * eps * size

    def still_falls(self, tol: float, spread: float) -> bool:
        """Whether the last iteration lowered the objective by more than the share tol of what
        differs between the rows of A, their spread: beside a large mean, factors that seem to stand
        still may still learn that."""
        if len(self._state.history) < 2:
            return False
        before, now = (one.relative_objective for one in self._state.history[-2:])
        return before - now > tol * spread

    def _iteration(
        self, number: int, codes: list[float], dictionary: list[float], seconds: float
    ) -> Iteration:
        state, drift, (error, twice, *sizes) = self._state, codes[3], dictionary[2:]
        # no generators here: where iterations are small they take as long as a product
        (moved_Z, norm_Z), (moved_D, norm_D) = codes[:2], dictionary[:2]
        if isinstance(state.Z, NotKept):
            moved_Z = norm_Z = 0.0
        if not (norm_Z < math.inf and norm_D < math.inf and error < math.inf):
            raise ArithmeticError(
                f"the factors overflowed in iteration {number}: A, or a start or penalty that was "
                "given, is too large for the dtype; scale it down (A / abs(A).max()) or pass A as "
                "float64"
            )
        if drift > 0 and error > 0:
            state.drifts.append((drift / error) ** 0.5)
            large = state.drifts[-1] > _MOST_DRIFT
            state.refresh = max(1, state.refresh // 2) if large else state.refresh
        relative_change = max(_relative(moved_Z, norm_Z), _relative(moved_D, norm_D))
        total = self._squared_norm
        self._size = self._least_size
        if sizes and total > 0:
            self._size = max(self._size, sizes[0] / total)
        if not self._learns:
            error = objective = math.nan
        elif total > 0:
            error = max(0.0, error)
            error, objective = (error / total) ** 0.5, ((error + twice) / total) ** 0.5
        else:
            error = objective = 0.0
        return Iteration(number, relative_change, error, seconds, relative_objective=objective)


def _relative(change: float, norm: float) -> float:
    """‖ΔF‖ / ‖F‖, given their squares; 1 where only the latter is zero."""
    return (change / norm) ** 0.5 if norm > 0 else float(change != 0)


class Iterated:
    """What iterations of any kind share: the State, the data and the statistics of an iteration.
    Who extends it is called to iterate, and says how an error is computed from the residual."""

    statistics: Statistics
    # what rounding may add to the squared error that was read last
    noise = 0.0

    def __init__(self, state: State, data: Data, method: Method, plan: Plan) -> None:
        self.state, self.data, self.method, self.plan = state, data, method, plan
        self.processes = data.processes
        self.penalties = method.penalties.of_both(data.n, data.d)

    def _begin_(self, waits: bool, least: float | None = None) -> None:
        """What the State carries from one iteration to the next, once there are statistics. waits:
        whether an accelerated iteration may synchronise. least: as for History."""
        state, method, plan = self.state, self.method, self.plan
        state.swept, D = bool(state.history), state.D
        state.unit = UnitNorm() if method.penalties.unit_norm else None
        if plan.accelerates:
            pair, share = (state.codes, D), method.solver.least_share
            kind = {"waits": waits, "signed": method.constraint.signed, "offset": state.offset}
            state.extrapolation = Extrapolation(*pair, share, plan.tile_rows, method.ops, **kind)
            if state.carried is not None:
                state.extrapolation.restore(state.carried)
        if state.unit is not None and not state.swept:
            state.unit.normalise_(D, D, self.statistics)
        self.history = History(state, self.data.squared_norm, least=least)

    def _whole_iterations(self, compute: Compute) -> Callable[[float], None] | None:
        """What computes accelerated iterations in few calls, or None where the backend has none, or
        they are of another kind than it computes. compute: of half-steps of hals on rows."""
        state, plan, extrapolation = self.state, self.plan, self.state.extrapolation
        make, A = compute.ops.get("accelerated_"), self.data.as_it_is
        if make is None or extrapolation is None or A is None or not compute.bounded:
            return None
        plain = plan.codes == plan.dictionary == "normal" and plan.tile_rows >= len(A)
        # what follows the codes or the dictionary, besides extrapolation
        others = state.unit, state.target, state.mixture, self.statistics.active
        if not plain or self.method.penalties or any(each is not None for each in others):
            return None
        before, to = extrapolation.watched, self.statistics.overwritten
        return before and make((state.codes, state.D), A, before, to, plan.inner)

    @property
    def sums(self) -> Tensor:
        """Statistics.sums of the iteration."""
        return self.statistics.sums

    def _read(self, *forms: bool) -> list[Iteration]:
        read, self.noise = self.history.measured(*forms, self._squared_error, self.processes)
        return read

    def _squared_error(self) -> float:
        """‖A − Z D‖², weighted where the data are, from the residual. A collective call."""
        raise NotImplementedError

    def apply_scale_(self) -> None:
        """Apply to the codes what was left for the next pass over them."""
        if self.state.unit is not None:
            self.state.unit.apply_scale_(self.state.Z)

    def snapshot(self) -> State:
        """The State as a checkpoint stores it."""
        self.apply_scale_()
        extrapolation = self.state.extrapolation
        carried = None if extrapolation is None else extrapolation.state()
        return replace(self.state, E=self._kept_residual(), carried=carried)

    def _kept_residual(self) -> Tensor | None:
        """The residual that the next iteration reads, or None."""
        return None
