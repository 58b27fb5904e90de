"""Codes without shrinkage: least squares on the support that is there."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import nnls

from fastnmf.backends.registry import select
from fastnmf.exact.sparsity.refit import refit_
from fastnmf.solvers import anls


def problem(m, d, K, dtype, *, signed=False):
    generator = torch.Generator().manual_seed(0)
    D = torch.rand(K, d, generator=generator, dtype=dtype)
    Z = torch.rand(m, K, generator=generator, dtype=dtype)
    Z *= torch.rand(m, K, generator=generator) < 0.2
    X = torch.rand(m, d, generator=generator, dtype=dtype) + Z @ D
    return (X - 1, D - 0.5, Z) if signed else (X, D, Z)


# fewer concepts than features and more, both dtypes, any signs, a row without concepts, one row
CASES = [
    (30, 12, 8, torch.float64, False),
    (30, 6, 40, torch.float32, False),
    (25, 10, 30, torch.float64, True),
    (1, 5, 4, torch.float32, False),
]


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(("m", "d", "K", "dtype", "signed"), CASES)
def test_each_row_is_the_least_squares_on_its_support(m, d, K, dtype, signed, backend):
    X, D, Z = problem(m, d, K, dtype, signed=signed)
    Z[0] = 0 if m > 1 else Z[0]
    ops = select(anls.SOLVER.operations, torch.device("cpu"), backend)[1]
    found = Z.clone()
    refit_(found, X, D, ops)
    assert not found[Z == 0].any()
    for x, z, before in zip(X.double(), found.double(), Z, strict=True):
        best = nnls(D[before > 0].double().T.numpy(), x.numpy())[1] if before.any() else x.norm()
        # relative to the row
        tolerance = (3e-6 if dtype == torch.float32 else 1e-10) * float(x.norm())
        error = float((x - z @ D.double()).norm())
        assert error == pytest.approx(float(best), rel=0, abs=tolerance)


def test_no_rows_and_no_codes_are_left_as_they_are():
    ops = select(anls.SOLVER.operations, torch.device("cpu"), "auto")[1]
    for m in (0, 3):
        Z = torch.zeros(m, 4)
        refit_(Z, torch.rand(m, 5), torch.rand(4, 5), ops)
        assert not Z.any()
