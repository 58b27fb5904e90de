"""Exact non-negative least squares: nnls on one and two threads, up to 10,000 concepts.

For comparison scipy's nnls, row by row, and Overcomplete's 50 gradient steps, on one thread.
"""

from __future__ import annotations

import functools

import pytest
import torch
from oracle import TOLERANCES, kkt_residual
from support import nnls_problems
from support.measure import BUDGET, Bench, Timing, called
from support.workloads import Problem, Workload

from fastnmf import nnls

SIZES = [(2000, 256, 128), (1000, 128, 512), (400, 384, 2000)]
NAMES = [f"{kind}-d{d}-K{K}" for kind in ("rectified", "lowrank") for _, d, K in SIZES]
LARGE = ["rectified-d768-K10000", "lowrank-d768-K10000"]
ROWS = {**{f"d{d}-K{K}": n for n, d, K in SIZES}, "d768-K10000": 1000}


@functools.cache
def load(name: str) -> Problem:
    kind, size = name.split("-", 1)
    n, (d, K) = ROWS[size], (int(part[1:]) for part in size.split("-"))
    A, D = (torch.tensor(M, dtype=torch.float32) for M in nnls_problems.draw(kind, n, d, K))
    return Problem(Workload(name, n, d, K), A, torch.zeros(n, K), D, kind)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def record(benchmark, problem: Problem, contender: str, step, rows: int | None = None) -> None:
    """Time step() on the first rows of the problem, extrapolated to all of them."""
    n = problem.workload.n
    timing = Timing(
        tuple,
        step,
        {"kind": "nnls", "contender": contender},
        scale=n / (rows or n),
        measured_on="" if rows is None else f"{rows} rows",
    )
    Bench(benchmark, problem, BUDGET).record(timing, called(timing)[1:])


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("workload", NAMES + LARGE)
def bench_nnls(benchmark, workload, threads):
    problem = load(workload)
    A, D = problem.A, problem.D
    Z, info = nnls(A, D, return_info=True)
    assert info.capped == 0
    assert (
        kkt_residual(Z[:50].numpy().T, A[:50].numpy(), D.numpy()) <= TOLERANCES["anls", "float32"]
    )
    record(benchmark, problem, "fastnmf", lambda: nnls(A, D))


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("workload", NAMES)
def bench_scipy(benchmark, workload, threads):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    problem = load(workload)
    rows = max(4, 10000 // problem.workload.K)
    A, D = problem.A[:rows].double().numpy(), problem.D.double().numpy()
    most = 100 * len(D)
    record(
        benchmark,
        problem,
        "scipy",
        lambda: [optimize.nnls(D.T, row, maxiter=most) for row in A],
        rows,
    )


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("workload", NAMES)
def bench_overcomplete(benchmark, workload, threads):
    """50 projected gradient steps, not a solution: the loss is 7 % to 1,300 × above the least."""
    utils = pytest.importorskip("overcomplete.optimization.utils", reason="no overcomplete")
    problem = load(workload)
    A, D = problem.A, problem.D
    record(benchmark, problem, "Overcomplete", lambda: utils.matrix_nnls(D.T, A.T))
