"""Iterations whose half-steps are restricted to few concepts of each row, in fits that ask for few:
when they are, and how codes come from where they are stored and go back."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix
from ...data.dataset import Data
from ...data.storage import Compressed, NotKept
from ...numerics import squared_norm
from ...planning.hardware import machine_of
from ...planning.plan import Plan, Problem
from ...planning.restricted import restricting_may_pay, restricting_pays, slope_rows
from ...solvers.half_step import Compute, Operations
from ...solvers.penalties import Penalty
from ...solvers.registry import learner
from ...solvers.supports.restricted import Dictionary, sweep_codes_, sweep_concepts_
from ..state import Method, State
from ..statistics import Statistics


class Restricted:
    """The half-steps of such iterations. applies: whether the current one is restricted."""

    def __init__(self, state: State, data: Data, method: Method, plan: Plan) -> None:
        self._state, self._data, self._plan = state, data, plan
        sizes = data.n, data.d, len(state.D), state.D.itemsize
        problem = Problem(*sizes, method.solver, constraint=method.constraint)
        self._given = problem, plan, machine_of(state.D, method.backend)
        self._codes: list[SparseMatrix] = []
        self.applies = False

    @classmethod
    def of(cls, state: State, data: Data, method: Method, plan: Plan) -> Restricted | None:
        """Those of a fit that may have such: with concepts of norm 1 and a penalty l1 of the codes,
        by a solver that can, on a CPU, with dense data and codes that are kept. Where the
        dictionary half is in residual form it is restricted as well. None where that never pays."""
        penalties = method.penalties
        asked = penalties.unit_norm and penalties.of_codes(data.d).l1 > 0
        by = learner(method.solver, len(state.D), method.constraint)
        concepts = plan.dictionary == "normal" or (by.restricts and data.processes.alone)
        plain = state.offset is None and data.weights is None and data.stored is None
        # where kernels for GPUs are interpreted these are on a CPU
        on_cpu = state.D.device.type == "cpu" and method.backend != "triton"
        kept = on_cpu and not isinstance(state.Z, NotKept)
        sweeps = method.solver.restricts and concepts and not plan.accelerates
        if not (asked and sweeps and plain and kept):
            return None
        found = cls(state, data, method, plan)
        # each process has tiles of its own, and all must count what is active if one of them does
        (may_pay,) = data.processes.any(restricting_may_pay(*found._given))
        return found if may_pay else None

    def decide(self) -> bool:
        """Whether the iteration that begins had better be restricted, given how many concepts the
        last one left active."""
        self.applies = restricting_pays(*self._given, self._state.mean_l0)
        return self.applies

    def update_codes_(self, penalty: Penalty, compute: Compute, statistics: Statistics) -> None:
        """The half-step of all codes; the statistics receive their sums, and what is kept is what
        the half-step of the dictionary reads."""
        state, self._codes = self._state, []
        fixed, keeps = Dictionary.of(state.D, penalty), self._plan.dictionary == "residual"
        rows = slope_rows(len(state.D), state.D.itemsize)
        sparse, first = state.Z if isinstance(state.Z, Compressed) else None, 0
        dense = None if sparse is not None else state.Z
        for X, Z, E in self._data.tiles(dense, rows, save=True, E=state.E):
            part = slice(first, first + len(X))
            X, first = X.to(state.D.dtype), part.stop
            stored = active(Z, compute.ops) if sparse is None else sparse.take(part)
            before = stored if state.unit is None else state.unit.moved(stored)
            residual = compute.scratch("E", *X.shape) if E is None else E
            after = sweep_codes_(before, X, residual, fixed, compute, statistics.codes)
            if sparse is None:
                replace_(Z, stored, after)
            else:
                sparse.put(part, after)
            statistics.add_sparse_(X, Z, after)
            if keeps:
                self._codes.append(after)

    def update_dictionary_(self, penalty: Penalty, compute: Compute, sums: Tensor) -> None:
        """The half-step of the dictionary in residual form, by the codes of the last one of these;
        the sums receive ‖A − Z D‖². compute: of the dictionary."""
        state = self._state
        sweep_concepts_(state.D, state.E, self._codes, penalty, compute, sums)
        sums[2] = squared_norm(state.E)
        # what an iteration of all concepts reads is computed anew
        state.iterations_since_fresh, self._codes = 0, []


def active(Z: Tensor, ops: Operations) -> SparseMatrix:
    """The codes of Z (m, K) that are not zero."""
    none = Z.new_empty(0)
    dtype = torch.int32 if Z.numel() < 2**31 else torch.int64
    crow = torch.zeros(len(Z) + 1, dtype=dtype, device=Z.device)
    crow, col, values = ops["candidates_"](Z, (crow, crow[:0], none), 0.0)
    found = SparseMatrix(crow, col, values, (Z.shape[0], Z.shape[1]))
    values.copy_(Z[_places(found)])
    return found


def replace_(Z: Tensor, before: SparseMatrix, after: SparseMatrix) -> None:
    """Z (m, K), with the codes `before`, becomes `after`."""
    Z[_places(before)] = 0
    Z[_places(after)] = after.values


def _places(codes: SparseMatrix) -> tuple[Tensor, Tensor]:
    return codes.row_of_entries().long(), codes.col.long()
