"""One iteration of a fit in which each entry of the data has a weight: half-steps of HALS in which
each row, and each feature, is a problem of its own. The loop is in engine/loop.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...backends.weighted import Weighted
from ...data.dataset import Data
from ...data.storage import row_blocks
from ...data.weights.entries import EntryWeights
from ...planning.plan import Plan
from ...solvers.penalties import Penalty
from ..history import Iterated
from ..state import Iteration, Method, State
from ..statistics import Statistics
from .features import HalfSteps, InMemory, InPasses
from .imputed import Imputed

# the names of these forms in plans and summaries: each row and each feature by itself, or all of
# them by a common Gram matrix, with estimates for what is missing
WEIGHTED, IMPUTED = "weighted", "imputed"


# the quotient of the norms of a concept and of its codes from which on both are scaled
_FAR = 2.0**24


class WeightedStep(Iterated):
    """An iteration on a State, as iteration.Step: minimises ½ Σ w (A − Z D)² and the penalties.

    Each half-step is several sweeps of the concepts, on the rows of the data, or on their features.
    Where no entry has a weight, nothing but a penalty moves a row or a feature: codes become zero,
    and concepts stay as they are.
    """

    def __init__(
        self, state: State, data: Data, method: Method, plan: Plan, *, allowed: str, waits: bool
    ) -> None:
        super().__init__(state, data, method, plan)
        assert data.weights is not None
        D, self.weights = state.D, data.weights
        self.compute = method.compute(plan.block, D, allowed)
        given = D, data.squared_norm, data.processes
        self.statistics = Statistics(*given, ops=None, penalties=self.penalties)
        self._of_rows: Weighted | None = None
        if isinstance(self.weights, EntryWeights):
            self._of_rows, columns = self.weights.both_ways()
            self._halves: HalfSteps = InMemory(columns, method.ops)
            if plan.form == IMPUTED:
                self._halves = Imputed(self.weights, D, method.ops)
        else:
            self._halves = InPasses(data, self.weights, D, method.ops)
        self._tiles = [*row_blocks(data.n, plan.tile_rows)]
        self._clear_unobserved_()
        self._begin_(waits)

    def __call__(self) -> None:
        state, extrapolation = self.state, self.state.extrapolation
        if extrapolation is not None:
            extrapolation.begin_(state.D)
        self.statistics.clear_()
        self._update_codes_()
        self._update_dictionary_()
        if extrapolation is not None:
            extrapolation.end_(state.codes, state.D, *self.statistics.sums)
        self._balance_()
        state.swept = True

    def _balance_(self) -> None:
        """Scale concepts whose norm is far from that of their codes to about the same, by powers of
        two: no product changes. A concept that few entries observe becomes tiny where another has
        what they need, and then its codes as large, until squares of both leave the dtype."""
        state = self.state
        if self._of_rows is None or any(self.penalties) or state.unit is not None:
            return
        norms = [torch.linalg.vector_norm(F, dim=1) for F in (state.codes.T, state.D)]
        quotient = norms[0] / norms[1]
        far = (quotient > _FAR) | (quotient < 1 / _FAR)
        far &= (norms[0] > 0) & (norms[1] > 0) & quotient.isfinite()
        if not bool(far.any()):
            return
        half = torch.frexp(quotient).exponent.div(2, rounding_mode="floor")
        scale = torch.where(far, torch.ldexp(torch.ones_like(quotient), half), 1)
        state.codes.div_(scale)
        state.D.mul_(scale[:, None])
        if state.extrapolation is not None:
            state.extrapolation.scale_(scale)

    def _clear_unobserved_(self) -> None:
        """Codes of rows without any weight ← 0."""
        if (seen := self.weights.observed_rows) is None:
            return
        first = 0
        for Z in self.state.Z.blocks_():
            Z.mul_(seen[first : first + len(Z)].to(Z)[:, None])
            first += len(Z)

    def _rows(self) -> Iterator[tuple[Weighted, Tensor]]:
        """(Rows of the data, their codes, which are kept): all of them, or those of each chunk."""
        if self._of_rows is not None:
            yield self._of_rows, self.state.codes
            return
        for part, X, Z in self.data.chunks(self.state.Z):
            assert Z is not None
            yield self.weights.beside(part, X).dense(), Z

    def _update_codes_(self) -> None:
        state, extrapolation = self.state, self.state.extrapolation
        penalty = _of_concepts(self.penalties[0], state.D)
        how = penalty, self.statistics.codes[:2], self.plan.inner[0], True
        self._halves.begin_()
        for rows, Z in self._rows():
            if state.unit is not None:
                state.unit.move_(Z)
            if extrapolation is not None:
                for tile in self._tiles:
                    extrapolation.keep_codes_(Z[tile], tile)
            self._halves.codes_(rows, Z, state.D, how)
            if extrapolation is not None:
                for tile in self._tiles:
                    extrapolation.move_codes_(Z[tile], tile)
            self.statistics.add_codes_(Z)
            self._halves.add_(rows, Z)

    def _update_dictionary_(self) -> None:
        """Half-steps on D; the statistics receive Σ w (A − Z D)²."""
        state, statistics, D = self.state, self.statistics, self.state.D
        before = None if state.unit is None else D.clone()
        penalty = self.penalties[1] if state.unit is None else statistics.penalty_of_norms()
        bounded = not self.method.constraint.signed
        how = _of_concepts(penalty, D), statistics.dictionary[:3], self.plan.inner[1], bounded
        self._halves.sweep_(D, state.Z, how)
        if state.unit is not None:
            state.unit.normalise_(D, before, statistics)
        statistics.penalise_(D)

    def take_precision(self) -> None:
        """Nothing: there is no residual."""

    def measured(self) -> list[Iteration]:
        """As Step.measured."""
        return self._read(True, False)

    def _squared_error(self) -> float:
        state = self.state
        D = state.D if state.unit is None else state.unit.scaled(state.D)
        parts = self.data.chunks(state.Z, save=False)
        return sum(self.weights.beside(part, X).squared_error(Z, D) for part, X, Z in parts)

    def share_(self) -> None:
        """Nothing: there is one process."""

    def revive_(self, dead: bool, duplicates: bool, least: float = 0.0) -> bool:
        """No concept is revived."""
        return False


def _of_concepts(penalty: Penalty, D: Tensor) -> tuple[float, Tensor] | None:
    """l1, and l2 of each concept (K,), as the operation takes them."""
    if not penalty:
        return None
    l2 = penalty.l2
    l2 = l2.to(D) if isinstance(l2, Tensor) else D.new_full((len(D),), l2)
    return penalty.l1, l2
