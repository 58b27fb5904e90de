"""Rows and concepts at a moderate scale, and codes back at their own."""

from __future__ import annotations

import pytest
import torch

from fastnmf.backends.nnls.residual import measure
from fastnmf.backends.nnls.scaled import ScaledRows

# of rows and concepts, from the smallest to the largest that are normal numbers
FACTORS = (torch.tensor([[2.0**-120], [1.0], [2.0**100]]), torch.tensor([[2.0**-60], [2.0**50]]))


def draw():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 4, generator=generator), torch.rand(2, 4, generator=generator)


def test_rows_of_moderate_size_are_not_copied():
    A, D = draw()
    rows = ScaledRows.of(A, D)
    assert rows.A is A
    assert rows.D is D
    assert rows.power is None


def test_starts_and_codes_change_their_scale_exactly():
    (A, D), (of_rows, of_concepts) = draw(), FACTORS
    rows = ScaledRows.of(A * of_rows, D * of_concepts)
    assert rows.A.abs().max() <= 2
    assert rows.D.abs().max() <= 2
    Z = torch.ones(3, 2, dtype=torch.float64)
    codes = rows.unscaled(Z)
    # what the scaled rows and codes leave is what the rows and their codes leave
    residual = (A * of_rows).double() - codes @ (D * of_concepts).double()
    own = residual.abs().amax(1) / of_rows[:, 0]
    torch.testing.assert_close(rows.scaled(codes).double(), Z)
    assert own.isfinite().all()


def test_each_concept_is_measured_at_its_own_size():
    (A, D), (_, of_concepts) = draw(), FACTORS
    Z = torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = ScaledRows.of(A, D * of_concepts)
    expected = measure(A, D * of_concepts, rows.unscaled(Z))
    torch.testing.assert_close(rows.measure(Z).kkt, expected.kkt)


def test_rows_that_cancel_are_found():
    _, D = draw()
    orthogonal = torch.linalg.qr(D.T, mode="complete").Q[:, 2:].T
    A = torch.cat((D, orthogonal, orthogonal + 1e-3 * D))
    assert ScaledRows.of(A, D).cancels().tolist() == [False] * 2 + [True] * 4
    assert not ScaledRows.of(A.abs(), D).cancels().any()


def test_codes_out_of_range_are_refused_with_the_row():
    A, D = draw()
    A[0], A[1] = 0, A[1] * 1e30
    rows = ScaledRows.of(A, D * 1e-30)
    codes = torch.ones(3, 2) * rows.A.any(1)[:, None]
    with pytest.raises(ArithmeticError, match="codes of row 1 are too large for float32"):
        rows.unscaled(codes)
