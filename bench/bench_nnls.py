"""`nnls` and scipy's `nnls` row by row, in turns on one thread, for the dictionary of a fit.
`--data` gives real activations of 384 features; else rows are drawn."""

from __future__ import annotations

import time

import pytest
import torch
from support import nnls_problems
from support.measure import Bench, imported
from support.workloads import Problem, Workload, from_file

from fastnmf import NMF, nnls
from fastnmf.backends.nnls.residual import measure

ROWS, D_IN, TURNS = 1000, 384, 5
# rows that scipy solves in a turn, about half a second of them
SCIPY_ENTRIES = 50_000
# backend and K: of the extension, and what a machine without it runs
CASES = ["cpp-K50", "cpp-K512", "torch-K50", "torch-K500"]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(K: int, files: tuple[str, ...]) -> Problem:
    """Rows and the concepts of a fit of three times as many others."""
    workload = Workload(f"nnls-d{D_IN}-K{K}", 4 * ROWS, D_IN, K)
    drawn = torch.from_numpy(nnls_problems.draw("lowrank", 4 * ROWS, D_IN, 1)[0]).float()
    A, source = from_file(workload, files) or (drawn, "lowrank")
    D = NMF(K, max_iter=20, tol=0, seed=0).fit(A[ROWS:])[1]
    workload = Workload(workload.name, ROWS, D_IN, K)
    return Problem(workload, A[:ROWS], torch.zeros(ROWS, K), D, source)


@pytest.mark.parametrize("workload", CASES)
@pytest.mark.usefixtures("one_thread")
def bench_beside_scipy(benchmark, workload, pytestconfig):
    optimize = imported("scipy.optimize", "scipy")
    backend, K = workload.split("-K")[0], int(workload.split("-K")[1])
    problem = load(K, tuple(pytestconfig.getoption("data")))
    A, D = problem.A, problem.D
    Z, info = nnls(A, D, backend=backend, return_info=True)
    assert float(measure(A, D, Z).kkt.max()) <= 1e-6
    assert info.capped == 0
    some, concepts = A[: max(4, SCIPY_ENTRIES // K)].double().numpy(), D.double().numpy().T
    pairs = []

    def turn():
        times = [time.perf_counter()]
        nnls(A, D, backend=backend)
        times.append(time.perf_counter())
        for row in some:
            optimize.nnls(concepts, row, maxiter=100 * K)
        times.append(time.perf_counter())
        pairs.append(((times[1] - times[0]) / len(A), (times[2] - times[1]) / len(some)))

    benchmark.group = f"nnls, one thread, K = {K}"
    benchmark.pedantic(turn, rounds=TURNS, warmup_rounds=1)
    ours, theirs = (min(own) for own in zip(*pairs, strict=True))
    times = sorted(other / own for own, other in pairs)
    Bench(benchmark, problem, 0.0).note(
        kind="beside scipy",
        contender=f"fastnmf, {backend}",
        seconds=ours,
        scipy_seconds=theirs,
        times_scipy=times[len(times) // 2],
        support=float(info.support.double().mean()),
    )
