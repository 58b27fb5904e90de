"""Half-steps by imputation of what is missing."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch

from fastnmf import NMF, SemiNMF
from fastnmf.data.weights.entries import EntryWeights
from fastnmf.fit.weighted import plan

DRAWN = torch.Generator().manual_seed(1)
N, P, K = 40, 15, 3


def rand(*shape):
    return torch.rand(*shape, generator=DRAWN, dtype=torch.float64)


A, Z0, D0 = rand(N, K) @ rand(K, P) + 0.1 * rand(N, P), rand(N, K), rand(K, P)
MASK = rand(N, P) > 0.3
NUMBERS = torch.where(MASK, 1 + 2 * rand(N, P), 0)
HIDDEN = torch.where(MASK, A, torch.nan)
START = {"init": (Z0, D0), "tol": 0.0}


@pytest.fixture(autouse=True)
def imputes(monkeypatch):
    """Whatever the number of concepts and the share of what is observed."""
    monkeypatch.setattr(plan, "_LEAST_IMPUTED", 1)
    monkeypatch.setattr(plan, "_LEAST_SHARE", 0.1)


@pytest.mark.parametrize("weights", [MASK, NUMBERS], ids=["mask", "numbers"])
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_an_iteration_is_that_of_filled_data(weights, backend):
    nmf = NMF(K, accelerate=False, backend=backend, **START)
    Z, D = nmf.fit(HIDDEN, 1, weights=weights)
    info = nmf.fit_info_
    assert info.form == "imputed"
    F, E, W = Z0.numpy().T, D0.numpy(), weights.double().numpy() / float(weights.max())
    Y = F.T @ E + W * (A.numpy() - F.T @ E)
    for _ in range(info.inner_half_steps[0]):
        F = oracle.hals_half_step(F, Y, E)
    Y = F.T @ E + W * (A.numpy() - F.T @ E)
    for _ in range(info.inner_half_steps[1]):
        E = oracle.hals_half_step(E, Y.T, F)
    tolerance = oracle.TOLERANCES["hals", "float64"]
    assert np.allclose(Z.numpy().T, F, atol=tolerance)
    assert np.allclose(D.numpy(), E, atol=tolerance)
    error = ((weights * (A - Z @ D).square()).sum() / (weights * A.square()).sum()).sqrt()
    assert info.history[0].relative_error == pytest.approx(float(error), rel=1e-9)
    assert info.relative_error == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"accelerate": True},
        {"accelerate": False},
        {"alpha_Z": 0.02, "alpha_D": 0.01, "l1_ratio": 0.5},
        {"alpha_Z": 0.02, "l1_ratio": 1.0, "unit_norm": True},
    ],
)
@pytest.mark.parametrize("weights", [MASK, NUMBERS], ids=["mask", "numbers"])
def test_the_objective_falls_to_that_of_each_row_by_itself(weights, options, monkeypatch):
    imputed = NMF(K, **START, **options)
    Z, D = imputed.fit(HIDDEN, 300, weights=weights)
    objective = np.array([one.relative_objective for one in imputed.fit_info_.history])
    assert (np.diff(objective) <= 1e-12).all()
    monkeypatch.setattr(plan, "_LEAST_SHARE", 2.0)
    # one more iteration of the other way gains as little
    nmf = NMF(K, init=(Z, D), tol=0.0, **options)
    nmf.fit(HIDDEN, 1, weights=weights)
    assert nmf.fit_info_.form == "weighted"
    before, after = (one.fit_info_.objective for one in (imputed, nmf))
    assert before * (1 - 1e-3) < after <= before * (1 + 1e-12)


def test_it_ends_at_a_kkt_point():
    nmf = NMF(K, accelerate=True, **START)
    Z, D = nmf.fit(HIDDEN, 1500, weights=MASK)
    residual = torch.where(MASK, A - Z @ D, 0)
    for F, slope in ((Z, residual @ D.T), (D, Z.T @ residual)):
        assert float(slope.clamp(min=0).max()) < 1e-5
        assert float((slope.abs() * (F > 1e-9)).max()) < 1e-5


def test_a_dictionary_of_any_signs_is_learned():
    nmf = SemiNMF(K, init=(Z0, D0 - 0.5), tol=0)
    _, D = nmf.fit(HIDDEN - 0.5, 100, weights=MASK)
    errors = [one.relative_error for one in nmf.fit_info_.history]
    assert (np.diff(errors) <= 1e-12).all()
    assert bool((D < 0).any())
    assert nmf.fit_info_.form == "imputed"


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [("_LEAST_SHARE", 0.99, "weighted"), ("_LEAST_IMPUTED", K + 1, "weighted"), ("", 0, "imputed")],
)
def test_the_plan_imputes_where_enough_is_observed_of_every_row(name, value, form, monkeypatch):
    if name:
        monkeypatch.setattr(plan, name, value)
    nmf = NMF(K, **START)
    nmf.fit(HIDDEN, 1, weights=MASK)
    assert nmf.fit_info_.form == form
    many = NMF(P + 1, init="random", tol=0)
    many.fit(HIDDEN, 1, weights=MASK)
    assert many.fit_info_.form == "weighted"


def test_the_least_share_is_that_of_the_rarest_row_or_feature():
    W = torch.ones(4, 10)
    W[2, 3:] = 0
    assert EntryWeights(torch.ones(4, 10), 2 * W).least_share == pytest.approx(0.3)
    W = torch.ones(4, 10)
    W[:3, 5] = 0
    assert EntryWeights(torch.ones(4, 10), W > 0).least_share == pytest.approx(0.25)
