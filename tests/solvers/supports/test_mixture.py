"""The half-step of mixtures of rows is that of the per-concept loop, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from half_steps import backends_of
from oracle import relative_difference, rows_half_step

from fastnmf.backends.registry import select
from fastnmf.data.dataset import Data
from fastnmf.solvers.anls import SOLVER as ANLS
from fastnmf.solvers.constraints import FREE
from fastnmf.solvers.half_step import Compute, NormalData, Workspace, fix_gram
from fastnmf.solvers.supports.mixture import half_steps_
from fastnmf.solvers.supports.rows import Mixing, Mixture

# n, d, K, kind, whether weights sum to 1, dtype
CASES = [
    (30, 7, 4, "plain", False, torch.float64),
    (30, 7, 4, "plain", True, torch.float64),
    # in the dtype of most data
    (50, 12, 6, "plain", False, torch.float32),
    (50, 12, 6, "plain", True, torch.float32),
    # rows that no cone needs, and a hull may
    (30, 7, 4, "zero_rows", False, torch.float64),
    (30, 7, 4, "zero_rows", True, torch.float64),
    # more concepts than rows
    (5, 9, 8, "plain", False, torch.float64),
    # one row, one feature
    (1, 4, 2, "plain", True, torch.float64),
    (9, 1, 2, "plain", False, torch.float64),
    # a concept without codes keeps its rows
    (30, 7, 4, "zero_codes", False, torch.float64),
    (30, 7, 4, "zero_codes", True, torch.float64),
]


def problem(n, d, K, kind):
    rng = np.random.default_rng(n + d)
    A = rng.standard_normal((n, d))
    if kind == "zero_rows":
        A[::3] = 0
    Z = np.maximum(rng.standard_normal((n, K)), 0)
    if kind == "zero_codes":
        Z[:, 1] = 0
    W = np.zeros((K, n))
    W[np.arange(K), np.arange(K) % n] = 0.4
    W[np.arange(K), (np.arange(K) + 1) % n] += 0.6
    return A, Z, W


def step(A, Z, W, convex, dtype, backend="torch", times=1):
    """W and D after half-steps."""
    A, Z, W = (torch.from_numpy(M).to(dtype) for M in (A, Z, W))
    weights, numbers = W.double().topk(min(2, W.shape[1]), dim=1)
    mixing = Mixing(Data(A), Mixture(numbers, weights), convex=convex)
    ops = select(ANLS.operations, A.device, backend)[1]
    compute = Compute(ops, 64, Workspace(dtype, A.device), factor=FREE, mixing=mixing)
    D, sums = W @ A, torch.zeros(4, dtype=torch.float64)
    half_steps_(D, NormalData(Z.T @ A), fix_gram(None, Z.T @ Z), compute, sums, times)
    return mixing.mixture.sparse(len(A), dtype).to_dense(), D, sums


@pytest.mark.parametrize("backend", backends_of("anls"))
@pytest.mark.parametrize(("n", "d", "K", "kind", "convex", "dtype"), CASES, ids=str)
def test_half_step_is_that_of_the_loop(n, d, K, kind, convex, dtype, backend):
    A, Z, W = problem(n, d, K, kind)
    found, D, sums = step(A, Z, W, convex, dtype, backend)
    expected = rows_half_step(W, A, Z, entering=6, convex=convex)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-6}[dtype]
    assert (found >= 0).all()
    assert relative_difference(D, expected @ A) <= tolerance
    assert relative_difference(found @ torch.from_numpy(A).to(dtype), D) <= tolerance
    if n > d > 1:
        # otherwise other weights may have the same mixtures
        assert relative_difference(found, expected) <= tolerance
    if convex:
        assert torch.allclose(found.sum(1), torch.ones(K, dtype=dtype))
    assert float(sums[1]) == pytest.approx(float(D.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize("convex", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_half_steps_end_where_no_row_lowers_the_loss(convex):
    A, Z, W = problem(40, 8, 3, "plain")
    _, D, _ = step(A, Z, W, convex, torch.float64, times=60)
    found, _, _ = step(A, Z, W, convex, torch.float64, times=60)
    A, Z = torch.from_numpy(A), torch.from_numpy(Z)
    slope = Z.T @ (A - Z @ D) @ A.T
    if convex:
        slope = slope - (found * slope).sum(1, keepdim=True)
    scale = float((Z.T @ A @ A.T).abs().max())
    assert float(slope.max()) < 1e-6 * scale
    assert float(slope[found > 0].abs().max()) < 1e-6 * scale


def test_concepts_in_blocks_are_those_of_one_block(monkeypatch):
    A, Z, W = problem(50, 12, 6, "plain")
    whole = step(A, Z, W, False, torch.float64)
    monkeypatch.setattr("fastnmf.solvers.supports.mixture._BLOCK", 2)
    parts = step(A, Z, W, False, torch.float64)
    assert relative_difference(parts[1], whole[1]) <= 1e-12


def test_rows_that_are_all_the_target_stay():
    A = np.ones((4, 3))
    W = np.eye(2, 4)
    found, D, _ = step(A, np.ones((4, 2)) / 2, W, True, torch.float64)
    assert torch.allclose(D, torch.ones(2, 3, dtype=torch.float64))
    assert torch.allclose(found.sum(1), torch.ones(2, dtype=torch.float64))
