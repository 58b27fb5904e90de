"""Extrapolation over whole iterations: how far ahead of the factors the next half-steps start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .solvers import squared_norm

# β at the start; its divisor when the error rose; how it and its bound grow when it fell
_BETA, _SHRINK, _GROW, _GROW_BOUND = 0.5, 1.5, 1.05, 1.01
# the share by which the norm of a concept may leave that of its start
_MOST_GROWTH = 0.01
# entries of the codes in hand
_IN_HAND = 1 << 20


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
        self._Z.copy_(Z)
        delta = torch.sub(D, self._D, out=self._scratch("moved", *D.shape))
        self._D.copy_(D)
        self._still = False
        self._move_(D, self._D, delta)

    def move_codes_(self, Z: Tensor, rows: slice) -> None:
        """Move a piece of the codes on, between the half-steps."""
        swept = self._swept[rows]
        delta = torch.sub(Z, swept, out=self._scratch("moved", *Z.shape))
        swept.copy_(Z)
        self._move_(Z, swept, delta)

    def moves(self, rows: slice) -> tuple[Tensor, float, float]:
        """What a half-step needs to do the same itself: what the last one left (m, K), which it
        replaces, β, and the share of an entry that is left."""
        beta, least = (0.0, 0.0) if self._still else (self._beta, self._least_share)
        return self._swept[rows].T, beta, least

    def end_(self, Z: Tensor, D: Tensor, sums: Tensor) -> None:
        """After both halves: concepts have the norm of their start again; sums become ‖ΔZ‖² and
        ‖Z‖² of the whole iteration."""
        self._balance_(Z, D)
        sums[:2] = 0
        rows = max(1, _IN_HAND // Z.shape[1])
        for piece, before in zip(Z.split(rows), self._Z.split(rows), strict=True):
            delta = torch.sub(piece, before, out=self._scratch("moved", *piece.shape))
            sums[:2] += torch.stack((squared_norm(delta), squared_norm(piece)))

    def rose(self, relative_error: float) -> bool:
        """Whether the error of the pair is above that of the one before, by more than rounding; β
        is chosen by that."""
        squared, before = relative_error**2, self._squared_error
        self._squared_error = squared
        if self._still:
            return False
        if squared > before:
            self._bound, self._beta = self._beta_before, self._beta / _SHRINK
        else:
            self._beta_before = self._beta
            self._beta = min(self._bound, _GROW * self._beta)
            self._bound = min(1.0, _GROW_BOUND * self._bound)
        return squared > before + self._noise

    def take_back_(self, Z: Tensor, D: Tensor) -> None:
        """The pair that the iteration began with again; nothing moves on in the next."""
        Z.copy_(self._Z)
        D.copy_(self._D)
        self._still = True

    def restart_(self, Z: Tensor, D: Tensor) -> None:
        """Go on from this pair, whose concepts are others than before; its error is no higher."""
        self._swept.copy_(Z)
        self._D.copy_(D)
        self._norms.copy_(torch.linalg.vector_norm(D, dim=1))

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
        """Give concepts that grew or shrank their norm again, and their codes the inverse.

        What grows in one factor and shrinks in the other changes no error, so no β would bound it:
        extrapolated, it doubles in every iteration.
        """
        norms = torch.linalg.vector_norm(D, dim=1)
        alive = (norms > 0) & (self._norms > 0)
        scale = torch.where(alive, norms / self._norms, 1)
        if not ((scale - 1).abs() > _MOST_GROWTH).any():
            return
        Z.mul_(scale)
        self._swept.mul_(scale)
        D.div_(scale[:, None])
