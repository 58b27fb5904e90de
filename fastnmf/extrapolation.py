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

    The dictionary is moved before an iteration, the codes between its halves: so it ends with a
    pair (Z, D) that is feasible and whose error is known. Where that has risen, the pair of the
    iteration before is taken back, to be followed by an iteration that moves nothing: so the error
    never rises. least_share: how much of an entry must be left, so that none becomes zero for good.
    Holds two copies of the codes and one of the dictionary. Source: Ang & Gillis, 2019, algorithm
    1, which goes on from the half-steps' own factors instead.
    """

    def __init__(self, Z: Tensor, D: Tensor, least_share: float, scratch: Callable) -> None:
        self._swept, self._Z, self._D = Z.clone(), Z.clone(), D.clone()
        self._norms = torch.linalg.vector_norm(D, dim=1)
        self._least_share, self._scratch = least_share, scratch
        self._beta, self._bound, self._beta_before = _BETA, 1.0, _BETA
        self._squared_error, self._still = float("inf"), False
        # what rounding may add to a squared error, relative to that of zero factors
        self._noise = 4 * torch.finfo(D.dtype).eps

    def begin_(self, Z: Tensor, D: Tensor) -> None:
        """Keep the pair that an iteration begins with, and move the dictionary on."""
        self._balance_(Z, D)
        self._Z.copy_(Z)
        delta = torch.sub(D, self._D, out=self._scratch("moved", *D.shape))
        self._D.copy_(D)
        self._still = False
        self._move_(D, self._D, delta)

    def move_codes_(self, Z: Tensor, rows: slice, sums: Tensor) -> None:
        """Move a piece of the codes on, between the half-steps; sums become ‖ΔZ‖² and ‖Z‖² of the
        whole iteration, a piece added to the ones before it."""
        if rows.start == 0:
            self._sums = torch.zeros_like(sums[:2])
        swept = self._swept[rows]
        delta = torch.sub(Z, swept, out=self._scratch("moved", *Z.shape))
        swept.copy_(Z)
        self._move_(Z, swept, delta)
        torch.sub(Z, self._Z[rows], out=delta)
        self._sums += torch.stack((squared_norm(delta), squared_norm(Z)))
        # in the place of those of single half-steps
        sums[:2] = self._sums

    def rose(self, relative_error: float) -> bool:
        """Whether the error of the pair is above that of the one before; β is chosen by that."""
        squared = relative_error**2
        if squared > self._squared_error + self._noise and not self._still:
            self._bound, self._beta = self._beta_before, self._beta / _SHRINK
            return True
        if not self._still:
            self._beta_before = self._beta
            self._beta = min(self._bound, _GROW * self._beta)
            self._bound = min(1.0, _GROW_BOUND * self._bound)
        self._squared_error = squared
        return False

    def take_back_(self, Z: Tensor, D: Tensor) -> None:
        """The pair that the iteration began with again; nothing moves on in the next."""
        Z.copy_(self._Z)
        D.copy_(self._D)
        self._still = True

    def state(self) -> dict[str, Tensor]:
        """What it carries from one iteration to the next, at the end of one; no copies."""
        numbers = self._beta, self._bound, self._beta_before, self._squared_error
        numbers = torch.tensor(numbers, dtype=torch.float64)
        return {"swept": self._swept, "D": self._D, "norms": self._norms, "numbers": numbers}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on after `state`."""
        for F, kept in ((self._swept, "swept"), (self._D, "D"), (self._norms, "norms")):
            F.copy_(state[kept])
        numbers = state["numbers"].tolist()
        self._beta, self._bound, self._beta_before, self._squared_error = numbers

    def _move_(self, F: Tensor, swept: Tensor, delta: Tensor) -> None:
        if self._still:
            return
        F.add_(delta, alpha=self._beta)
        torch.maximum(F, torch.mul(swept, self._least_share, out=delta), out=F)

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
        for F in (Z, self._swept):
            F.mul_(scale)
        for F in (D, self._D):
            F.div_(scale[:, None])
