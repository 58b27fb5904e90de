"""The end of a fit: exact codes, and for a mean number of active concepts those that have it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...data.dataset import Data
from ...data.storage import NotKept
from ...engine.state import Method, State, Stopping
from ...exact.final import ends_exactly, take_exact_codes_
from .penalty import penalties_for

# the share of the target by which the mean of the last half-step may be off
_NEAR = 0.025


def end_(
    state: State,
    data: Data,
    method: Method,
    stopping: Stopping,
    begun: float,
    method_of_codes: Callable[[torch.device], Method],
) -> Method:
    """Exact codes at the end of a fit that gains by them and has the time; the method with the
    penalties that the fit has found."""
    ends = ends_exactly(state, data, method, stopping, begun)
    if state.target is not None:
        end_at_target_(state, data, method_of_codes(data.device), gains=ends)
        return method.with_penalties(state.target.penalties(data.d))
    if ends:
        take_exact_codes_(state, data, method_of_codes(data.device))
    return method


def end_at_target_(state: State, data: Data, exact: Method, *, gains: bool) -> None:
    """Z ← the exact codes for D that have the mean the target asks for, with the penalty found for
    them, where exact codes lower the error anyway (`gains`), or the last half-step missed it.
    exact: the method of exact codes. A collective call."""
    target = state.target
    assert target is not None
    misses = not target.is_near(_NEAR) and not target.is_least and bool(state.history)
    if isinstance(state.Z, NotKept) or not any(data.processes.any(gains, misses)):
        return
    found, mean = penalties_for(target.target, data, state.D, exact, guess=target.l1)
    wanted, now = target.target, target.mean_l0
    if not any(data.processes.any(gains)) and abs(mean - wanted) >= abs(now - wanted):
        # exact codes of some dictionaries use fewer concepts, whatever the penalty
        return
    target.l1 = max(target.least, found.of_codes(data.d).l1)
    take_exact_codes_(state, data, exact.with_penalties(target.penalties(data.d)))
