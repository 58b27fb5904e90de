"""Codes for a fixed dictionary by sweeps: extrapolation that never raises the loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hard_data import similar_concepts
from oracle import problem

from fastnmf import NMF, Tuning, nnls
from fastnmf.engine import acceleration
from fastnmf.engine.acceleration import LineSearch, normal_line


def loss(A, Z, D):
    return float((A.double() - Z.double() @ D.double()).square().sum())


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_loss_of_codes_never_rises_with_max_iter(seed, dtype, form):
    A, D = similar_concepts(seed, dtype)
    model = NMF(len(D), tuning=Tuning(form=form)).load_dictionary(D)
    losses = [
        loss(A, model.encode(A, max_iter=i, tol=0, method="sweeps"), D)
        for i in (1, 5, 9, 10, 20, 60, 200)
    ]
    # of the difference of large numbers that the half-steps lower
    rounding = 4 * torch.finfo(dtype).eps * float(A.double().square().sum())
    assert all(b <= a + rounding for a, b in itertools.pairwise(losses))
    assert losses[-1] >= loss(A, nnls(A.double(), D.double()), D.double()) - rounding


@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_codes_approach_the_optimum_where_momentum_swung():
    torch.manual_seed(0)
    D = torch.rand(50, 256)
    A = torch.rand(500, 50) @ D + 0.1 * torch.rand(500, 256)
    model = NMF(50).load_dictionary(D)
    errors = [
        (loss(A, model.encode(A, max_iter=i, method="sweeps"), D) ** 0.5) / float(A.norm())
        for i in (100, 300, 1000, 3000)
    ]
    assert errors == sorted(errors, reverse=True)
    # the exact codes have 0.0021
    assert errors[1] < 0.0035
    assert errors[3] < 0.00212


def test_line_search_stops_at_the_minimum_or_the_boundary(monkeypatch):
    monkeypatch.setattr(acceleration, "_FIRST", 2)
    A, Z, D = problem(6, 9, 3)
    A, F, D = torch.tensor(A), torch.tensor(Z).T.clone(), torch.tensor(D)
    F[1, 2] = 0
    C, G = D @ A.T, D @ D.T
    search, line = LineSearch(), normal_line(C, G)
    assert search.extrapolate(F, line) is F
    assert search.extrapolate(F, line) is F
    moved = F + 0.01 * torch.tensor(np.random.default_rng(0).normal(size=F.shape))
    moved[1, 2] = 0
    Y = search.extrapolate(moved.clamp(min=0), line)
    assert (Y >= 0).all()

    def losses(F):
        return (A - F.T @ D).square().sum(1)

    assert (losses(Y) <= losses(moved.clamp(min=0)) + 1e-12).all()
    step = moved.clamp(min=0) - F
    for further in (0.9, 1.1):
        # along the line, inside the bounds, no point is lower
        beside = moved.clamp(min=0) + further * search.length * step
        feasible = (beside >= 0).all(0)
        assert (losses(beside)[feasible] >= losses(Y)[feasible] - 1e-12).all()
