"""Multiplicative updates give the iterates of the plain formula, in both forms, on every
backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import BACKEND_NAMES, DTYPES, dtype_name, iterate, supplies
from oracle import (
    KINDS,
    SHAPES,
    TOLERANCES,
    WIDE,
    factors_difference,
    mu_half_step,
    problem,
    relative_difference,
)
from oracle import iterate as expected_iterates

BACKENDS = [name for name in BACKEND_NAMES if supplies(name, "mu")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "K"), SHAPES + WIDE, ids=str)
def test_mu_half_steps_are_those_of_the_formula(n, d, K, kind, form, dtype, backend):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    Z1, D1, _ = iterate("mu", A, Z, D, form=form, dtype=dtype, backend=backend)
    tolerance = TOLERANCES["mu", dtype_name(dtype)]
    assert relative_difference(Z1, mu_half_step(Z.T, A, D).T) <= tolerance
    expected = mu_half_step(D, A.T, Z1.T)
    assert factors_difference((Z1, D1), (Z1, expected), A) <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "K"), SHAPES, ids=str)
def test_mu_gives_the_iterates_of_the_formula(n, d, K, kind, form, dtype, backend):
    A, Z, D = (M.astype(dtype_name(dtype)) for M in problem(n, d, K, kind=kind))
    *given, _ = iterate("mu", A, Z, D, form=form, dtype=dtype, iterations=10, backend=backend)
    expected = expected_iterates("mu", A, Z, D, 10)
    assert factors_difference(given, expected, A) <= TOLERANCES["mu", dtype_name(dtype)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_mu_does_not_depend_on_the_scale_of_the_data(form, scale, backend):
    """An absolute constant in the denominator would stop small data, and a quotient taken first
    overflow large."""
    A, Z, D = problem(30, 12, 8)
    plain = iterate("mu", A, Z, D, form=form, dtype=torch.float32, iterations=20, backend=backend)
    root = np.sqrt(scale)
    scaled = iterate(
        "mu",
        A * scale,
        Z * root,
        D * root,
        form=form,
        dtype=torch.float32,
        iterations=20,
        backend=backend,
    )
    assert relative_difference(scaled[0] / root, plain[0]) <= 1e-4
    assert relative_difference(scaled[1] / root, plain[1]) <= 1e-4
