"""One iteration of a fit: half-steps of the codes, tile by tile, sums over rows, and half-steps of
the dictionary. The half-steps themselves are in solvers/, the loop in loop.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..backends.products import Matrix, dense, dot, operand
from ..data.dataset import Data
from ..data.sparse.codes import compressed
from ..data.storage import Compressed, NotKept
from ..numerics import squared_norm
from ..planning.plan import Plan
from ..solvers.half_step import (
    FixedFactor,
    HalfStepData,
    NormalData,
    ResidualData,
    RowData,
    in_tiles,
)
from ..solvers.penalties import Penalties, Penalty
from ..solvers.registry import learner
from ..solvers.supports.restricted import residual_of_codes_, sweep_concepts_
from .codes import FreshTiles
from .dead_concepts import Revival, revive_
from .history import Iterated, error_is_large
from .sparsity.restricted import Restricted
from .state import Iteration, Method, State
from .statistics import Offset, Statistics


class Step(Iterated):
    """An iteration on a State, which is called repeatedly, and what the iterations share.

    Where nothing `varies` (loop.py), every iteration after the first reads and writes at the same
    addresses, as a recording needs.
    """

    def __init__(
        self, state: State, data: Data, method: Method, plan: Plan, *, allowed: str, waits: bool
    ) -> None:
        """allowed: the precision that torch allows for products. waits: whether an accelerated
        iteration may synchronise."""
        super().__init__(state, data, method, plan)
        D, solver = state.D, method.solver
        self.solver, self.learner = solver, learner(solver, len(D), method.constraint)
        compute = method.compute(plan.block, D, allowed)
        self.compute = replace(compute, mixing=state.mixing(data, method.constraint))
        if state.target is not None:
            self._take_penalties(state.target.penalties(data.d))
        found = Statistics(
            *(D, data.squares_read, data.processes),
            ops=method.ops if plan.dictionary == "normal" else None,
            penalties=self.penalties,
            splits=plan.splits,
            by_features=data.stored is not None,
            signed=method.constraint.signed,
        )
        self.statistics = found.widened() if self.learner.widens else found
        self.offset = Offset(state.offset, data, self.statistics)
        if plan.dictionary == "residual" and state.E is None:
            state.E = torch.empty(data.A.shape, dtype=D.dtype, device=D.device)
        self.tiles = self._tiles()
        self._few = Restricted.of(state, data, self.method, plan)
        self.statistics.count_active(state.target is not None or self._few is not None)
        self._begin_(waits, self.offset.least)
        plain = self.solver is self.learner and self._few is None
        plain = plain and self.solver.takes_rows(D, self.compute)
        self._whole = self._whole_iterations(self.compute) if plain else None

    @property
    def carries(self) -> bool:
        """Whether each half passes its residual to the next; extrapolation moves factors off it."""
        kept = self.plan.codes == self.plan.dictionary == "residual"
        return self.solver.keeps_residual and kept and self.state.extrapolation is None

    @property
    def _leaves_residual(self) -> bool:
        """Whether a half-step of the codes leaves their residual in E."""
        return self.solver.keeps_residual and self.plan.codes == "residual"

    @property
    def watches_error(self) -> bool:
        """Whether the precision of the residual depends on the error."""
        late = "residual" in self.plan.form and self.solver.reports_error_before
        return late and self.compute.allowed != "highest"

    def take_precision(self) -> None:
        """Form the residual as coarsely as is allowed while it is large."""
        large = error_is_large(self.state.history)
        residual = self.compute.allowed if self.watches_error and large else "highest"
        if residual != self.compute.residual:
            self.compute = replace(self.compute, residual=residual)

    def __call__(self) -> None:
        state = self.state
        # threads may have been set since
        if self._whole is not None and in_tiles(self.data.A):
            self._whole(state.extrapolation.step)
            state.swept = True
            return
        if state.extrapolation is not None:
            state.extrapolation.begin_(state.D)
        self.follow_codes_()
        self.update_dictionary_()
        if state.extrapolation is not None:
            sums = self.statistics.codes, self.statistics.dictionary
            state.extrapolation.end_(state.codes, state.D, *sums)
            self.processes.sum_(self.statistics.codes[:2])
        state.swept = True

    def follow_codes_(self) -> None:
        """The half-step of the codes, under the penalty that follows those before it."""
        state = self.state
        if state.target is not None:
            self._take_penalty_(state.target.follow().penalties(self.data.d))
        self.statistics.clear_()
        self.update_codes_()
        self.statistics.reduce_()
        state.take_mean_l0(self.statistics.active, self.data.n)

    def _take_penalties(self, found: Penalties) -> None:
        self.method = self.method.with_penalties(found)
        self.penalties = self.method.penalties.of_both(self.data.n, self.data.d)

    def _take_penalty_(self, found: Penalties) -> None:
        """Take the penalties that the codes of the last iteration ask for."""
        self._take_penalties(found)
        self.statistics.penalties = self.penalties
        if isinstance(self.state.Z, NotKept):
            self.tiles = self._tiles()

    def measured(self) -> list[Iteration]:
        """Read what was measured; the last error is computed from the residual, by another pass
        over the data, where the normal form is too coarse. A collective call."""
        return self._read(self.plan.dictionary == "normal", self.carries)

    def _squared_error(self) -> float:
        state = self.state
        kept = state.unit is not None and not isinstance(state.Z, NotKept)
        D = state.unit.scaled(state.D) if kept else state.D
        tiles = FreshTiles(self.data, state.Z, state.D, self.method, self.plan.tile_rows)
        return float(tiles.squared_error(D, self.processes))

    def share_(self) -> None:
        """Give all processes the dictionary of process 0, where theirs may differ by rounding."""
        if self.state.E is not None or self.statistics.replicated:
            self.processes.broadcast_(self.state.D, *self.offset.rows)

    def _kept_residual(self) -> Tensor | None:
        state = self.state
        # otherwise E is computed anew before it is read; with tf32 its drift is measured then
        read = state.iterations_since_fresh > 0 or self.compute.allowed != "highest"
        return state.E if self.carries and read else None

    def revive_(self, dead: bool, duplicates: bool, least: float = 0.0) -> bool:
        """Revive concepts, dead ones and `duplicates`, if `dead` is set; return whether some were.
        Then G, the residual and the extrapolation are computed anew."""
        if not dead:
            return False
        state = self.state
        if self.statistics.replicated:
            self.processes.broadcast_(state.D)
        self.apply_scale_()
        given = self.data, self.compute, self.plan.tile_rows, self.penalties
        by = Revival(*given, self.solver.least_share > 0, self.solver.most)
        if not (revived := revive_(state.Z, state.D, by, duplicates=duplicates, least=least)):
            return False
        state.revived += revived
        if state.G is not None:
            torch.mm(state.D, state.D.T, out=state.G)
        if self.carries:
            for X, Z, E in self.tiles:
                torch.addmm(X, Z, state.D, alpha=-1, out=E)
        if state.extrapolation is not None:
            state.extrapolation.restart_(state.codes, state.D)
        return True

    def _tiles(self) -> Iterable:
        state, rows = self.state, self.plan.tile_rows
        if isinstance(state.Z, NotKept):
            return FreshTiles(self.data, state.Z, state.D, self.method, rows)
        return self.data.tiles(state.Z, rows, save=True, E=state.E)

    def update_codes_(self) -> None:
        """One or more half-steps on the codes of each tile; the statistics receive their sums."""
        if self._few is not None and self._few.decide():
            return self._few.update_codes_(self.penalties[0], self.compute, self.statistics)
        extrapolation, statistics = self.state.extrapolation, self.statistics
        given = self.state.D, self.state.G, self.data.n, self.penalties[0], self.compute
        fixed, first = self.solver.fix(self.plan.codes, *given), 0
        for X, Z, data in self._code_tiles(fixed):
            part = slice(first, first + Z.shape[0])
            first = part.stop
            by_rows = isinstance(data, RowData)
            if by_rows:
                moves = None if extrapolation is None else extrapolation.moves(part)
                data = RowData(data.X, data.Bt, moves, statistics.moments)
            elif extrapolation is not None:
                extrapolation.keep_codes_(Z, part)
            by = self.compute, statistics.codes, self.plan.inner[0]
            self.solver.half_steps_(Z.T, data, fixed, *by)
            if extrapolation is not None and not by_rows:
                extrapolation.move_codes_(Z, part)
            sparse = isinstance(self.state.Z, Compressed)
            statistics.add_(X, Z, made=by_rows, sparse=sparse)
            if sparse and self.plan.dictionary == "residual" and not self._leaves_residual:
                residual_of_codes_(self.state.E[part], X, compressed(Z), self.state.D)

    def _code_tiles(self, fixed: FixedFactor) -> Iterator[tuple[Matrix, Tensor, HalfStepData]]:
        """X of each tile of rows, widened where products need it, its codes, and the data of their
        half-steps. Scratch is shared: a tile is valid until the next one."""
        state, plan, scratch = self.state, self.plan, self.compute.scratch
        D, right, multiplied = state.D, None, "normal" in (plan.codes, plan.dictionary)
        by_rows = plan.codes == "normal" and self.solver.takes_rows(D, self.compute)
        for X, Z, E in self.tiles:
            if multiplied and X.dtype != D.dtype:
                X = scratch("X", *X.shape).copy_(X)
            if state.unit is not None and not isinstance(state.Z, NotKept):
                state.unit.move_(Z)
            if by_rows and in_tiles(X):
                # without C
                yield X, Z, RowData(X, D.T)
            elif plan.codes == "normal":
                right = right if right is not None else operand(X, D)
                # row-major as the codes: 1.05x faster than D Xᵀ at 20,000 × 384, K = 50
                C = dot(X, right, out=scratch("C", *Z.shape)).T
                yield X, Z, NormalData(self.solver.penalise(C, fixed, out=C), state.swept)
            else:
                fresh = state.iterations_since_fresh > 0
                # whether E holds the residual of an earlier iteration, updated since
                carried = state.swept and self.carries and not fresh
                E = scratch("E", *X.shape) if E is None else E
                rows = X if isinstance(X, Tensor) else dense(X)
                yield X, Z, ResidualData(rows.T, E.T, fresh, carried=carried, swept=state.swept)

    def update_dictionary_(self) -> None:
        """One or more half-steps on the dictionary; the statistics receive ‖A − Z D‖²."""
        if self.plan.dictionary == "normal":
            self._update_by_statistics_()
        else:
            self._update_by_residual_()

    def _update_by_statistics_(self) -> None:
        """One or more half-steps on D from the statistics, which receive ‖A − Z D‖²."""
        state, statistics, plan, D = self.state, self.statistics, self.plan, self.state.D
        before = None if state.unit is None else D.clone()
        compute = self.offset.of_dictionary(self.compute.other_half)
        self.offset.centre_statistics_()
        gram = None, statistics.gram, 1, self._dictionary_penalty(), compute
        fixed = self.learner.fix("normal", *gram)
        some, cross = D, statistics.cross
        if plan.splits:
            # given the statistics, features are independent
            some, cross = self.processes.columns(D), self.processes.columns(cross)
        data = NormalData(self.learner.penalise(cross, fixed), state.swept)
        times = plan.inner[1] if some.numel() else 0
        self.learner.half_steps_(some, data, fixed, compute, statistics.dictionary, times)
        G = torch.mm(some, some.T, out=state.G)
        statistics.measure_error_(some, cross, G)
        if plan.splits:
            self.processes.join_columns_(D, some, statistics.sums)
        self.offset.follow_(D)
        if state.unit is not None:
            state.unit.normalise_(D, before, statistics)
            torch.mm(D, D.T, out=G)
        statistics.penalise_(D)
        reads = plan.codes == "normal" and state.extrapolation is None and not plan.splits
        state.G = G if reads else None

    def _update_by_residual_(self) -> None:
        state, statistics = self.state, self.statistics
        before = None if state.unit is None else state.D.clone()
        # where the error measured is that of the dictionary before, so is the penalty
        late = self.learner.reports_error_before
        if late:
            statistics.penalise_(state.D)
        self._half_step_by_residual_()
        if state.unit is not None:
            state.unit.normalise_(state.D, before, statistics)
        if not late:
            statistics.penalise_(state.D)

    def _dictionary_penalty(self) -> Penalty:
        unit = self.state.unit is not None
        return self.statistics.penalty_of_norms() if unit else self.penalties[1]

    def _half_step_by_residual_(self) -> None:
        state, data, D, sums = self.state, self.data, self.state.D, self.statistics.dictionary
        summed = None if self.processes.alone else self.processes.sum_
        compute = self.offset.of_dictionary(self.compute.turned(summed))
        if self._few is not None and self._few.applies:
            return self._few.update_dictionary_(self._dictionary_penalty(), compute, sums)
        if isinstance(state.Z, Compressed):
            given = state.Z.parts(), self._dictionary_penalty(), compute, sums
            sweep_concepts_(D, state.E, *given)
        else:
            given = state.codes.T, None, D.shape[1], self._dictionary_penalty()
            fixed = self.learner.fix("residual", *given, compute)
            target = ResidualData(data.A, state.E, self.carries, swept=state.swept)
            target = self.offset.of_residual(target)
            self.learner.half_steps_(D, target, fixed, compute, sums, 1)
        self.offset.follow_(D)
        if self.carries:
            state.iterations_since_fresh = (state.iterations_since_fresh + 1) % state.refresh
        if self.learner.keeps_residual:
            self.offset.centre_(state.E)
            sums[2] = squared_norm(state.E)
            # also ‖ΔD‖² and ‖D‖², the same in all: their quotient does not change
            self.processes.sum_(self.statistics.sums)
            if state.iterations_since_fresh == 0:
                # rounding may differ between machines
                self.processes.broadcast_(D)
                self.offset.follow_(D)
        elif state.extrapolation is not None:
            # acceleration needs the error of the pair, not that of the dictionary before
            tiles = FreshTiles(data, state.Z, D, self.method, self.plan.tile_rows)
            sums[2] = tiles.squared_error(D, self.processes)
