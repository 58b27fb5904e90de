"""HALS: zero concepts, exact zeros, reported change and error. Iterates: test_iterates.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import backends_of, iterate, method_of
from oracle import iterate as expected_iterates
from oracle import problem, relative_difference

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


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the extension is not built")
def test_a_block_is_swept_to_the_same_bits_with_rows_or_columns_adjacent():
    sweep_ = method_of("hals", backend="cpp").ops["hals_block_"]
    generator = torch.Generator().manual_seed(0)
    before, rest = torch.randn(2, 21, 50, generator=generator)
    gram = rest @ rest.T
    swept = []
    for columns in (False, True):
        F, R = before.relu().T.contiguous().T, rest.clone()
        R = R.T.contiguous().T if columns else R
        delta, sums = torch.full_like(R, torch.nan), torch.zeros(2).double()
        sweep_(F, R, gram, delta, sums)
        assert delta.stride() == R.stride()
        swept.append((F, delta, sums))
    assert all(map(torch.equal, *swept))


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (1, 3), (3, 1), (1, 1)], ids=str)
def test_blocks_of_few_samples_are_swept_as_the_loop_does(shape, monkeypatch):
    """Blocks of one concept, of some and of all, with one sample and with several."""
    n, K = shape
    A, Z, D = problem(n, 7, K)
    for block in {1, 2, K}:
        monkeypatch.setattr("half_steps.BLOCK", block)
        Z1, D1, _ = iterate("hals", A, Z, D, form="residual", dtype=torch.float64)
        expected = expected_iterates("hals", A, Z, D, 1)
        assert relative_difference(Z1, expected[0]) <= 1e-10
        assert relative_difference(D1, expected[1]) <= 1e-10
