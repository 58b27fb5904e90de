"""Exact least squares for a factor of any signs."""

from __future__ import annotations

import numpy as np
import torch
from oracle import least_squares_half_step, relative_difference

from fastnmf.solvers.half_step import Compute, NormalData, ResidualData, Workspace
from fastnmf.solvers.least_squares import SOLVER, half_steps_, solution
from fastnmf.solvers.penalties import NO_PENALTY, Penalty


def problem(K=8, m=11, p=60, dtype=np.float64):
    rng = np.random.default_rng(0)
    F, X, B = rng.standard_normal((K, m)), rng.standard_normal((m, p)), rng.random((K, p))
    # dead, equal, and the sum of two
    B[1], B[3], B[5] = 0, B[2], B[4] + B[6]
    return F.astype(dtype), X.astype(dtype), B.astype(dtype)


def solved(F, X, B, form, penalty=NO_PENALTY):
    F, X, B = (torch.from_numpy(M.copy()) for M in (F, X, B))
    compute = Compute({}, 4, Workspace(F.dtype, F.device))
    fixed = SOLVER.fix(form, B, None, F.shape[1], penalty, compute)
    sums = torch.zeros(4, dtype=torch.float64)
    Xt = X.T.contiguous()
    data = NormalData(B @ Xt) if form == "normal" else ResidualData(Xt, torch.empty_like(Xt))
    half_steps_(F, data, fixed, compute, sums, 1)
    return F.numpy(), sums


def test_solution_is_the_nearest_one_in_both_forms():
    F, X, B = problem()
    expected = least_squares_half_step(F, X, B)
    for form in ("normal", "residual"):
        found, sums = solved(F, X, B, form)
        # the rounding of the slope, over the ridge
        assert relative_difference(found, expected) < 1e-5
        assert (found[1] == F[1]).all()
        assert np.isclose(float(sums[0]), np.square(found - F).sum())
        assert np.isclose(float(sums[1]), np.square(found).sum())
        if form == "residual":
            assert np.isclose(float(sums[2]), np.square(X - found.T @ B).sum())


def test_loss_does_not_rise_in_float32_where_concepts_depend_on_each_other():
    F, X, B = problem(dtype=np.float32)
    F = least_squares_half_step(F, X, B).astype(np.float32)
    loss = np.square(X - F.T @ B, dtype=np.float64).sum()
    for form in ("normal", "residual"):
        found, _ = solved(F, X, B, form)
        assert np.square(X - found.T @ B, dtype=np.float64).sum() <= loss * (1 + 1e-6)
        # the rounding of C, over the ridge
        assert relative_difference(found, F) < 3e-2


def test_l2_penalty_is_added_and_makes_a_dead_concept_zero():
    F, X, B = problem()
    expected = np.linalg.solve(B @ B.T + 0.5 * np.eye(len(B)), B @ X.T)
    for form in ("normal", "residual"):
        found, _ = solved(F, X, B, form, Penalty(l2=0.5))
        assert relative_difference(found, expected) < 1e-9
        assert np.abs(found[1]).max() < 1e-9


def test_solution_without_a_start_is_the_one_nearest_to_zero():
    _, X, B = problem()
    found = solution(torch.from_numpy(B @ X.T), torch.from_numpy(B @ B.T))
    expected = least_squares_half_step(np.zeros((len(B), len(X))), X, B)
    assert relative_difference(found.numpy(), expected) < 1e-5


def test_what_is_not_determined_does_not_grow_by_the_rounding_of_the_gram_matrix():
    """60 concepts of 20 features in float32: negative eigenvalues of G made F grow by a tenth in
    each half-step."""
    rng = np.random.default_rng(0)
    B, X, F = (rng.random(shape, np.float32) for shape in ((60, 20), (5, 20), (60, 5)))
    first = np.linalg.norm(F)
    for _ in range(200):
        F, _ = solved(F, X, B, "normal")
    assert np.linalg.norm(F) < 2 * first
    assert relative_difference(F.T @ B, X) < 1e-4
