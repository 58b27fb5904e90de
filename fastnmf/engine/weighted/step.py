"""One iteration of a fit in which each entry of the data has a weight: half-steps of HALS in which
each row, and each feature, has a Gram matrix of its own. The loop is in engine/loop.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...backends.products import Matrix
from ...backends.sparse import SparseMatrix
from ...backends.torch import triangle
from ...data.dataset import Data
from ...data.storage import row_blocks
from ...data.weights.entries import EntryWeights
from ...planning.plan import Plan
from ...solvers.penalties import Penalty
from ..acceleration import Extrapolation
from ..history import History
from ..state import Iteration, Method, State
from ..statistics import Statistics
from ..unit_norm import UnitNorm

# the name of this form in plans and summaries
GRAMS = "weighted"


class Triangles:
    """Products of pairs of concepts: P = K (K + 1) / 2 rows, the lower triangle row by row."""

    def __init__(self, K: int, device: torch.device) -> None:
        self.rows, self.columns = torch.tril_indices(K, K, device=device)
        self.diagonal = triangle(K, device).diagonal()
        # how often an entry is in the whole matrix
        self.times = torch.where(self.rows == self.columns, 1.0, 2.0)[:, None]

    def pairs(self, F: Tensor) -> Tensor:
        """(P, m): F_k ∘ F_j for F (K, m)."""
        return F[self.rows].mul_(F[self.columns])

    def penalise_(self, C: Tensor, G: Tensor, penalty: Penalty) -> None:
        """C − l1 and, for each column, G with the penalty's curvature, in place."""
        if not penalty:
            return
        diagonal = G[self.diagonal]
        l2 = penalty.l2[:, None] if isinstance(penalty.l2, Tensor) else penalty.l2
        G[self.diagonal] = diagonal + replace(penalty, l2=l2).curvature(diagonal)
        if penalty.l1:
            C -= penalty.l1


class Sums:
    """Zᵀ (W ∘ X) (K, d), and Σ_i w_ij z_i z_iᵀ of each feature j (P, d), added up over tiles."""

    def __init__(self, D: Tensor, triangles: Triangles, *, sparse: bool) -> None:
        K, d = D.shape
        self._triangles, P = triangles, K * (K + 1) // 2
        # as products with sparse data have them
        shape = (lambda k: (d, k)) if sparse else (lambda k: (k, d))
        self._cross, self._grams = D.new_zeros(shape(K)), D.new_zeros(shape(P))
        self._sparse = sparse

    def clear_(self) -> None:
        self._cross.zero_()
        self._grams.zero_()

    def add_(self, V: Matrix, W: Matrix, F: Tensor) -> None:
        """Add a tile V = W ∘ X (m, d) with codes F (K, m)."""
        pairs = self._triangles.pairs(F)
        if isinstance(V, SparseMatrix):
            V.tdot(F.T.contiguous(), self._cross, adds=True)
            W.tdot(pairs.T.contiguous(), self._grams, adds=True)
        else:
            self._cross.addmm_(F, V)
            self._grams.addmm_(pairs, W)

    def read(self) -> tuple[Tensor, Tensor]:
        """Both, copies with contiguous rows."""
        parts = self._cross, self._grams
        turned = (M.T if self._sparse else M for M in parts)
        cross, grams = (M.clone(memory_format=torch.contiguous_format) for M in turned)
        return cross, grams


def own_grams(V: Matrix, W: Matrix, D: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """C (K, m) = D Vᵀ, and Σ_j w_ij d_j d_jᵀ of each row i (P, m), for V = W ∘ X (m, d)."""
    if isinstance(V, SparseMatrix):
        C, G = V.dot(D.T.contiguous()), W.dot(pairs.T.contiguous())
        return C.T.contiguous(), G.T.contiguous()
    return D @ V.T, pairs @ W.T


class WeightedStep:
    """An iteration on a State, as iteration.Step: minimises ½ Σ w (A − Z D)² and the penalties.

    Each half-step sweeps the concepts as HALS does, several times for the same Gram matrices; its
    cost is n d K² flops, in products of matrices. Where no entry has a weight, nothing but a
    penalty moves a row or a feature: codes become zero, and concepts stay as they are.
    """

    noise = 0.0

    def __init__(
        self, state: State, data: Data, method: Method, plan: Plan, *, allowed: str, waits: bool
    ) -> None:
        assert data.weights is not None
        D = state.D
        self.state, self.data, self.method, self.plan = state, data, method, plan
        self.weights: EntryWeights = data.weights
        self.processes, self.compute = data.processes, method.compute(plan.block, D, allowed)
        self.penalties = method.penalties.of_both(data.n, data.d)
        given = D, data.squared_norm, data.processes
        self.statistics = Statistics(*given, moments=None, penalties=self.penalties)
        self._triangles = Triangles(len(D), D.device)
        sparse = isinstance(self.weights.X, SparseMatrix)
        self._sums = Sums(D, self._triangles, sparse=sparse)
        self._tiles = [*row_blocks(data.n, plan.tile_rows)]
        if (seen := self.weights.observed_rows) is not None:
            state.codes.mul_(seen.to(state.codes)[:, None])
        state.swept, state.unit = bool(state.history), None
        if method.penalties.unit_norm:
            state.unit = UnitNorm()
            if not state.swept:
                state.unit.normalise_(D, D, self.statistics)
        if plan.accelerates:
            pair, share = (state.codes, D), method.solver.least_share
            kind = {"waits": waits, "signed": method.constraint.signed}
            state.extrapolation = Extrapolation(*pair, share, plan.tile_rows, method.ops, **kind)
            if state.carried is not None:
                state.extrapolation.restore(state.carried)
        self.history = History(state, data.squared_norm)

    @property
    def sums(self) -> Tensor:
        """Statistics.sums of the iteration."""
        return self.statistics.sums

    def __call__(self) -> None:
        state, extrapolation = self.state, self.state.extrapolation
        if extrapolation is not None:
            extrapolation.begin_(state.D)
        self.statistics.clear_()
        self._sums.clear_()
        self._update_codes_()
        self._update_dictionary_()
        if extrapolation is not None:
            extrapolation.end_(state.codes, state.D, *self.statistics.sums)
        state.swept = True

    def _update_codes_(self) -> None:
        state, sweep_ = self.state, self.method.ops["hals_each_"]
        pairs, extrapolation = self._triangles.pairs(state.D), state.extrapolation
        for part in self._tiles:
            V, W = self.weights.tile(part)
            Z = state.codes[part]
            if state.unit is not None:
                state.unit.move_(Z)
            C, G = own_grams(V, W, state.D, pairs)
            self._triangles.penalise_(C, G, self.penalties[0])
            if extrapolation is not None:
                extrapolation.keep_codes_(Z, part)
            sweep_(Z.T, C, G, self.statistics.codes, self.plan.inner[0])
            if extrapolation is not None:
                extrapolation.move_codes_(Z, part)
            self._sums.add_(V, W, Z.T)
            self.statistics.add_(V, Z)

    def _update_dictionary_(self) -> None:
        """Half-steps on D from the sums; the statistics receive Σ w (A − Z D)²."""
        state, statistics, D = self.state, self.statistics, self.state.D
        before = None if state.unit is None else D.clone()
        cross, grams = self._sums.read()
        penalty = self.penalties[1] if state.unit is None else statistics.penalty_of_norms()
        C, G = (cross.clone(), grams.clone()) if penalty else (cross, grams)
        self._triangles.penalise_(C, G, penalty)
        bounded = not self.method.constraint.signed
        by = statistics.dictionary, self.plan.inner[1], bounded
        self.method.ops["hals_each_"](D, C, G, *by)
        squares = (self._triangles.pairs(D).mul_(self._triangles.times.to(D))).mul_(grams)
        error = squares.sum(dtype=torch.float64) - 2 * (cross * D).sum(dtype=torch.float64)
        statistics.dictionary[2] = self.data.squared_norm + error
        if state.unit is not None:
            state.unit.normalise_(D, before, statistics)
        statistics.penalise_(D)

    def take_precision(self) -> None:
        """Nothing: there is no residual."""

    def measured(self) -> list[Iteration]:
        """As Step.measured."""
        read, self.noise = self.history.measured(True, False, self._squared_error, self.processes)
        return read

    def _squared_error(self) -> float:
        state = self.state
        D = state.D if state.unit is None else state.unit.scaled(state.D)
        parts = (self.weights.squared_error(part, state.codes[part], D) for part in self._tiles)
        return float(sum(parts))

    def apply_scale_(self) -> None:
        """As Step.apply_scale_."""
        if self.state.unit is not None:
            self.state.unit.apply_scale_(self.state.Z)

    def share_(self) -> None:
        """Nothing: there is one process."""

    def snapshot(self) -> State:
        """The State as a checkpoint stores it."""
        self.apply_scale_()
        extrapolation = self.state.extrapolation
        carried = None if extrapolation is None else extrapolation.state()
        return replace(self.state, E=None, carried=carried)

    def revive_(self, dead: bool, duplicates: bool, least: float = 0.0) -> bool:
        """No concept is revived."""
        return False
