"""ANLS: every half-step is solved exactly, whatever the rank of the dictionary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from half_steps import CASES, backends_of, case_name, dtype_name, iterate
from oracle import TOLERANCES, kkt_residual, problem

from fastnmf import nnls

# the largest is smaller here, the reference being slow; concepts in use depend on each other there
ANLS_CASES = [
    *(case for case in CASES if case[2] < 100),
    (21, 13, 71, "plain", "normal", torch.float32),
    (21, 13, 71, "duplicates", "residual", torch.float64),
]


@pytest.mark.parametrize("backend", backends_of("anls"))
@pytest.mark.parametrize(("n", "d", "K", "kind", "form", "dtype"), ANLS_CASES, ids=case_name)
def test_anls_half_steps_satisfy_the_kkt_conditions(n, d, K, kind, form, dtype, backend):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    Z1, D1, _ = iterate("anls", A, Z, D, form=form, dtype=dtype, backend=backend)
    tolerance = TOLERANCES["anls", dtype_name(dtype)]
    assert (Z1 >= 0).all()
    assert (D1 >= 0).all()
    alive = D.any(1)
    # a zero concept keeps its codes; it takes no part in the fit
    assert np.array_equal(Z1[:, ~alive], Z[:, ~alive])
    assert kkt_residual(Z1.T[alive], A, D[alive]) <= tolerance
    assert kkt_residual(D1, A.T, Z1.T) <= tolerance


@pytest.mark.parametrize(
    "kind", ["rank_6", "near_duplicates", "scales", "all_ones", "garbage_start"]
)
def test_nnls_has_the_objective_of_scipy(kind):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    rng = np.random.default_rng(1)
    A, _, D = problem(25, 18, 30)
    Z0 = None
    if kind == "rank_6":
        D = np.abs(rng.standard_normal((30, 6))) @ np.abs(rng.standard_normal((6, 18)))
    elif kind == "near_duplicates":
        D[15:] = D[:15] + 1e-5 * rng.random((15, 18))
    elif kind == "scales":
        D *= 10.0 ** rng.uniform(-4, 4, (30, 1))
    elif kind == "all_ones":
        D[:] = 1.0
    else:
        Z0 = np.abs(rng.standard_normal((25, 30)))
    Z = nnls(A, D, Z0).numpy()
    assert Z.dtype == np.float64
    assert kkt_residual(Z.T, A, D) <= 1e-9
    for i in range(25):
        exact = optimize.nnls(D.T, A[i], maxiter=10000)[1] ** 2
        assert ((A[i] - Z[i] @ D) ** 2).sum() <= exact * (1 + 1e-9) + 1e-12 * (A[i] ** 2).sum()


def test_nnls_leaves_zero_rows_and_zero_concepts_at_zero():
    A, _, D = problem(20, 8, 5)
    A[4], D[2] = 0, 0
    Z = nnls(torch.tensor(A), torch.tensor(D), torch.ones(20, 5))
    assert not Z[4].any()
    assert not Z[:, 2].any()


def test_nnls_takes_signed_data():
    rng = np.random.default_rng(2)
    A, D = rng.standard_normal((15, 9)), rng.standard_normal((6, 9))
    assert kkt_residual(nnls(A, D).numpy().T, A, D) <= 1e-9


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_anls_objective_never_rises_beyond_rank(form):
    A, Z, D = problem(25, 12, 30)
    losses = []
    for _ in range(10):
        Z, D, _ = iterate("anls", A, Z, D, form=form, dtype=torch.float64)
        losses.append(((A - Z @ D) ** 2).sum())
    slack = 1e-12 * (A**2).sum()
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))
