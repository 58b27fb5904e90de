"""Extrapolation over whole iterations: how far ahead of the factors the next half-steps start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .solvers import squared_norm

# β at the start; its divisor when the error rose; how it and its bound grow when it fell
_BETA, _SHRINK, _GROW, _GROW_BOUND = 0.5, 1.5, 1.05, 1.01
# powers of two by which the norm of a concept may leave that of its start
_MOST_POWERS = 2


class Extrapolation:
    """F ← max(0, F + β (F − F_before)) for both factors, with β as large as the error lets it.

    The codes are moved before the dictionary is fitted to them, so that the pair (Z, D) which an
    iteration ends with is one whose error is known; the dictionary is moved after that, and taken
    back at the end. When the error has risen both go back to what the half-steps left, and β
    becomes less. least_share: how much of an entry must be left, so that none becomes zero for
    good. Holds a copy of both factors. Source: Ang & Gillis, 2019, algorithm 1.
    """

    def __init__(self, Z: Tensor, D: Tensor, least_share: float, scratch: Callable) -> None:
        self._Z, self._D = Z.clone(), D.clone()
        self._least_share, self._scratch = least_share, scratch
        self._beta, self._bound, self._beta_before = _BETA, 1.0, _BETA
        self._error = float("inf")
        self._norms = torch.linalg.vector_norm(D, dim=1)

    def move_codes_(self, Z: Tensor, rows: slice, sums: Tensor) -> None:
        """Move a piece of the codes on; sums become ‖ΔZ‖² and ‖Z‖² of the whole iteration, a piece
        added to the ones before it."""
        if rows.start == 0:
            self._sums = torch.zeros_like(sums[:2])
        delta = self._difference(Z, self._Z[rows])
        self._sums += torch.stack((squared_norm(delta), squared_norm(Z)))
        self._move_(Z, self._Z[rows], delta)
        # in the place of those of single sweeps
        sums[:2] = self._sums

    def move_dictionary_(self, D: Tensor) -> None:
        self._move_(D, self._D, self._difference(D, self._D))

    def judge_(self, error: float, Z: Tensor, D: Tensor) -> None:
        """Choose β by the error of the pair; where it has risen, Z and D go back."""
        if error > self._error:
            Z.copy_(self._Z)
            D.copy_(self._D)
            self._bound, self._beta = self._beta_before, self._beta / _SHRINK
        else:
            self._beta_before = self._beta
            self._beta = min(self._bound, _GROW * self._beta)
            self._bound = min(1.0, _GROW_BOUND * self._bound)
        self._error = error
        self._balance_(Z, D)

    def end_(self, D: Tensor) -> None:
        """D becomes what the last half-step left, of which the error is known."""
        D.copy_(self._D)

    def _difference(self, F: Tensor, before: Tensor) -> Tensor:
        return torch.sub(F, before, out=self._scratch("moved", *F.shape))

    def _move_(self, F: Tensor, before: Tensor, delta: Tensor) -> None:
        before.copy_(F)
        F.add_(delta, alpha=self._beta)
        torch.maximum(F, torch.mul(before, self._least_share, out=delta), out=F)

    def _balance_(self, Z: Tensor, D: Tensor) -> None:
        """Give concepts that grew or shrank beyond measure the norm of their start again, and their
        codes the inverse: extrapolated, one factor may grow and the other shrink without end.

        By powers of two, so that nothing is rounded.
        """
        norms = torch.linalg.vector_norm(D, dim=1)
        alive = (norms > 0) & (self._norms > 0)
        powers = torch.where(alive, (norms / self._norms).log2().round(), 0)
        if not (powers.abs() >= _MOST_POWERS).any():
            return
        scale = torch.exp2(powers)
        for F in (Z, self._Z):
            F.mul_(scale)
        for F in (D, self._D):
            F.div_(scale[:, None])
