"""One row: the time of `encode` and of `nnls` from call to return, with torch's threads."""

from __future__ import annotations

import functools

import pytest
import torch
from support.measure import imported
from support.workloads import Problem, Workload

from fastnmf import NMF, nnls

D_IN, CONCEPTS = 384, (10, 50, 200)
# calls that are timed one by one, after those that load and keep what they need
CALLS, FIRST = 500, 50


@functools.cache
def load(name: str) -> Problem:
    K = int(name.split("-K")[1])
    generator = torch.Generator().manual_seed(0)
    A, D = (torch.rand(rows, D_IN, generator=generator) for rows in (1, K))
    D *= torch.rand(D.shape, generator=generator) > 0.5
    return Problem(Workload(name, 1, D_IN, K), A, torch.zeros(1, K), D, "drawn")


def fastnmf_encode(A, D):
    model = NMF(len(D)).load_dictionary(D)
    return lambda: model.encode(A)


def fastnmf_nnls(A, D):
    return lambda: nnls(A, D)


def scipy_nnls(A, D):
    optimize = imported("scipy.optimize", "scipy")
    row, concepts = A[0].double().numpy(), D.double().numpy().T
    return lambda: optimize.nnls(concepts, row)[0]


CONTENDERS = {
    "fastnmf encode": fastnmf_encode,
    "fastnmf nnls": fastnmf_nnls,
    "scipy nnls": scipy_nnls,
}


@pytest.fixture
def problem(workload) -> Problem:
    return load(workload)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("workload", [f"one-row-K{K}" for K in CONCEPTS])
def bench_one_row(bench, contender):
    A, D = bench.problem.A, bench.problem.D
    call = CONTENDERS[contender](A, D)
    exact = nnls(A.double(), D.double())
    found = torch.as_tensor(call()).reshape(1, -1).double()
    assert float((found @ D.double() - exact @ D.double()).norm()) <= 1e-5 * float(A.norm())
    bench.benchmark.pedantic(call, rounds=CALLS, warmup_rounds=FIRST)
    stats = bench.benchmark.stats.stats
    bench.note(kind="row", contender=contender, seconds=stats.min, median=stats.median)
