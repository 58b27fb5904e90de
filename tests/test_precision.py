"""Reduced precision: where it is let in, what bounds it, and that 'strict' keeps it out."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import problem

from fastnmf import NMF, InvalidInput, Tuning, nnls
from fastnmf.backends.torch import REFERENCE
from fastnmf.data.arrays import Rows
from fastnmf.engine import iteration as engine
from fastnmf.engine.loop import factorize_
from fastnmf.init.start import start
from fastnmf.numerics import products_in, round_tf32
from fastnmf.planning import plan
from fastnmf.solvers import half_step as sweeps


@pytest.fixture
def asked_for_high():
    with products_in("high"):
        yield


def watched(seen):
    """The reference, noting the precision of products at every block sweep."""

    def hals_block_(*given):
        seen.add(torch.get_float32_matmul_precision())
        REFERENCE["hals_block_"](*given)

    return {**REFERENCE, "hals_block_": hals_block_}


@pytest.fixture
def in_coarse_products(monkeypatch):
    """The CPU behaves as a card whose tf32 products round: so do R and Δ, and the factor held."""

    def hals_block_(F, R, G, delta, sums):
        REFERENCE["hals_block_"](F, round_tf32(R, R), G, delta, sums)
        round_tf32(delta, delta)

    monkeypatch.setattr(sweeps, "in_tf32", lambda X: torch.get_float32_matmul_precision() == "high")
    return {**REFERENCE, "hals_block_": hals_block_}


def run(ops, n=60, d=20, K=35, **options):
    A, Z, D = (torch.tensor(M, dtype=torch.float32) for M in problem(n, d, K))
    chosen = plan.Plan("residual", "residual", 16, 25, 0.0)
    outcome = factorize_(Z, D, Rows(A), solver="hals", ops=ops, plan=chosen, **options)
    return A, Z, D, outcome


def test_extrapolation_is_not_taken_for_drift(in_coarse_products, asked_for_high):
    """A residual that factors have moved away from is not one that rounding has changed."""
    A, Z, D = (torch.tensor(M, dtype=torch.float32) for M in problem(60, 20, 35))
    chosen = plan.Plan("residual", "residual", 16, 25, 0.0, accelerates=True)
    ops = in_coarse_products
    outcome = factorize_(Z, D, Rows(A), solver="hals", ops=ops, plan=chosen, max_iter=12, tol=0)
    assert outcome.drift is None


def test_round_tf32_is_to_nearest():
    X = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    kept = X.clone()
    rounded = round_tf32(X, torch.empty_like(X))
    assert torch.equal(X, kept)
    exponent = torch.frexp(X.double()).exponent
    unit = torch.ldexp(torch.ones(1000, dtype=torch.float64), exponent - 11)
    assert torch.equal(
        rounded.double(), (X.double() / unit).abs().add(0.5).floor() * unit * X.sign()
    )


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_only_the_residual_form_uses_what_is_allowed(form, asked_for_high):
    A, Z, D = (torch.tensor(M, dtype=torch.float32) for M in problem(23, 17, 40))
    seen, chosen = set(), plan.Plan(form, form, 16, 11, 0.0)
    options = {"solver": "hals", "ops": watched(seen), "plan": chosen, "max_iter": 2, "tol": 0}
    factorize_(Z, D, Rows(A), **options)
    assert seen == {"high" if form == "residual" else "highest"}
    assert torch.get_float32_matmul_precision() == "high"


def test_strict_is_float32_everywhere(asked_for_high, monkeypatch):
    seen = set()
    monkeypatch.setattr("fastnmf.nmf.select", lambda *_: ("torch", watched(seen)))
    for precision, expected in (("strict", {"highest"}), ("auto", {"high"})):
        seen.clear()
        model = NMF(
            40, max_iter=2, tol=0, seed=0, tuning=Tuning(form="residual", precision=precision)
        )
        model.fit(torch.rand(23, 17))
        model.encode(torch.rand(5, 17), 2)
        assert seen == expected
    assert torch.get_float32_matmul_precision() == "high"


def test_unknown_precision_is_refused():
    with pytest.raises(InvalidInput, match="precision='fast'"):
        NMF(3, tuning=Tuning(precision="fast"))


def test_drift_is_measured_and_stays_small(in_coarse_products, asked_for_high):
    A, Z, D, outcome = run(in_coarse_products, max_iter=30, tol=0)
    with products_in("highest"):
        *_, exact = run(REFERENCE, max_iter=30, tol=0)
    assert 1e-7 < outcome.drift < 0.05
    error = np.linalg.norm(A - Z @ D) / np.linalg.norm(A)
    assert error < 1.1 * exact.history[-1].relative_error
    assert exact.drift is None


def test_large_drift_brings_the_refresh_forward(in_coarse_products, asked_for_high, monkeypatch):
    monkeypatch.setattr(engine, "_MOST_DRIFT", 1e-9)
    fresh = []
    monkeypatch.setattr(sweeps, "_refresh_", lambda *given: (fresh.append(1), refresh(*given)))
    run(in_coarse_products, max_iter=24, tol=0, each=lambda _: None)
    # three pieces of rows; the iterations 1, 9, 13, 15, and 17 to 24
    assert len(fresh) == 3 * (4 + 8)


refresh = sweeps._refresh_


def test_stop_is_decided_with_a_new_residual(in_coarse_products, asked_for_high, monkeypatch):
    fresh = []
    monkeypatch.setattr(sweeps, "_refresh_", lambda *given: (fresh.append(1), refresh(*given)))
    ended = []
    run(
        in_coarse_products,
        max_iter=50,
        tol=0.2,
        each=lambda iteration: ended.append((iteration.relative_change, len(fresh) // 3)),
    )
    assert ended[-1][0] <= 0.2
    # the last iteration began with a residual computed anew
    assert ended[-1][1] == ended[-2][1] + 1


def test_nnls_takes_no_products_in_tf32(monkeypatch):
    """Codes from a Gram matrix in tf32 would be off by 1e-3, and called exact."""
    seen = []

    def nnls_(F, C, G, sums, **asked):
        seen.append(torch.get_float32_matmul_precision())
        return REFERENCE["nnls_"](F, C, G, sums, **asked)

    room = sys.modules["fastnmf.nnls"]
    monkeypatch.setattr(room, "select", lambda *asked: ("torch", {"nnls_": nnls_}))
    with products_in("high"):
        nnls(torch.rand(9, 5), torch.rand(3, 5))
        assert torch.get_float32_matmul_precision() == "high"
    assert seen == ["highest"]


@pytest.fixture
def residuals_in_tf32(monkeypatch):
    """The CPU rounds what mu and pgd form their residual of, as where products are tf32; notes in
    which precision each was formed."""
    seen = []
    add_product_ = sweeps._add_product_

    def noted(E, B, F, sweep, **rest):
        seen.append(sweep.residual)
        return add_product_(E, B, F, sweep, **rest)

    monkeypatch.setattr(sweeps, "_add_product_", noted)
    monkeypatch.setattr(sweeps, "in_tf32", lambda X: torch.get_float32_matmul_precision() == "high")
    return seen


def by(solver, A, K, iterations, precision="high", form="residual", **options):
    """(Z, D, outcome) of a run from a drawn start."""
    A = torch.tensor(A, dtype=torch.float32)
    Z, D = start(A, K, "random", torch.Generator().manual_seed(0))
    chosen = plan.Plan(form, form, 16, 250, 0.0)
    options = {"solver": solver, "ops": REFERENCE, "plan": chosen, "tol": 0, **options}
    with products_in(precision):
        outcome = factorize_(Z, D, Rows(A), max_iter=iterations, **options)
    return Z, D, outcome


def data_of(kind):
    if kind == "digits":
        datasets = pytest.importorskip("sklearn.datasets", reason="no scikit-learn")
        return datasets.load_digits().data[:500] / 16
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((300, 8)), rng.standard_normal((8, 40))
    low = np.maximum(factors[0], 0) @ np.maximum(factors[1], 0)
    if kind == "exact":
        return low
    noise = rng.standard_normal((300, 40))
    return np.maximum(noise if kind == "noise" else low + noise, 0)


@pytest.mark.parametrize("solver", ["mu", "pgd"])
@pytest.mark.parametrize("kind", ["digits", "low rank and noise", "noise"])
def test_a_residual_in_tf32_costs_no_loss(kind, solver, residuals_in_tf32):
    A = data_of(kind)
    errors, codes = [], []
    for precision in ("highest", "high"):
        Z, D, _ = by(solver, A, 24, 200, precision)
        errors.append(np.linalg.norm(A - Z.double().numpy() @ D.double().numpy()) ** 2)
        codes.append(Z)
    assert errors[1] <= 1.001 * errors[0]
    assert not torch.equal(*codes)
    assert set(residuals_in_tf32) == {"highest", "high"}


@pytest.mark.parametrize("watched", [True, False])
def test_a_small_residual_is_formed_in_float32(watched, residuals_in_tf32, monkeypatch):
    """Rounding alone leaves an error of 2e-4."""
    each = {"each": lambda _: None} if watched else {}
    *_, outcome = by("pgd", data_of("exact"), 8, 400, **each)
    assert outcome.history[-1].relative_error < 1e-5
    assert len(outcome.history) == 400
    assert set(residuals_in_tf32[:10]) == {"high"}
    assert set(residuals_in_tf32[-10:]) == {"highest"}
    monkeypatch.setattr(engine, "_COARSE_DOWN_TO", 0)
    *_, outcome = by("pgd", data_of("exact"), 8, 400, **each)
    assert outcome.history[-1].relative_error > 1e-4


@pytest.mark.parametrize(("solver", "form"), [("mu", "normal"), ("pgd", "normal")])
def test_the_normal_form_has_no_residual_in_tf32(solver, form, residuals_in_tf32):
    given = [
        by(solver, data_of("noise"), 8, 3, precision, form) for precision in ("high", "highest")
    ]
    assert torch.equal(given[0][0], given[1][0])
    assert residuals_in_tf32 == []


def test_codes_of_a_known_dictionary_have_a_float32_residual(residuals_in_tf32):
    """Where nothing tells the error."""
    by("pgd", data_of("noise"), 8, 3, learn=False)
    assert set(residuals_in_tf32) == {"highest"}


def test_a_run_that_goes_on_takes_the_precision_it_had(residuals_in_tf32):
    A, states = data_of("exact"), []

    def keep(state):
        if len(state().history) == 300:
            kept = state()
            states.append(replace(kept, Z=kept.Z.clone(), D=kept.D.clone()))

    whole = by("pgd", A, 8, 310, keep=keep)
    (state,) = states
    A = torch.tensor(A, dtype=torch.float32)
    chosen = plan.Plan("residual", "residual", 16, 250, 0.0)
    options = {"solver": "pgd", "ops": REFERENCE, "plan": chosen, "tol": 0, "keep": keep}
    with products_in("high"):
        factorize_(state.Z, state.D, Rows(A), max_iter=310, resumed=state, **options)
    assert torch.equal(state.Z, whole[0])
    assert torch.equal(state.D, whole[1])
    assert state.history[-1].relative_error < engine._COARSE_DOWN_TO
