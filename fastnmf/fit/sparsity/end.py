"""The end of a fit: exact codes, and for a mean number of active concepts those that have it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...data.dataset import Data
from ...data.storage import NotKept
from ...engine.sparsity.last import approach_target_
from ...engine.sparsity.target import REACHED
from ...engine.state import Method, State, Stopping
from ...exact.final import ends_exactly, take_exact_codes_
from ...planning.plan import Plan
from ...solvers.penalties import Penalties
from .penalty import ROWS, Near, penalties_for

# the share of the target by which the mean of the last half-step may be off
_NEAR = 0.025
# multiplications of a product with the dictionary up to which exact codes, which take some twenty
# of these, are found at once
_SMALL = 2e8
# the share of the target by which the mean of some rows may be off, which differs by more from that
# of all; and rows and share where the mean of all is then measured
_CLOSE, _COARSE = 0.01, (256, 0.02)
# what penalties_for returns
Found = tuple[Penalties, float]


def end_(
    state: State,
    data: Data,
    method: Method,
    plan: Plan,
    stopping: Stopping,
    begun: float,
    method_of_codes: Callable[[torch.device], Method],
) -> Method:
    """Exact codes at the end of a fit that gains by them and has the time; for a mean number of
    active concepts those that have it, or where the last half-step missed it others that do. The
    method with the penalties that the fit has found."""
    ends, target = ends_exactly(state, data, method, stopping, begun), state.target
    if target is not None:
        exact, beyond = method_of_codes(data.device), None
        if not any(data.processes.any(ends)) and _misses(state):
            beyond = _half_steps_(state, data, method, exact, plan)
        end_at_target_(state, data, exact, gains=ends, found=beyond)
        return method.with_penalties(target.penalties(data.d))
    if ends:
        take_exact_codes_(state, data, method_of_codes(data.device))
    return method


def _misses(state: State) -> bool:
    """Whether the last half-step of codes that are kept missed the target, where another penalty
    may reach it: the same in all processes."""
    target = state.target
    assert target is not None
    reached = target.is_near(_NEAR) or target.is_least
    return not reached and bool(state.history) and not isinstance(state.Z, NotKept)


def _half_steps_(
    state: State, data: Data, method: Method, exact: Method, plan: Plan
) -> Found | None:
    """Z ← the codes of half-steps with the penalty at which exact codes of some rows have the mean
    the target asks for: of many rows, for which exact codes take longer. Where no penalty gives
    that mean, the one that comes nearest, and its mean; Z is left."""
    target = state.target
    assert target is not None
    if data.n * data.d * len(state.D) <= _SMALL:
        return None
    near = _near(state, data, *_COARSE)
    found, mean = penalties_for(target.target, data, state.D, exact, near=near)
    if abs(mean / target.target - 1) > REACHED:
        # then codes that are not exact may be nearer to it
        return found, mean
    target.l1 = max(target.least, found.of_codes(data.d).l1)
    approach_target_(state, data, method, plan, _NEAR)
    return None


def _near(state: State, data: Data, rows: int, close: float) -> Near:
    """Where a search for another penalty begins, on up to so many rows."""
    target = state.target
    assert target is not None
    return Near(target.l1, state.Z if data.processes.alone else NotKept(), rows, close)


def end_at_target_(
    state: State, data: Data, exact: Method, *, gains: bool, found: Found | None = None
) -> None:
    """Z ← the exact codes for D that have the mean the target asks for, with the penalty found for
    them, where exact codes lower the error anyway (`gains`), or the last half-step missed it.
    exact: the method of exact codes. found: a penalty and its mean, where they are known. A
    collective call."""
    target = state.target
    assert target is not None
    if isinstance(state.Z, NotKept) or not any(data.processes.any(gains, _misses(state))):
        return
    if found is None:
        near = _near(state, data, ROWS, _CLOSE)
        found = penalties_for(target.target, data, state.D, exact, near=near)
    penalties, mean = found
    wanted, now = target.target, target.mean_l0
    if not any(data.processes.any(gains)) and abs(mean - wanted) >= abs(now - wanted):
        # exact codes of some dictionaries use fewer concepts, whatever the penalty
        return
    target.l1 = max(target.least, penalties.of_codes(data.d).l1)
    take_exact_codes_(state, data, exact.with_penalties(target.penalties(data.d)), warm=True)
