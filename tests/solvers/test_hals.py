"""HALS: zero concepts, exact zeros, reported change and error. Iterates: test_iterates.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import backends_of, iterate
from oracle import (
    problem,
)

BACKENDS = backends_of("hals")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_hals_keeps_the_row_of_a_concept_whose_other_factor_is_zero(form, backend):
    A, Z, D = problem(30, 12, 8)
    D[3] = 0
    Z1, _, _ = iterate(
        "hals", A, Z, D, form=form, dtype=torch.float64, fixed_dictionary=True, backend=backend
    )
    assert np.array_equal(Z1[:, 3], Z[:, 3])
    Z[:, 3] = 0
    D[3] = 1.0
    A[:] = 0.0
    _, D1, _ = iterate("hals", A, Z, D, form=form, dtype=torch.float64, backend=backend)
    assert np.array_equal(D1[3], D[3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_hals_clips_to_exactly_zero(form, backend):
    A, Z, D = problem(50, 20, 30)
    Z1, D1, _ = iterate(
        "hals", A, Z, D, form=form, dtype=torch.float32, iterations=5, backend=backend
    )
    for factor in (Z1, D1):
        assert (factor >= 0).all()
        assert 0.05 < (factor == 0).mean() < 0.95


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_hals_change_and_error_are_those_of_the_factors(form, backend):
    A, Z, D = problem(41, 19, 27)
    D[::4] = 0
    Z1, D1, outcome = iterate("hals", A, Z, D, form=form, dtype=torch.float64, backend=backend)
    (measured,) = outcome.history
    change = np.linalg.norm(Z1 - Z) / np.linalg.norm(Z1)
    error = np.linalg.norm(A - Z1 @ D1) / np.linalg.norm(A)
    assert measured.relative_change == pytest.approx(change, rel=1e-12)
    assert measured.relative_error == pytest.approx(error, rel=1e-9)
