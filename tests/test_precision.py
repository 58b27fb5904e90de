"""Reduced precision: where it is let in, what bounds it, and that 'strict' keeps it out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from oracle import problem

from fastnmf import NMF, InvalidInput, engine, nnls, plan, sweeps
from fastnmf.engine import factorize_
from fastnmf.precision import products_in, round_tf32
from fastnmf.rows import Rows
from fastnmf.solvers import REFERENCE


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
        model = NMF(40, form="residual", precision=precision, max_iter=2, tol=0, seed=0)
        model.fit(torch.rand(23, 17))
        model.encode(torch.rand(5, 17), 2)
        assert seen == expected
    assert torch.get_float32_matmul_precision() == "high"


def test_unknown_precision_is_refused():
    with pytest.raises(InvalidInput, match="precision='fast'"):
        NMF(3, precision="fast")


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
