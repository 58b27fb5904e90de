"""Multiplicative updates whatever the scale of the data; their iterates: test_iterates.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import DTYPES, backends_of, dtype_name, iterate, method_of
from oracle import problem, relative_difference

BACKENDS = backends_of("mu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_what_fades_ends_at_zero_and_not_in_subnormal_numbers(backend, dtype):
    """With which processors compute fifty times as slowly: what a fit of 1,000 iterations was."""
    tiny, ops = torch.finfo(dtype).tiny, method_of("mu", backend=backend).ops
    F = torch.full((3, 50), 2 * tiny, dtype=dtype)
    C, denominator = torch.ones_like(F), torch.ones_like(F)
    C[0], C[1], denominator[2] = 0.1, 0.6, 0
    ops["mu_"](F, C, denominator, torch.zeros(2).double())
    assert (F[0] == 0).all()
    torch.testing.assert_close(F[1], torch.full_like(F[1], 1.2 * tiny))
    assert (F[2] == 2 * tiny).all()
