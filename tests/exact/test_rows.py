"""Exact codes by rows: both forms solve the problem, with penalties, and the KKT residual is that
of the codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import problem

from fastnmf.backends.registry import select
from fastnmf.exact.rows import EXACT, ExactRows, solve_again_
from fastnmf.init.start import cold_start
from fastnmf.results.encoding import kkt_residual
from fastnmf.solvers.penalties import NO_PENALTY, Penalty
from fastnmf.solvers.registry import SOLVERS

CPU = torch.device("cpu")
PENALTIES = [NO_PENALTY, Penalty(0.5), Penalty(0.0, 0.7), Penalty(0.3, 0.2)]


def operations(backend):
    return select(SOLVERS["anls"].operations, CPU, backend)[1]


def data(n=40, d=12, K=8, dtype=torch.float64, kind="plain"):
    A, Z, D = problem(n, d, K, kind=kind)
    return tuple(torch.tensor(M, dtype=dtype) for M in (A, Z, D))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize(("d", "K"), [(12, 8), (7, 20)])
@pytest.mark.parametrize("warm", [False, True])
def test_rows_are_solved_in_both_forms(backend, form, penalty, d, K, warm):
    A, Z, D = data(d=d, K=K, kind="zero_rows")
    rows = ExactRows(D, len(A), operations(backend), penalty, form=form)
    Z = Z if warm else torch.zeros_like(Z)
    C = rows.cross(A) if rows.G is not None else None
    rows.solve_(Z, A, C, warm=warm)
    assert (Z >= 0).all()
    assert float(kkt_residual(A, D, Z, penalty).max()) < 1e-11


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kkt_residual_is_that_of_the_codes(backend, form, penalty, dtype):
    A, Z, D = data(dtype=dtype)
    Z[::3] = 0
    rows = ExactRows(D, len(A), operations(backend), penalty, form=form)
    expected = kkt_residual(A, D, Z, penalty)
    close = {"rtol": 1e-4 if dtype == torch.float32 else 1e-10}
    np.testing.assert_allclose(rows.kkt(Z, A), expected, **close)
    if form == "normal":
        kkt, active = rows.kkt_and_active(Z, rows.cross(A))
        np.testing.assert_allclose(kkt, expected, **close)
        assert torch.equal(active.long(), (Z > 0).sum(1))
    Z[1, 2] = float("nan")
    assert not rows.kkt(Z, A)[1] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [1, 4, 5, 16, 17, 128, 129])
def test_products_with_few_and_many_concepts_are_those_of_torch(dtype, K):
    A, _, D = data(n=33, d=40, K=K, dtype=dtype)
    penalty, close = Penalty(0.5), {"rtol": 1e-5 if dtype == torch.float32 else 1e-13}
    for X in (A, A[::2], A.T.contiguous().T):
        found, expected = (
            ExactRows(D, len(X), operations(backend), penalty, form="normal").cross(X)
            for backend in ("auto", "torch")
        )
        np.testing.assert_allclose(found, expected, **close)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_start_is_the_usual_one(penalty):
    A, Z, D = data(kind="zero_rows")
    D[3] = 0
    rows = ExactRows(D, len(A), operations("torch"), penalty, form="normal")
    rows.start_(Z, rows.cross(A))
    torch.testing.assert_close(Z, cold_start(A, D), rtol=1e-12, atol=1e-15)


def test_rows_of_float32_are_solved_again_in_float64():
    """Nearly dependent concepts, on which float32 is too coarse."""
    generator = torch.Generator().manual_seed(0)
    D = torch.rand(30, 40, generator=generator) * 1e-4 + torch.rand(1, 40, generator=generator)
    A = torch.rand(20, 30, generator=generator) @ D
    rows = ExactRows(D, len(A), operations("auto"))
    Z = torch.full((20, 30), float("nan"))
    kkt = solve_again_(Z, A, rows, operations("auto"))
    true = kkt_residual(A, D, Z, NO_PENALTY)
    np.testing.assert_allclose(kkt, true, rtol=1e-3, atol=1e-12)
    assert float(true.max()) < EXACT[torch.float32]
