"""Exact non-negative least squares: nnls on one thread beside scipy's, row by row, and
Overcomplete's 50 gradient steps; two threads beside one; 10,000 concepts."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import BUDGET
from measure import Bench, Timing, called
from oracle import TOLERANCES, kkt_residual
from workloads import Problem, Workload

from fastnmf import nnls

SIZES = [(2000, 256, 128), (1000, 128, 512), (400, 384, 2000)]
NAMES = [f"{kind}-d{d}-K{K}" for kind in ("rectified", "lowrank") for _, d, K in SIZES]
LARGE = ["rectified-d768-K10000", "lowrank-d768-K10000"]
ROWS = {**{f"d{d}-K{K}": n for n, d, K in SIZES}, "d768-K10000": 1000}


@functools.cache
def load(name: str) -> Problem:
    """rectified: Gaussian rows, sparser Gaussian concepts. lowrank: 32 positive factors and noise,
    concepts drawn from the rows."""
    kind, size = name.split("-", 1)
    n, (d, K) = ROWS[size], (int(part[1:]) for part in size.split("-"))
    rng = np.random.default_rng(1)
    if kind == "rectified":
        A = np.maximum(rng.standard_normal((n, d)), 0)
        D = np.maximum(rng.standard_normal((K, d)) - 0.5, 0)
    else:
        A = rng.gamma(1, 1, (n, 32)) @ rng.gamma(1, 1, (32, d)) / 32
        A += 0.1 * np.abs(rng.standard_normal((n, d)))
        D = A[rng.integers(0, n, K)] * rng.random((K, d))
    A, D = (torch.tensor(M, dtype=torch.float32) for M in (A, D))
    return Problem(Workload(name, n, d, K), A, torch.zeros(n, K), D, kind)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def record(benchmark, problem: Problem, contender: str, step, rows: int | None = None) -> None:
    """Time step() on so many rows of the problem, given for all of them."""
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
    """50 projected gradient steps: not a solution, its loss is 7 % to 1,300 × above the least."""
    utils = pytest.importorskip("overcomplete.optimization.utils", reason="no overcomplete")
    problem = load(workload)
    A, D = problem.A, problem.D
    record(benchmark, problem, "Overcomplete", lambda: utils.matrix_nnls(D.T, A.T))
