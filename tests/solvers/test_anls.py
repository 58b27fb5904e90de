"""ANLS: every half-step is solved exactly, whatever the rank of the dictionary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from half_steps import CASES, backends_of, case_name, dtype_name, iterate
from oracle import TOLERANCES, kkt_residual, problem

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


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_anls_objective_never_rises_beyond_rank(form):
    A, Z, D = problem(25, 12, 30)
    losses = []
    for _ in range(6):
        Z, D, _ = iterate("anls", A, Z, D, form=form, dtype=torch.float64)
        losses.append(((A - Z @ D) ** 2).sum())
    slack = 1e-12 * (A**2).sum()
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))
