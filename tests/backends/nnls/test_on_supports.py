"""Linear systems on the supports of rows: torch and the compiled kernel solve each as a loop does,
with the solution of least norm where concepts depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compiled import REASON

from fastnmf.backends.nnls.on_supports import solve_supports_
from fastnmf.backends.registry import BACKENDS

CPP = pytest.param("cpp", marks=pytest.mark.skipif(REASON is not None, reason=str(REASON)))
ON_ALL = pytest.mark.parametrize("backend", ["torch", CPP])


def solve(backend, R, G, used, X=None):
    X = torch.full_like(R, torch.nan) if X is None else X
    BACKENDS[backend].load()["solve_supports_"](X, R, G, used)
    return X


def by_loop(R, G, used):
    """In float64, of least norm."""
    X = torch.zeros_like(R)
    for i, chosen in enumerate(used):
        system = G[chosen][:, chosen]
        inverse = torch.linalg.pinv(system, rtol=1e-10, hermitian=True)
        X[i, chosen] = (inverse @ R[i, chosen].double()).to(R.dtype)
    return X


def problem(n, K, share, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    D = torch.randn(K, 2 * K, generator=draw, dtype=torch.float64)
    used = torch.rand(n, K, generator=draw) < share
    return torch.randn(n, K, generator=draw, dtype=torch.float64).to(dtype), D @ D.T, used


@ON_ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "K", "share"), [(1, 1, 1.0), (7, 3, 0.5), (40, 17, 0.4), (300, 33, 1.0), (9, 130, 0.9)]
)
def test_each_row_is_solved_on_its_support(backend, dtype, n, K, share):
    R, G, used = problem(n, K, share, dtype)
    used[n // 2] = False
    close = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    )
    found = solve(backend, R, G, used)
    torch.testing.assert_close(found, by_loop(R, G, used), **close)
    assert not found[~used].any()


@ON_ALL
def test_rows_whose_concepts_depend_on_each_other_get_the_least_solution(backend):
    R, G, used = problem(12, 6, 0.7, torch.float64)
    first, second = torch.tensor([1, 4]), torch.tensor([3, 5])
    G[second], G[:, second] = G[first], G[:, first]
    # a concept that is zero, and a pair of equals
    G[0], G[:, 0] = 0, 0
    used[:4] = True
    found = solve(backend, R, G, used)
    torch.testing.assert_close(found, by_loop(R, G, used), rtol=1e-8, atol=1e-8)


@ON_ALL
def test_rows_may_lie_apart(backend):
    R, G, used = problem(20, 8, 0.6, torch.float32)
    wide, apart = torch.full((20, 16), torch.nan), torch.zeros(20, 16)
    apart[:, ::2] = R
    solve(backend, apart[:, ::2], G, used.T.contiguous().T, wide[:, 3:11])
    torch.testing.assert_close(wide[:, 3:11], by_loop(R, G, used), rtol=1e-5, atol=1e-6)
    assert wide[:, :3].isnan().all()
    assert wide[:, 11:].isnan().all()


@ON_ALL
def test_no_rows_and_empty_supports_are_zero(backend):
    _, G, _ = problem(1, 4, 1.0, torch.float64)
    assert solve(backend, torch.zeros(0, 4), G, torch.zeros(0, 4, dtype=torch.bool)).shape == (0, 4)
    assert not solve(backend, torch.ones(3, 4), G, torch.zeros(3, 4, dtype=torch.bool)).any()


@pytest.mark.parametrize("scratch", [1, 1 << 22])
def test_groups_of_rows_make_no_difference(monkeypatch, scratch):
    R, G, used = problem(50, 20, 0.5, torch.float64)
    monkeypatch.setattr("fastnmf.backends.nnls.on_supports._SCRATCH", scratch)
    X = torch.empty_like(R)
    solve_supports_(X, R, G, used)
    np.testing.assert_allclose(X, by_loop(R, G, used), rtol=1e-9, atol=1e-12)
