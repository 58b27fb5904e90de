"""Online learning: one pass over image patches, each row seen once.

Seconds and error on held-out rows, compared with scikit-learn's MiniBatchNMF.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.data_sets import online_patches
from support.measure import Timing, imported, once
from support.workloads import Problem, Workload, relative_error

import fastnmf

BATCH_ROWS = 1024
# rows for the error, which no library is trained on
HELD_OUT = 4000
STREAM = Workload("patches", 200_000, 192, 256)
# rows of a first, shorter pass, which loads and compiles everything
FIRST = 8 * BATCH_ROWS


def pass_fastnmf(A, K: int):
    model = fastnmf.NMF(K, seed=0)
    for batch in A.split(BATCH_ROWS):
        model.partial_fit(batch)
    return model.D, {"contender": f"fastnmf partial_fit ({model.online_info_.backend})"}


def pass_sklearn(A, K: int):
    """Its online learning: codes of each batch by up to 30 multiplicative updates."""
    model = _minibatch(K)
    for batch in np.split(A.numpy(), range(BATCH_ROWS, len(A), BATCH_ROWS)):
        model.partial_fit(batch)
    return torch.from_numpy(model.components_), {}


def pass_sklearn_fit(A, K: int):
    """Its fastest pass, for data in memory: one update of codes that are kept for all rows."""
    return torch.from_numpy(_minibatch(K, max_iter=1, tol=0).fit(A.numpy()).components_), {}


def _minibatch(K: int, **options):
    decomposition = imported("sklearn.decomposition", "scikit-learn")
    return decomposition.MiniBatchNMF(K, batch_size=BATCH_ROWS, random_state=0, **options)


PASSES = {
    "fastnmf partial_fit": pass_fastnmf,
    "MiniBatchNMF partial_fit": pass_sklearn,
    "MiniBatchNMF fit, one pass": pass_sklearn_fit,
}


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    return online_patches(STREAM.n + HELD_OUT)


@pytest.fixture
def problem(workload, drawn) -> Problem:
    n, d, K = STREAM.n, STREAM.d, STREAM.K
    unused = torch.empty(0, K), torch.empty(0, d)
    return Problem(STREAM, drawn[:n], *unused, "patches of a photograph")


@pytest.mark.parametrize("contender", PASSES)
@pytest.mark.parametrize("workload", [STREAM.name])
def bench_pass(bench, drawn, contender):
    A, K = bench.problem.A, bench.problem.workload.K
    held_out, learn = drawn[STREAM.n :], PASSES[contender]
    _, seconds, growth = once(lambda: learn(A[:FIRST], K))
    label = {"kind": "pass", "contender": contender}
    # a pass is already a mean over batches
    few = replace(bench, rounds=(1, 3))
    first_call = seconds * len(A) / FIRST, growth
    D, reported = few.record(Timing(lambda: (A, K), learn, label), first_call)
    # exact codes for either dictionary, however its library encodes
    Z = fastnmf.nnls(held_out, D.to(held_out))
    bench.note(relative_error=relative_error(held_out, Z, D.to(Z)), **reported)
