"""The State of a fit, an Iteration of its history, and the rules by which a run ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from ..data.storage import InMemory, Storage
from ..planning.plan import REFRESH, Tuning
from ..solvers.base import Solver
from ..solvers.constraints import NON_NEGATIVE, Constraint
from ..solvers.half_step import Compute, Operations, Workspace
from ..solvers.penalties import NO_PENALTIES, Penalties
from ..solvers.supports.rows import Mixing, Mixture, Rows

if TYPE_CHECKING:
    # not loaded with the models, which need the types of this module
    from .acceleration import Extrapolation
    from .sparsity.target import TargetL0
    from .unit_norm import UnitNorm

# iterations from one measurement of the validation rows to the next: exact codes of a tenth of the
# rows take as long as some 1 to 3 iterations; and measurements without a new best that end a fit
VALIDATED_EVERY, PATIENCE = 10, 3
# iterations over which the error must fall by more than its share tol, with stop='error'
WINDOW = 10


@dataclass(frozen=True)
class Iteration:
    """The report of one iteration, given to callbacks and kept in the history of a fit.

    Attributes
    ----------
    iteration : int
        Its number, from 1.
    relative_change : float
        The larger of ‖ΔZ‖ / ‖Z‖ and ‖ΔD‖ / ‖D‖ of the iteration, 0 or more; where codes are not
        kept, that of D. In callbacks of `encode` that of Z.
    relative_error : float
        ‖A − Z D‖ / ‖A‖, from 0 (exact) to about 1 (nothing explained), accurate to 1 % of itself
        or to 1e-6. Where rounding allows that only by another pass over A, one is made: in float32
        and normal form below 1.4e-2. For 'mu' and 'pgd' in residual form D is the dictionary before
        the iteration. NaN in callbacks of `encode`.
    seconds : float
        Time since the loop began, earlier runs of a resumed fit included.
    relative_objective : float
        The same with the penalties P of the factors: √(‖A − Z D‖² + 2 P) / ‖A‖.
    validation_error, validation_l0 : float or None
        ‖V − Z D‖ / ‖V‖ for exact codes Z of the rows V of ``fit(A, validation=V)``, and the mean
        number of their active concepts; None in iterations that were not measured.
    """

    iteration: int
    relative_change: float
    relative_error: float
    seconds: float
    relative_objective: float = field(default=float("nan"), kw_only=True)
    validation_error: float | None = field(default=None, kw_only=True)
    validation_l0: float | None = field(default=None, kw_only=True)


Callback = Callable[[Iteration], "bool | None"]


class Rule(NamedTuple):
    """A stopping rule. measure(history): what ends a run once it is tol or less; NaN before it can
    be measured. stopped_by: how the run is then recorded. condition: what the summary prints.
    of_training: whether it waits for the objective to stop falling."""

    measure: Callable[[list[Iteration]], float]
    stopped_by: str
    condition: str
    of_training: bool = True

    def met(self, history: list[Iteration], tol: float) -> bool:
        """Whether a run has converged."""
        return self.measure(history) <= tol


def _change(history: list[Iteration]) -> float:
    return history[-1].relative_change


def _fall_of_error(history: list[Iteration]) -> float:
    """The share by which the objective fell over WINDOW iterations."""
    if len(history) <= WINDOW:
        return float("nan")
    return _fall(*(history[i].relative_objective for i in (-1 - WINDOW, -1)))


def _fall_of_validation(history: list[Iteration]) -> float:
    """The share by which the least error is less than it was PATIENCE measurements before."""
    errors = [now.validation_error for now in history if now.validation_error is not None]
    if len(errors) <= PATIENCE:
        return float("nan")
    return _fall(min(errors[:-PATIENCE]), min(errors[-PATIENCE:]))


def _fall(before: float, now: float) -> float:
    # from zero nothing falls
    return 0.0 if before == now else (before - now) / before


# values of `stop` → rule
STOPPING_RULES = {
    "change": Rule(_change, "tol", "both factors change by less than tol"),
    "error": Rule(_fall_of_error, "error", "the error falls by less than tol"),
    "validation": Rule(
        _fall_of_validation,
        "validation",
        "the error of validation rows falls by less than tol; the best dictionary was kept",
        of_training=False,
    ),
}


@dataclass(frozen=True)
class Stopping:
    """When a run ends: after max_iter iterations; if ‖ΔF‖ ≤ tol ‖F‖ for both factors or, by the
    rule 'error', if the relative objective fell by no more than its share tol over WINDOW
    iterations; by the rule 'validation', if the validation error found no new best PATIENCE times;
    at the deadline, a time of time.perf_counter; if each(iteration) is true. tol = 0 never stops
    early. check(state): called after each iteration, before all else.
    """

    max_iter: int
    tol: float
    each: Callback | None = None
    rule: str = "change"
    deadline: float = float("inf")
    check: Callable[[State], None] | None = None

    @property
    def watches(self) -> bool:
        """Whether an iteration must be read before the next begins."""
        calls = self.each is not None or self.check is not None
        return calls or self.tol > 0 or self.deadline < float("inf")

    @property
    def converged_by(self) -> str:
        """stopped_by of a run whose rule is met."""
        return STOPPING_RULES[self.rule].stopped_by

    def converged(self, history: list[Iteration]) -> bool:
        """Whether the rule is met."""
        return self.tol > 0 and STOPPING_RULES[self.rule].met(history, self.tol)

    def late(self) -> bool:
        return time.perf_counter() >= self.deadline


@dataclass(frozen=True)
class Method:
    """How half-steps are computed in fits, encoding and online learning: the solver; its operations
    and the name of the backend that supplies them; the choices of the plan that the caller forces;
    the penalties; and the constraint of the dictionary."""

    solver: Solver
    backend: str
    ops: Operations
    tuning: Tuning = field(default_factory=Tuning)
    penalties: Penalties = NO_PENALTIES
    constraint: Constraint = NON_NEGATIVE

    def with_penalties(self, penalties: Penalties) -> Method:
        """The same with other penalties."""
        return replace(self, penalties=penalties)

    def compute(self, block: int, D: Tensor, allowed: str = "highest") -> Compute:
        """What half-steps of the codes compute with, given D, with blocks of so many concepts."""
        scratch = Workspace(D.dtype, D.device)
        return Compute(self.ops, block, scratch, allowed, fixed=self.constraint)


@dataclass(frozen=True)
class Starts:
    """The starts that a fit was chosen from: which of them was the best, from 0; the relative
    objective of each after its last short run, infinite where there was no time for one; and the
    iterations of all short runs."""

    best: int
    errors: tuple[float, ...]
    iterations: int


@dataclass(frozen=True)
class Sampled:
    """The fits of samples that a fit of all rows began with: the rows of the largest, 0 where there
    were too few for one; the iterations and the seconds of all; and ‖H − Z D‖ / ‖H‖ of `held_out`
    other rows H, with exact codes."""

    rows: int = 0
    iterations: int = 0
    seconds: float = 0.0
    held_out: int = 0
    error: float | None = None


@dataclass(frozen=True)
class Best:
    """The dictionary with the least validation error so far, its offset, mixture and penalty l1
    where there are such; and the iteration that had it, as measured."""

    measured: Iteration
    D: Tensor
    offset: Tensor | None = None
    mixture: Mixture | None = None
    l1: float | None = None

    @classmethod
    def of(
        cls,
        measured: Iteration,
        D: Tensor,
        offset: Tensor | None,
        mixture: Mixture | None,
        l1: float | None,
    ) -> Best:
        """Copies of these."""
        mixture = None if mixture is None else Mixture(*map(Tensor.clone, vars(mixture).values()))
        offset = None if offset is None else offset.clone()
        return cls(measured, D.clone(), offset, mixture, l1)

    @property
    def error(self) -> float:
        assert self.measured.validation_error is not None
        return self.measured.validation_error

    def restore_(self, state: State) -> None:
        """Give the State what this has."""
        state.D.copy_(self.D)
        if state.offset is not None:
            state.offset.copy_(self.offset)
        if state.mixture is not None and self.mixture is not None:
            vars(state.mixture).update(vars(self.mixture))
        if state.target is not None and self.l1 is not None:
            state.target.l1 = self.l1


@dataclass
class State:
    """A fit between two iterations: what the loop advances, a checkpoint stores and a summary
    reads. A run that continues from it has the same bits.

    Z: where the codes (n, K) of the rows here are. D (K, d). offset (d,): the row b of A ≈ Z D + b,
    or None; then A is A − b wherever the rest speaks of it. E (n, d): the residual A − Z D, where
    a later iteration reads it; computed anew every `refresh` iterations, the last time
    iterations_since_fresh iterations ago. drifts: relative differences between residuals that were
    carried in tf32 and new ones. carried: Extrapolation.state of a checkpoint. revived: concepts
    that were given a row, counted each time. G (K, K) = D Dᵀ, where the next iteration reads it, at
    one address. unit: where concepts have norm 1. swept: whether an iteration was done.
    stopped_by: 'tol', 'error', 'max_iter', 'max_seconds' or 'callback'. exact_codes: whether Z is
    exact for D, at the end of a fit. repeats: iterations that repeated a recording. seed: of the
    start, given or drawn. mixture: the rows of the data that concepts are mixtures of, or None.
    offset: the row (d,) of a model that has one. target: the penalty that follows a mean number of
    active concepts. mean_l0: active concepts of a row after the last half-step of the codes, where
    they are counted, else NaN. starts: those that the fit was chosen from, or None where it has
    one. best: with stop='validation', the best dictionary so far. sample: the fits of samples that
    it began with, where they were asked for.
    """

    Z: Storage
    D: Tensor
    E: Tensor | None = None
    history: list[Iteration] = field(default_factory=list)
    iterations_since_fresh: int = 0
    refresh: int = REFRESH
    drifts: list[float] = field(default_factory=list)
    carried: dict[str, Tensor] | None = None
    revived: int = 0
    G: Tensor | None = None
    extrapolation: Extrapolation | None = None
    unit: UnitNorm | None = None
    swept: bool = False
    stopped_by: str = "max_iter"
    exact_codes: bool = False
    repeats: int = 0
    seed: int | None = None
    mixture: Mixture | None = None
    offset: Tensor | None = None
    target: TargetL0 | None = None
    mean_l0: float = math.nan
    starts: Starts | None = None
    best: Best | None = None
    sample: Sampled | None = None

    @property
    def codes(self) -> Tensor:
        """Z, which must be in memory."""
        assert isinstance(self.Z, InMemory)
        return self.Z.Z

    def take_mean_l0(self, active: float | None, n: int) -> None:
        """Take the number of active codes of n rows, where it was counted."""
        if active is not None:
            self.mean_l0 = active / n
        if self.target is not None:
            self.target.mean_l0 = self.mean_l0

    def mixing(self, data: Rows, constraint: Constraint) -> Mixing | None:
        """The mixture with the rows of the data, where concepts are mixtures."""
        return Mixing.of(data, self.mixture, convex=constraint.sums_to_one)

    @property
    def drift(self) -> float | None:
        """The largest of the drifts, or None."""
        return max(self.drifts, default=None)


class Saver(Protocol):
    """Saves a State between iterations."""

    def due(self) -> bool:
        """Return whether to save now: the same answer in all processes."""
        ...

    def save(self, state: State) -> None:
        """Save the State; may end the process."""
        ...
