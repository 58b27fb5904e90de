"""Codes for a fixed dictionary: their iterations, and tiles of data with codes that are computed
whenever they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.dataset import Data, Tile
from ..data.storage import InMemory, NotKept, Storage, row_blocks
from ..init.start import cold_start
from ..numerics import products_in, widened
from ..planning.hardware import free_bytes
from ..planning.memory import plan_beside
from ..planning.plan import Plan, Problem
from ..solvers.half_step import Compute, HalfStepData, NormalData, ResidualData, Workspace
from .acceleration import Momentum
from .history import History
from .state import Callback, Method, State, Stopping

# half-steps from a cold start, in every pass, of codes that are not kept
HALF_STEPS = 20
# half-steps of a usual encoding, over which the plan spreads the cost of what is computed once
_USUAL_HALF_STEPS = 50
# bytes of codes and their workspaces at a time
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Encoder:
    """argmin ½‖A − Z D‖² plus the penalty of Z over Z ≥ 0 by a solver, chunk by chunk, each until
    ‖ΔZ‖ ≤ tol ‖Z‖ or max_iter.

    D (K, d) does not change. each is called after every iteration of every chunk. rows: of a chunk;
    by default as many as memory allows, which may change from call to call.
    """

    D: Tensor
    method: Method
    max_iter: int = HALF_STEPS
    tol: float = 0.0
    each: Callback | None = None
    rows: int | None = None

    @torch.no_grad()
    def __call__(self, A: Tensor, Z0: Tensor | None = None) -> tuple[Tensor, list[int]]:
        """Z (n, K) for A (n, d) on D's device, in its dtype or in 16 bits, from Z0 (n, K) or from
        `cold_start`; and the number of iterations of each chunk."""
        Z, taken = self.D.new_empty(A.shape[0], len(self.D)), []
        exact = self.method.solver.exact
        stopping = Stopping(min(self.max_iter, 1) if exact else self.max_iter, self.tol, self.each)
        for part in row_blocks(len(A), self.chunk_rows()):
            X = widened(A[part])
            Z[part] = cold_start(X, self.D) if Z0 is None else Z0[part]
            history = _solve_(Z[part], X, self.D, self.method, stopping)
            taken.append(len(history))
        return Z, taken

    def chunk_rows(self) -> int:
        """Rows that are encoded, and widened from 16 bits, at a time."""
        if self.rows is not None:
            return self.rows
        K, d = self.D.shape
        # a GPU needs large chunks
        bytes_ = max(_CHUNK_BYTES, (free_bytes(self.D.device) or 0) // 4)
        bounded = max(1, bytes_ // ((5 * K + 2 * d) * self.D.element_size()))
        return min(bounded, self.method.tuning.chunk_rows or bounded)


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


def _solve_(Z: Tensor, X: Tensor, D: Tensor, method: Method, stopping: Stopping) -> list:
    """Iterate on Z (n, K) in place, with D (K, d) fixed, until `stopping` ends it; the history."""
    (n, d), K = X.shape, len(D)
    tuning = replace(method.tuning, chunk_rows=None)
    problem = Problem(
        n, d, K, D.element_size(), method.solver, learns=False, half_steps=_USUAL_HALF_STEPS
    )
    # the memory for a chunk is bounded already
    plan = plan_beside(X, problem, method.backend, tuning, None)
    state = State(InMemory(Z), D)
    # Triton launches on the current device
    with torch.cuda.device_of(D), products_in("highest") as allowed:
        step = CodesStep(state, X, method, plan, allowed)
        history = History(state, 0.0, learns=False)
        for iteration in range(1, stopping.max_iter + 1):
            step()
            history.add(iteration, step.sums, watched=stopping.watches)
            if stopping.watches and history.ends(stopping):
                break
        history.read()
    return state.history


class CodesStep:
    """One iteration on the codes of rows in memory with the dictionary fixed, extrapolated by
    Momentum: all half-steps solve one convex problem. Does not synchronise."""

    def __init__(self, state: State, A: Tensor, method: Method, plan: Plan, allowed: str) -> None:
        D, solver = state.D, method.solver
        self._solver, self._plan, self._D = solver, plan, D
        self._compute = Compute(method.ops, plan.block, Workspace(D.dtype, D.device), allowed)
        penalty = method.penalties.of_codes(D.shape[1])
        self._fixed = solver.fix(plan.codes, D, None, len(A), penalty, self._compute)
        self._tiles = [
            (
                state.codes[part].T,
                self._data(A[part]),
                Momentum(solver),
            )
            for part in row_blocks(len(A), plan.tile_rows)
        ]
        # as in Statistics, those of the codes only
        self.sums = torch.zeros(2, 4, dtype=torch.float64, device=D.device)

    def __call__(self) -> None:
        self.sums.zero_()
        for F, data, momentum in self._tiles:
            start = momentum.extrapolate(F)
            if start is not F:
                F.copy_(start)
            self._solver.half_steps_(F, data, self._fixed, self._compute, self.sums[0], 1)

    def _data(self, X: Tensor) -> HalfStepData:
        """The data of the half-steps of a tile, which stay valid."""
        if self._plan.codes == "normal":
            # row-major as the codes are
            C = torch.mm(X, self._D.T).T
            return NormalData(self._solver.penalise(C, self._fixed, out=C))
        return ResidualData(X.T, torch.empty_like(X).T)
