"""What the loop carries from one iteration to the next, what it reports of each, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..data.storage import InMemory, Storage
from ..planning.plan import REFRESH, Tuning
from ..solvers.base import Solver
from ..solvers.half_step import Operations
from ..solvers.penalties import NO_PENALTIES, Penalties
from .acceleration import Extrapolation
from .unit_norm import UnitNorm

STOPPING_RULES = ("codes", "error")
# iterations over which the error must fall by more than tol of it, with stop='error'
WINDOW = 10


@dataclass(frozen=True)
class Iteration:
    """What is known at the end of an iteration.

    Attributes
    ----------
    iteration : int
        Its number, from 1.
    relative_change : float
        ‖ΔZ‖ / ‖Z‖; where codes are not kept, ‖ΔD‖ / ‖D‖.
    relative_error : float
        ‖A − Z D‖ / ‖A‖. For 'mu' and 'pgd' in residual form with the dictionary that the codes were
        computed from, since only that error costs no extra pass; NaN where the dictionary is not
        learned. In float32 and normal form it is good to about 3e-4.
    seconds : float
        Time since the loop began.
    relative_objective : float
        The same pair with the penalties: √(‖A − Z D‖² + twice these) / ‖A‖.
    """

    iteration: int
    relative_change: float
    relative_error: float
    seconds: float
    relative_objective: float = field(default=float("nan"), kw_only=True)


Callback = Callable[[Iteration], "bool | None"]


@dataclass(frozen=True)
class Stopping:
    """When a run ends: after max_iter iterations; when ‖ΔZ‖ ≤ tol ‖Z‖ or, by the rule 'error', when
    the relative objective fell by no more than tol of it over WINDOW iterations; at the deadline,
    of time.perf_counter; where each(iteration) is true. tol ≤ 0 never stops early.
    """

    max_iter: int
    tol: float
    each: Callback | None = None
    rule: str = "codes"
    deadline: float = float("inf")

    @property
    def watches(self) -> bool:
        """Whether an iteration must be known before the next begins."""
        return self.tol > 0 or self.each is not None or self.deadline < float("inf")

    @property
    def converged_by(self) -> str:
        """'tol' or 'error': how a run ended whose rule was met."""
        return "tol" if self.rule == "codes" else self.rule

    def converged(self, history: list[Iteration]) -> bool:
        """Whether the rule is met."""
        if self.tol <= 0:
            return False
        if self.rule == "codes":
            return history[-1].relative_change <= self.tol
        if len(history) <= WINDOW:
            return False
        before, now = (history[i].relative_objective for i in (-1 - WINDOW, -1))
        return before - now <= self.tol * before

    def late(self) -> bool:
        return time.perf_counter() >= self.deadline


@dataclass(frozen=True)
class Method:
    """How half-steps are computed, whatever they are for: the solver, its operations, and backend,
    the name of what supplies them; what the caller forces of the plan; and what is added to the
    objective."""

    solver: Solver
    backend: str
    ops: Operations
    tuning: Tuning = Tuning()
    penalties: Penalties = NO_PENALTIES


@dataclass
class State:
    """A fit between two iterations: enough to go on to the same bits.

    Z: the codes (n, K) of the rows here, where they are kept. D (K, d). E (n, d): the residual
    A − Z D, where a later iteration reads it; after iterations_since_fresh iterations it is carried
    and not computed anew, after `refresh` it will be. drifts: by how much a residual that was
    carried in tf32 differed from a new one. carried: what an extrapolation carries, of a checkpoint
    (Extrapolation.state). revived: concepts that were given a row, each time counted. G (K, K) =
    D Dᵀ, where the next iteration reads it: always at one address. unit: where concepts have norm
    1. swept: whether an iteration was done. stopped_by: 'tol', 'error', 'max_iter', 'max_seconds'
    or 'callback'. repeats: iterations that were repeats of a recorded one.
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
    repeats: int = 0

    @property
    def codes(self) -> Tensor:
        """Z, which is in memory."""
        assert isinstance(self.Z, InMemory)
        return self.Z.Z

    @property
    def drift(self) -> float | None:
        """The largest of the drifts, or None."""
        return max(self.drifts, default=None)


class Saver(Protocol):
    """What saves a State between iterations."""

    def due(self) -> bool:
        """Whether it is time to save, in some process."""
        ...

    def save(self, state: State) -> None:
        """Save it, and leave where the process was asked to."""
        ...
