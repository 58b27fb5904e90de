"""Errors that are reported, by all solvers and wherever the data are: those of the factors, in
float64, within 1 % or 1e-6, also where the normal form loses them; and acceleration by them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fits import SOLVERS_AND_FORMS, run_loop, start_of
from hard_data import DATA, true_error

from fastnmf import NMF, Tuning
from fastnmf.engine.state import Stopping
from fastnmf.planning.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")
DTYPES = ["float32", "float64"]


def near(error):
    return pytest.approx(error, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("solver", "form"), SOLVERS_AND_FORMS)
@pytest.mark.parametrize("name", DATA)
def test_reported_error_is_that_of_the_factors(name, solver, form, dtype):
    A, K = DATA[name]
    A = A.astype(dtype)
    for iterations in (1, 4, 40):
        seen = []
        model = NMF(K, solver=solver, seed=0, tol=0, max_iter=iterations, tuning=Tuning(form=form))
        Z, D = model.fit(A, callback=seen.append)
        error = true_error(A, Z, D)
        assert model.fit_info_.relative_error == near(error)
        assert model.fit_info_.history[-1].relative_error == near(error)
        if form == "normal" or solver in ("hals", "anls"):
            assert seen[-1].relative_error == near(error)


@pytest.mark.parametrize("options", [{"unit_norm": True}, {"alpha_Z": 1e-9}, {"revive": True}])
def test_reported_error_of_other_fits_is_that_of_the_factors(options):
    A, K = DATA["rank 6"]
    for iterations in (1, 4, 30):
        seen = []
        model = NMF(K, seed=0, tol=0, max_iter=iterations, **options)
        Z, D = model.fit(A.astype("float32"), callback=seen.append)
        error = true_error(A, Z, D)
        assert model.fit_info_.relative_error == near(error)
        assert seen[-1].relative_error == near(error)
        twice = 2 * model.fit_info_.objective / np.square(A).sum()
        assert seen[-1].relative_objective ** 2 == pytest.approx(twice, rel=0.02, abs=1e-6)


@pytest.mark.parametrize("codes", ["memory", "Z.npy"])
def test_reported_error_of_a_streamed_fit_is_that_of_the_factors(codes, tmp_path, small_budgets):
    A, K = DATA["rank 6"]
    A = np.tile(A, (20, 1)).astype("float32")
    A *= np.linspace(0.5, 2, len(A), dtype="float32")[:, None]
    np.save(tmp_path / "A.npy", A)
    into = codes if codes == "memory" else tmp_path / codes
    for iterations in (1, 4, 30):
        seen = []
        model = NMF(K, seed=0, tol=0, max_iter=iterations, max_memory="700kB")
        Z, D = model.fit(tmp_path / "A.npy", codes=into, callback=seen.append)
        assert model.fit_info_.passes > 1
        assert seen[-1].relative_error == near(true_error(A, Z, D))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
@pytest.mark.parametrize("name", DATA)
def test_error_of_an_accelerated_fit_does_not_rise(name, solver, dtype):
    A, K = DATA[name]
    A = torch.tensor(A.astype(dtype))
    Z, D = start_of(A, K)
    errors = []

    def each(_):
        errors.append(true_error(A, Z, D))

    plan = Plan("normal", "normal", 16, len(A), 0.0, accelerates=True, inner=(2, 2))
    run_loop(A, (Z, D), solver, plan, Stopping(100, 0, each))
    # in normal form, and what float32 can represent: at an offset of 1e6 factors in float32 have
    # errors of 3e-7 to 8e-7, in no order
    share, rounding = (1e-9, 1e-9) if dtype == "float64" else (2e-3, 1e-7)
    if dtype == "float32" and name == "offset 1e6":
        rounding = 8 * torch.finfo(torch.float32).eps
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + share) + rounding


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
@pytest.mark.parametrize("name", DATA)
def test_acceleration_ends_no_higher_than_the_plain_loop(name, solver, dtype):
    """At equal work: products with A, and half-steps, of which an iteration has two or one."""
    A, K = DATA[name]
    A, (n, d) = A.astype(dtype), A.shape
    model = NMF(K, solver=solver, seed=0, accelerate=True)
    pair = model.fit(A)
    products, half_steps = 4 * n * d * K, 2 * K * K * (n + d)
    share = (products + 2 * half_steps) / (products + half_steps)
    plain = {"solver": solver, "accelerate": False, "tol": 0}
    iterations = math.ceil(model.fit_info_.iterations * share)
    beside = true_error(A, *NMF(K, seed=0, max_iter=iterations, **plain).fit(A))
    # and what float32 can represent
    if (error := true_error(A, *pair)) > 1.001 * beside + 3e-8:
        # another minimum may be higher: that is where the plain loop ends from there
        beyond = true_error(A, *NMF(K, init=pair, max_iter=500, **plain).fit(A))
        assert error <= 1.001 * beyond + 3e-8


@pytest.mark.parametrize("options", [{}, {"alpha_Z": 100.0, "l1_ratio": 0.5, "unit_norm": True}])
def test_a_start_far_above_the_data_leaves_no_rounding_in_the_residual(options):
    generator = torch.Generator().manual_seed(1)
    Z0, D0, A = (torch.rand(*s, generator=generator) for s in ((23, 9), (9, 3), (23, 3)))
    A *= 1e-12
    for iterations in (1, 2, 5):
        seen = []
        tuning = Tuning(form="residual")
        model = NMF(9, init=(Z0, D0), tol=0, max_iter=iterations, tuning=tuning, **options)
        Z, D = model.fit(A, callback=seen.append)
        assert seen[-1].relative_error == near(true_error(A, Z, D))


def test_a_residual_that_was_large_leaves_no_rounding_in_later_iterations():
    """The first iteration of hals cannot leave the start, which is 1e12 times too large; the
    second does, by a residual that it updates."""
    generator = torch.Generator().manual_seed(1)
    Z0, D0 = torch.rand(35, 1, generator=generator), torch.rand(1, 1, generator=generator)
    A = 1e-12 * torch.rand(35, 1, generator=generator)
    for iterations in (1, 2, 3, 4):
        seen = []
        tuning = Tuning(form="residual")
        model = NMF(1, init=(Z0, D0), tol=0, max_iter=iterations, tuning=tuning)
        Z, D = model.fit(A, callback=seen.append)
        assert [one.relative_error for one in seen[iterations - 1 :]] == [near(true_error(A, Z, D))]
