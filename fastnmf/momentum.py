"""Extrapolation between the half-steps of a convex problem: codes for a dictionary that stays."""

from __future__ import annotations

import torch
from torch import Tensor

from .solvers import Solver

# half-steps after which the momentum starts anew: at K > d, 10 leaves ten times the loss after 300
# half-steps; never starting anew leaves a little less, but nothing then bounds an overshoot
_RESTART = 40


class Momentum:
    """Y = F + β (F − F_before), kept non-negative: where the half-step after F should start.

    β grows with the half-steps, up to the solver's most_momentum, and not with what they find: so
    the codes stay a continuous function of the data. Works out of place, and so under autograd.
    Source: Nesterov, 1983; with coordinate sweeps: Ang & Gillis, 2019; restarts: O'Donoghue &
    Candès, 2015.
    """

    def __init__(self, solver: Solver, D: Tensor, *, penalised: bool) -> None:
        """D (K, d): the dictionary that stays; penalised: whether codes have a penalty."""
        swings = penalised and len(D) > D.shape[1]
        self._most = solver.penalised_momentum if swings else solver.most_momentum
        self._least_share = solver.least_share
        self._before: Tensor | None = None
        self._taken = 0
        self._t = 1.0

    def extrapolate(self, F: Tensor) -> Tensor:
        """Y (K, m) for F (K, m); at least the solver's least_share of F."""
        if self._taken % _RESTART == 0:
            self._t, Y = 1.0, F.clone()
        else:
            following = (1 + (1 + 4 * self._t**2) ** 0.5) / 2
            beta = min((self._t - 1) / following, self._most)
            Y = torch.lerp(self._before, F, 1 + beta)
            Y = torch.maximum(Y, self._least_share * F)
            self._t = following
        self._taken += 1
        self._before = F.clone()
        return Y
