"""Rounds of sweeps: rows that have converged are exact, and the others are named."""

from __future__ import annotations

import pytest
import torch
from oracle import problem

from fastnmf.backends.registry import select
from fastnmf.exact.rows import ExactRows
from fastnmf.exact.sweeps import SETTLED, Sweeps
from fastnmf.init.start import cold_start
from fastnmf.planning.codes import SWEEPS, CodesCost
from fastnmf.planning.hardware import Machine
from fastnmf.results.encoding import kkt_residual
from fastnmf.solvers.half_step import Compute, Workspace
from fastnmf.solvers.penalties import NO_PENALTY, Penalty
from fastnmf.solvers.registry import SOLVERS

CPU = torch.device("cpu")


class Cost(CodesCost):
    """Sweeps that are free, or an exact solver that is."""

    free = False

    def exact_seconds(self, support):
        return 0 * support + (0.0 if self.free else 1e3)


class FreeSolver(Cost):
    free = True


def settled(A, D, penalty=NO_PENALTY, most=3000, cost=Cost, backend="auto"):
    operations = SOLVERS["hals"].operations + SOLVERS["anls"].operations
    ops = select(operations, CPU, backend)[1]
    rows = ExactRows(D, len(A), ops, penalty, form="normal")
    compute = Compute(ops, 64, Workspace(D.dtype, CPU))
    sweeps = Sweeps(rows, compute, cost(D.shape[1], len(D), D.element_size(), Machine()))
    Z = cold_start(A, D)
    left, done = sweeps.settle_(Z, rows.cross(A), most)
    return Z, left, done


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("penalty", [NO_PENALTY, Penalty(0.3, 0.2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_converge_and_none_is_left(backend, penalty, dtype):
    A, _, D = (torch.tensor(M, dtype=dtype) for M in problem(200, 30, 9))
    Z, left, done = settled(A, D, penalty, backend=backend)
    assert not len(left)
    assert done % SWEEPS == 0
    # beside the rounding of the check itself
    assert float(kkt_residual(A, D, Z, penalty).max()) < 2 * SETTLED[dtype]


def test_rows_that_did_not_converge_are_left():
    A, _, D = (torch.tensor(M) for M in problem(200, 30, 9))
    Z, left, done = settled(A, D, most=13)
    assert done == 13
    exact = kkt_residual(A, D, Z, NO_PENALTY) <= SETTLED[torch.float64]
    assert not exact[left].any()
    others = torch.ones(200, dtype=torch.bool)
    others[left] = False
    assert exact[others].all()


def test_rows_are_left_where_the_exact_solver_is_faster():
    A, _, D = (torch.tensor(M) for M in problem(200, 30, 9))
    _, left, done = settled(A, D, cost=FreeSolver)
    assert done == SWEEPS
    assert len(left)
    assert len(left.unique()) == len(left)
