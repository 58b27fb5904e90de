"""Acceleration: extrapolation over whole iterations of a fit, and momentum between the half-steps
of a convex problem, codes for a fixed dictionary. How many inner half-steps there are is in
planning/plan.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends.pointers import Watched
from ..data.storage import row_blocks
from ..solvers.base import Solver

# β at the start; its divisor when the error rose; how it and its bound grow when it fell
_BETA, _SHRINK, _GROW, _GROW_BOUND = 0.5, 1.5, 1.05, 1.01
# the share by which the norm of a concept may leave that of its start
_MOST_GROWTH = 0.01


class Extrapolation:
    """F ← max(0, F + β (F − F_before)) for both factors, without the maximum for a dictionary that
    is `signed`; β grows while the error falls.

    The dictionary is moved before an iteration, the codes between its halves, so that it ends with
    a feasible pair (Z, D) whose error is measured. If the error rose, the pair of the iteration
    before is restored, and one iteration follows that moves nothing: so the error never rises.
    least_share: the share of an entry that is left at least, so that none becomes zero for good.
    Stores two copies of the codes and one of the dictionary. Source: Ang & Gillis (2019), algorithm
    1, which instead continues from the factors of the half-steps.

    From `begin_` to `end_` an iteration is one sequence of launches; the host sets β between
    iterations. With `waits` the host also reads, once an iteration, whether concepts have grown.
    """

    def __init__(
        self,
        Z: Tensor,
        D: Tensor,
        least_share: float,
        tile_rows: int,
        ops: dict[str, Callable],
        *,
        waits: bool = True,
        signed: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        self._waits, self._ops = waits, ops
        # which moves and goes back with the dictionary
        self._offset = offset
        self._offset_before = None if offset is None else offset.clone()
        # β of this iteration, or 0
        self._step = D.new_full((), _BETA)
        self._swept, self._Z, self._D = Z.clone(), Z.clone(), D.clone()
        self._norms = torch.linalg.vector_norm(D, dim=1)
        # ‖ΔZ‖² and ‖Z‖² of the codes that were moved, for iterations that rescale no concept
        self._sums = torch.zeros(2, dtype=torch.float64, device=D.device) if waits else None
        # rows of a tile → `moves`; views take as long to make as an iteration on few rows
        self._moves: dict[tuple[int, int], tuple] = {}
        self._least_share, self._tile_rows = least_share, tile_rows
        self._least_share_of_D = None if signed else least_share
        self._beta, self._bound, self._beta_before = _BETA, 1.0, _BETA
        self._squared_error, self._noise, self._still = float("inf"), 0.0, False

    def set_out(self, *, still: bool = False) -> None:
        """Set, before an iteration, whether it moves the factors, by β, or is `still`."""
        self._still = still
        # where the host waits, `begin_` does it
        if not self._waits:
            self._step.fill_(self.step)

    @property
    def step(self) -> float:
        """β of this iteration, or 0."""
        return 0.0 if self._still else self._beta

    @property
    def watched(self) -> Watched | None:
        """What whole iterations of a backend change in place; None where the dictionary is signed,
        or the host does not wait for it."""
        if self._least_share_of_D is None or self._offset is not None or not self._waits:
            return None
        stored = self._swept, self._Z, self._D, self._norms
        return Watched(*stored, self._least_share, _MOST_GROWTH)

    def begin_(self, D: Tensor) -> None:
        """Store the dictionary that an iteration begins with, and move it."""
        if self._sums is not None:
            self._sums.zero_()
            self._step.fill_(self.step)
        self._ops["extrapolate_"](D, self._D, self._step, self._least_share_of_D)
        if self._offset is not None:
            before = self._offset.clone()
            self._offset.add_(self._step * (before - self._offset_before))
            self._offset_before.copy_(before)

    def keep_codes_(self, Z: Tensor, rows: slice) -> None:
        """Store the codes of a tile, before its half-steps."""
        self._Z[rows].copy_(Z)

    def move_codes_(self, Z: Tensor, rows: slice) -> None:
        """Move the codes of a tile, after its half-steps."""
        self._ops["extrapolate_"](Z.T, *self.moves(rows))

    def moves(self, rows: slice) -> tuple[Tensor, Tensor, float, Tensor, Tensor | None]:
        """The arguments of the operation extrapolate_ for the codes of a tile, also given to a
        half-step that stores and moves them itself: the codes after the half-steps of the last
        iteration (K, m), β, least_share, the codes that this iteration begins with (K, m), and
        sums."""
        which = rows.start, rows.stop
        if which not in self._moves:
            swept, before = self._swept[rows].T, self._Z[rows].T
            self._moves[which] = swept, self._step, self._least_share, before, self._sums
        return self._moves[which]

    def end_(self, Z: Tensor, D: Tensor, codes: Tensor, dictionary: Tensor) -> None:
        """Restore, after both halves, the norms of concepts that changed. The sums of the codes and
        of the dictionary become ‖ΔF‖² and ‖F‖² of the whole iteration."""
        moved = D, self._D, self._norms, _MOST_GROWTH
        if not self._waits:
            self._balance_(Z, D, codes)
            self._ops["moved_"](dictionary, *moved)
        elif self._ops["moved_"](dictionary, *moved) and self._balance_(Z, D, codes):
            self._ops["moved_"](dictionary, *moved)
        else:
            codes[:2] = self._sums

    def rose(self, relative_error: float, noise: float) -> bool:
        """Return whether the error rose by more than rounding, and adapt β to it. noise: what
        rounding may add to the squared relative error."""
        squared, before = relative_error**2, self._squared_error
        noise, self._noise = max(noise, self._noise), noise
        self._squared_error = squared
        if self._still:
            return False
        if squared > before:
            self._bound, self._beta = self._beta_before, self._beta / _SHRINK
        else:
            self._beta_before = self._beta
            self._beta = min(self._bound, _GROW * self._beta)
            self._bound = min(1.0, _GROW_BOUND * self._bound)
        return squared > before + noise

    def take_back_(self, Z: Tensor, D: Tensor) -> None:
        """Restore the pair that the iteration began with; the next one moves nothing."""
        Z.copy_(self._Z)
        D.copy_(self._D)
        if self._offset is not None:
            self._offset.copy_(self._offset_before)
        self.set_out(still=True)

    def scale_(self, scale: Tensor) -> None:
        """Go on from concepts times scale (K,), with codes divided by it."""
        for codes in (self._swept, self._Z):
            codes.div_(scale)
        self._D.mul_(scale[:, None])
        self._norms.mul_(scale)

    def restart_(self, Z: Tensor, D: Tensor) -> None:
        """Continue from this pair, with other concepts than before and no higher error."""
        self._swept.copy_(Z)
        self._D.copy_(D)
        self._norms.copy_(torch.linalg.vector_norm(D, dim=1))
        if self._offset is not None:
            self._offset_before.copy_(self._offset)

    def state(self) -> dict[str, Tensor]:
        """The tensors to store in a checkpoint between two iterations; no copies."""
        numbers = self._beta, self._bound, self._beta_before, self._squared_error
        numbers = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        kept = {"swept": self._swept, "D": self._D, "norms": self._norms, "numbers": numbers}
        return kept if self._offset is None else {**kept, "offset": self._offset_before}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        for F, kept in ((self._swept, "swept"), (self._D, "D"), (self._norms, "norms")):
            F.copy_(state[kept])
        if self._offset_before is not None:
            self._offset_before.copy_(state["offset"])
        numbers = state["numbers"].tolist()
        self._beta, self._bound, self._beta_before, self._squared_error = numbers

    def _balance_(self, Z: Tensor, D: Tensor, sums: Tensor) -> bool:
        """Scale concepts that grew or shrank to their old norm, and their codes by the inverse;
        return whether that was done, and sums written.

        Growth in one factor that the other compensates changes no error, so that β does not bound
        it: extrapolated, it doubles in every iteration.
        """
        scale = torch.linalg.vector_norm(D, dim=1)
        grew = self._ops["scales_"](scale, self._norms, _MOST_GROWTH)
        if self._waits:
            if not grew:
                return False
        else:
            scale = torch.where(grew, scale, 1)
        sums[:2].zero_()
        # in the tiles that they are moved in, so that all sum to the same bits
        for rows in row_blocks(Z.shape[0], self._tile_rows):
            swept, _, _, before, _ = self.moves(rows)
            self._ops["rescale_"](Z[rows].T, swept, scale, before, sums)
        D.div_(scale[:, None])
        return True


# half-steps after which the momentum is reset: at K > d, 10 leave ten times the loss after 300
# half-steps; without a reset the loss is a little less, but nothing bounds an overshoot
_RESTART = 40
# half-steps between two line searches, and before the first: most rows of real data need few
# half-steps, and a search takes as long as three of them at K = 50. The geometric mean of 25 losses
# after 300 half-steps, relative to none: searches before every half-step 0.12, every second 0.17,
# every fourth 0.28
_EVERY, _FIRST = 2, 8
# the longest step of a line search, in changes since the last one
_LONGEST = 30.0

# (F, step), both (K, m) → of the loss of each column along its step: how fast it falls, and its
# curvature (m,)
Line = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Momentum:
    """Y = max(least_share F, F + β (F − F_before)): the point from which the half-step after F
    starts.

    β depends on the number of half-steps only, so that the codes are a continuous function of the
    data. Out of place, and so differentiable. Source: Nesterov (1983); restarts: O'Donoghue &
    Candès (2015).
    """

    def __init__(self, solver: Solver) -> None:
        self._least_share = solver.least_share
        self._before: Tensor | None = None
        self._taken = 0
        self._t = 1.0

    def extrapolate(self, F: Tensor, line: Line) -> Tensor:
        """Y (K, m) for F (K, m); at least the solver's least_share of F."""
        if self._taken % _RESTART == 0:
            self._t, Y = 1.0, F.clone()
        else:
            following = (1 + (1 + 4 * self._t**2) ** 0.5) / 2
            beta = (self._t - 1) / following
            Y = torch.lerp(self._before, F, 1 + beta)
            Y = torch.maximum(Y, self._least_share * F)
            self._t = following
        self._taken += 1
        self._before = F.clone()
        return Y


class LineSearch:
    """Y = F + s (F − F_before) with, for each column, the s ≥ 0 of the least loss for which Y ≥ 0:
    the point from which the half-step after F starts, at intervals; in between F itself.

    Half-steps that do not raise the loss never raise it from there either. An entry that has become
    zero stays: it ends no step. Out of place, but not to be differentiated: the length of a step
    depends on rounding where half-steps hardly move.
    """

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._taken = 0
        # s of the last step (m,)
        self.length: Tensor | None = None

    def extrapolate(self, F: Tensor, line: Line) -> Tensor:
        """Y (K, m) for F (K, m), or F itself."""
        taken, self._taken = self._taken, self._taken + 1
        if taken < _FIRST - _EVERY or taken % _EVERY:
            return F
        before, self._before = self._before, F.clone()
        if before is None:
            return F
        Y, self.length = along(F, before, line)
        return Y


def along(F: Tensor, before: Tensor, line: Line) -> tuple[Tensor, Tensor]:
    """Y = F + s (F − before) (K, m) with the s (m,) of LineSearch, and s."""
    step = torch.where(F > 0, F - before, 0)
    fall, curvature = line(F, step)
    curved, falls = curvature > 0, step < 0
    best = torch.where(curved, fall / curvature, 0)
    most = torch.where(falls, F / -step, _LONGEST).amin(0)
    length = torch.minimum(best.clamp(min=0, max=_LONGEST), most)
    return torch.addcmul(F, step, length).clamp(min=0), length


def start_of(solver: Solver) -> Momentum | LineSearch:
    """What extrapolates between the half-steps of a solver on codes for a fixed dictionary."""
    return LineSearch() if solver.searches_line else Momentum(solver)


def normal_line(C: Tensor, G: Tensor) -> Line:
    """The Line of ½ ⟨F, G F⟩ − ⟨C, F⟩, for C (K, m) and G (K, K)."""

    def line(F: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        product = G @ step
        return (C * step - F * product).sum(0), (step * product).sum(0)

    return line
