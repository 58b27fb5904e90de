"""Extrapolation between the half-steps of a convex problem: codes for a dictionary that stays as it
is."""

from __future__ import annotations

import torch
from torch import Tensor


class Momentum:
    """Y = F + β (F − F_before), kept non-negative: where the next half-step starts; β grows, column
    by column.

    A column whose last move went against its extrapolation starts anew (β = 0), so that the loss
    falls all but monotonically. Works on each column of F (K, m) for itself, in place of nothing,
    and under autograd. Sources: Nesterov, 1983; restarts: O'Donoghue & Candès, 2015; with
    coordinate sweeps: Ang & Gillis, 2019.
    """

    def __init__(self, least_share: float) -> None:
        self._least_share = least_share
        self._before: Tensor | None = None
        self._started_at: Tensor | None = None
        self._t: Tensor | None = None

    def extrapolate(self, F: Tensor) -> Tensor:
        """Where the half-step after F should start; at least `least_share` of F."""
        if self._before is None:
            self._t = F.new_ones(F.shape[1])
            Y = F.clone()
        else:
            following = (1 + (1 + 4 * self._t.square()).sqrt()) / 2
            Y = F + (self._t - 1) / following * (F - self._before)
            Y = torch.maximum(Y, self._least_share * F)
            self._t = following
        self._before, self._started_at = F.clone(), Y
        return Y

    @torch.no_grad()
    def observe(self, F: Tensor) -> None:
        """Take note of what the half-step made of Y, and restart the columns that it turned
        back."""
        turned_back = ((self._started_at - F) * (F - self._before)).sum(0) > 0
        self._t = torch.where(turned_back, 1, self._t)
