"""Codes for a fixed dictionary: their iterations, and tiles of data with codes that are computed
whenever they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.products import (
    Matrix,
    Rebuilt,
    dense,
    dot,
    operand,
    row_maxima,
    stored_share,
    times_powers,
)
from ..data.dataset import Data, Tile
from ..data.storage import InMemory, NotKept, Storage, row_blocks
from ..distributed import Processes
from ..init.start import cold_start
from ..numerics import times_power, widened
from ..planning.beside import plan_beside
from ..planning.hardware import free_bytes
from ..planning.plan import REFRESH, Plan, Problem
from ..precision import allowed_for, products_in
from ..solvers.base import Solver
from ..solvers.half_step import Compute, FixedFactor, NormalData, ResidualData
from ..waits import look
from .acceleration import Line, normal_line, start_of
from .history import History
from .state import Callback, Method, State, Stopping

# half-steps from a cold start, in every pass, of codes that are not kept
HALF_STEPS = 20
# half-steps of a usual encoding, over which the plan spreads the cost of what is computed once
_USUAL_HALF_STEPS = 50
# how many times as large as the smallest row the largest may be for both to converge together
_ALIKE = 64.0
# bytes of codes and their workspaces at a time
_CHUNK_BYTES = 64 << 20


class Ended(NamedTuple):
    """How the codes of a chunk were found; converged: by the stopping rule, or exact. methods: the
    names of what ran, in order. unsolved: rows that the exact method could not solve."""

    iterations: int
    converged: bool
    methods: tuple[str, ...] = ()
    unsolved: int = 0


def chunk_rows(D: Tensor, method: Method) -> int:
    """Rows that are encoded with D (K, d), and widened from 16 bits, at a time, as many as memory
    allows."""
    K, d = D.shape
    # a GPU needs large chunks
    bytes_ = max(_CHUNK_BYTES, (free_bytes(D.device) or 0) // 4)
    bounded = max(1, bytes_ // ((5 * K + 2 * d) * D.element_size()))
    return min(bounded, method.tuning.chunk_rows or bounded)


@dataclass(frozen=True)
class Encoder:
    """argmin ½‖A − Z D‖² plus the penalty of Z over Z ≥ 0 by a solver, chunk by chunk, each until
    ‖ΔZ‖ ≤ tol ‖Z‖ or max_iter.

    D (K, d) does not change. each is called after every iteration of a chunk, done with its rows
    after it. monotone: whether no row ends above its start, or above where fewer iterations end,
    whatever the solver; what raised the loss of a row is taken back, which takes a product more in
    each iteration.
    """

    D: Tensor
    method: Method
    max_iter: int = HALF_STEPS
    tol: float = 0.0
    each: Callback | None = None
    monotone: bool = False
    done: Callable[[int], object] | None = None

    @torch.no_grad()
    def __call__(self, A: Matrix, Z0: Tensor | None = None) -> tuple[Tensor, list[Ended]]:
        """Z (n, K) for A (n, d) on D's device, in its dtype or in 16 bits, from Z0 (n, K) or from
        `cold_start`; and how each chunk ended."""
        Z, taken = self.D.new_empty(A.shape[0], len(self.D)), []
        exact = self.method.solver.exact
        stopping = Stopping(min(self.max_iter, 1) if exact else self.max_iter, self.tol, self.each)
        for part in row_blocks(len(A), chunk_rows(self.D, self.method)):
            X, start = widened(A[part]), None if Z0 is None else Z0[part]
            powers = self._powers(X)
            if powers is not None:
                X = times_powers(X, -powers)
                start = None if start is None else times_power(start, -powers)
            free = self.method.constraint.signed
            Z[part] = cold_start(X, self.D, free=free) if start is None else start
            taken.append(self._solve_(Z[part], X, stopping))
            if powers is not None:
                Z[part] = times_power(Z[part], powers)
            if self.done is not None:
                self.done(len(X))
        return Z, taken

    def _powers(self, X: Matrix) -> Tensor | None:
        """Powers of two (m, 1) by which rows are divided while they are encoded, where their sizes
        differ so much that large rows would end the iterations of small ones; else None. Without
        penalties the iterates are the same."""
        if self.tol <= 0 or self.method.solver.exact or self.method.penalties or not len(X):
            return None
        largest = row_maxima(X)[:, None]
        least = torch.where(largest > 0, largest, torch.inf).amin()
        if not bool(largest.amax() > _ALIKE * least):
            return None
        return torch.where(largest > 0, torch.frexp(largest).exponent, 0).long()

    def _solve_(self, Z: Tensor, X: Matrix, stopping: Stopping) -> Ended:
        """Iterate on Z (n, K) in place until `stopping` ends it."""
        (n, d), K, D, method = X.shape, len(self.D), self.D, self.method
        tuning = replace(method.tuning, chunk_rows=None)
        problem = Problem(
            *(n, d, K, D.element_size(), method.solver),
            learns=False,
            half_steps=_USUAL_HALF_STEPS,
            stored=stored_share(X),
        )
        # the memory for a chunk is bounded already
        plan = plan_beside(X, problem, method.backend, tuning, None)
        state = State(InMemory(Z), D)
        # Triton launches on the current device
        allowed = allowed_for(D)
        with torch.cuda.device_of(D), products_in("highest"):
            step = CodesStep(state, X, method, plan, allowed, monotone=self.monotone)
            history = History(state, 0.0, learns=False)
            for iteration in range(1, stopping.max_iter + 1):
                look()
                step()
                history.add(iteration, step.sums, watched=stopping.watches)
                if stopping.watches and history.ends(stopping):
                    break
            history.read()
        exact = method.solver.exact and stopping.max_iter > 0
        converged = exact or state.stopped_by == stopping.converged_by
        return Ended(len(state.history), converged, (method.solver.name,))


@dataclass(frozen=True)
class FreshTiles:
    """An iterable of X (m, d) and its codes (m, K), for reading, of `rows` rows each. Codes that
    are not kept are computed while it is read, for the dictionary as it then is, a chunk at a time.
    """

    data: Data
    Z: Storage
    D: Tensor
    method: Method
    rows: int | None = None

    def __iter__(self) -> Iterator[Tile]:
        if not isinstance(self.Z, NotKept):
            yield from self.data.tiles(self.Z, self.rows)
            return
        encoder = Encoder(self.D, self.method)
        for _, X, _ in self.data.chunks():
            codes = encoder(X)[0]
            for part in row_blocks(len(X), self.rows or len(X)):
                yield X[part], codes[part], None

    def squared_error(self, D: Tensor, processes: Processes) -> Tensor:
        """‖A − Z D‖², from the residual, a float64 scalar; D may be scaled as the codes are to be.
        A collective call."""
        total = torch.zeros((), dtype=torch.float64, device=D.device)
        rebuilt = Rebuilt(D)
        for X, Z, _ in self:
            total += rebuilt.squared_error(X, Z)
        processes.sum_(total)
        return total


@torch.no_grad()
def begin_with_codes_(state: State, data: Data, method: Method) -> None:
    """Z ← the codes of HALF_STEPS half-steps for D, a chunk at a time; concepts first get norm 1
    where the fit has such, as the codes would be those of another penalty."""
    if method.penalties.unit_norm:
        norms = torch.linalg.vector_norm(state.D, dim=1, keepdim=True)
        state.D.div_(torch.where(norms > 0, norms, 1))
    encoder = Encoder(state.D, method)
    for _, X, Z in data.chunks(state.Z):
        assert Z is not None
        Z.copy_(encoder(X)[0])


class CodesStep:
    """One iteration on the codes of rows in memory with the dictionary fixed, extrapolated: all
    half-steps solve one convex problem. Does not synchronise."""

    def __init__(
        self,
        state: State,
        A: Matrix,
        method: Method,
        plan: Plan,
        allowed: str,
        *,
        monotone: bool = False,
    ) -> None:
        """monotone: as for Encoder."""
        D, solver = state.D, method.solver
        compute = method.compute(plan.block, D, allowed)
        penalty = method.penalties.of_codes(D.shape[1])
        fixed = solver.fix(plan.codes, D, None, len(A), penalty, compute)
        kind = _NormalTile if plan.codes == "normal" else _ResidualTile
        self._tiles = [
            kind(state.codes[part].T, A[part], solver, fixed, compute)
            for part in row_blocks(len(A), plan.tile_rows)
        ]
        self._guarded = monotone and not (solver.exact or solver.searches_line)
        # as in Statistics, those of the codes only
        self.sums = torch.zeros(2, 4, dtype=torch.float64, device=D.device)

    def __call__(self) -> None:
        self.sums.zero_()
        for tile in self._tiles:
            before = tile.F.clone() if self._guarded else None
            tile.half_step_(self.sums[0])
            if before is not None:
                tile.take_back_(before)


class _Tile:
    """Rows X (m, d) with codes F (K, m), and what their half-steps share."""

    def __init__(
        self, F: Tensor, X: Matrix, solver: Solver, fixed: FixedFactor, compute: Compute
    ) -> None:
        self.F, self.X, self.solver, self.fixed, self.compute = F, X, solver, fixed, compute
        self.extrapolation = start_of(solver)
        self._falls: Tensor | None = None

    def take_back_(self, before: Tensor) -> None:
        """F ← what it was before, for columns whose loss has risen: the next half-step starts there
        without momentum."""
        fell = self._fall(before) if self._falls is None else self._falls
        falls = self._fall(self.F)
        # the mean of both slopes, exact for a quadratic, is not a difference of two losses
        rose = ((self.F - before) * (fell + falls)).sum(0) < 0
        self.F.copy_(torch.where(rose, before, self.F))
        self._falls = torch.where(rose, fell, falls)

    def _fall(self, F: Tensor) -> Tensor:
        """How fast the loss falls along each entry of F (K, m)."""
        raise NotImplementedError

    def _move_(self, line: Line) -> None:
        start = self.extrapolation.extrapolate(self.F, line)
        if start is not self.F:
            self.F.copy_(start)


class _NormalTile(_Tile):
    def __init__(self, *given) -> None:
        super().__init__(*given)
        # row-major as the codes are
        C = dot(self.X, operand(self.X, self.fixed.B)).T
        self._data = NormalData(self.solver.penalise(C, self.fixed, out=C))
        self._line = normal_line(self._data.C, self.fixed.G)

    def half_step_(self, sums: Tensor) -> None:
        self._move_(self._line)
        self.solver.half_steps_(self.F, self._data, self.fixed, self.compute, sums, 1)

    def _fall(self, F: Tensor) -> Tensor:
        l1 = 0.0 if self.solver.penalised_by_slope else self.fixed.l1
        return torch.addmm(self._data.C, self.fixed.G, F, alpha=-1).sub_(l1)


class _ResidualTile(_Tile):
    def __init__(self, *given) -> None:
        super().__init__(*given)
        # a sparse X has no residual form but for solvers of codes only
        X = self.X if isinstance(self.X, Tensor) else dense(self.X)
        self._data = ResidualData(X.T, torch.empty_like(X).T)
        self._change: Tensor | None = None
        self._taken = 0

    def half_step_(self, sums: Tensor) -> None:
        self._change = None
        self._move_(self._line)
        if self._change is not None:
            self._data.Et.addcmul_(self._change, self.extrapolation.length, value=-1)
        # the residual that the last half-step left; it is computed anew at intervals
        followed = self.solver.keeps_residual and self.solver.searches_line
        data = replace(self._data, fresh=followed and self._taken % REFRESH > 0)
        self.solver.half_steps_(self.F, data, self.fixed, self.compute, sums, 1)
        self._taken += 1

    def _line(self, F: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """A Line, by the residual of F that the last half-step left."""
        self._change = W = self.fixed.B.T @ step
        fall, curvature = (self._data.Et * W).sum(0), W.square().sum(0)
        if self.fixed.curvature is not None:
            slope = self.fixed.l1 + self.fixed.curvature * F
            fall = fall - (slope * step).sum(0)
            curvature = curvature + (self.fixed.curvature * step.square()).sum(0)
        return fall, curvature

    def _fall(self, F: Tensor) -> Tensor:
        fall = self.fixed.B @ torch.addmm(self.X.T, self.fixed.B.T, F, alpha=-1)
        self.fixed.penalise_(fall, F, slice(None), sign=-1)
        return fall
