"""Half-steps of the codes alone, at the end of a fit whose last one missed the mean number of
active concepts that it asks for."""

from __future__ import annotations

import math

import torch

from ...data.dataset import Data
from ...planning.plan import Plan
from ...precision import allowed_for, products_in
from ..iteration import Step
from ..state import Method, State

# of these half-steps, each of which takes a part of an iteration: the mean follows a penalty late
_LEAST, _MOST = 2, 6


@torch.no_grad()
def approach_target_(state: State, data: Data, method: Method, plan: Plan, near: float) -> None:
    """Z ← the codes of some half-steps for D, with the penalty l1 of the target as it is, until
    their mean is off by the share `near` of the target at most. A collective call."""
    target = state.target
    assert target is not None
    with torch.cuda.device_of(state.D), products_in("highest"):
        step = Step(state, data, method, plan, allowed=allowed_for(state.D), waits=False)
        for number in range(1, _MOST + 1):
            # with a mean the penalty would follow it
            target.mean_l0 = math.nan
            step.follow_codes_()
            if number >= _LEAST and target.is_near(near):
                break
