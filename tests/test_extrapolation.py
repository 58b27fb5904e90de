"""Acceleration: extrapolated factors and inner half-steps reach less error for the same work."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from half_steps import BACKEND_NAMES, dtype_name, strided
from oracle import SHAPES, WIDE, problem

from fastnmf import NMF, Tuning
from fastnmf.backends.registry import BACKENDS, select
from fastnmf.backends.torch import REFERENCE
from fastnmf.data.arrays import Rows
from fastnmf.engine.acceleration import Extrapolation
from fastnmf.engine.loop import factorize_
from fastnmf.init.start import start
from fastnmf.planning.plan import Plan, accelerated, choose
from fastnmf.solvers import half_step as sweeps
from fastnmf.solvers.registry import SOLVERS


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return datasets.load_digits().data


def gaussian():
    return np.random.default_rng(0).standard_normal((600, 100)).clip(min=0)


def low_rank():
    rng = np.random.default_rng(1)
    return rng.random((500, 20)) ** 4 @ rng.random((20, 80)) ** 4 + 0.05 * rng.random((500, 80))


def error(A, Z, D):
    return float((A - Z @ D).double().norm() / A.double().norm())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("init", ["nndsvda", "random"])
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
@pytest.mark.parametrize("data", [digits, gaussian, low_rank])
def test_no_higher_error_than_the_plain_loop_for_the_same_flops(data, solver, init, seed):
    A = torch.tensor(data(), dtype=torch.float32)
    (n, d), K = A.shape, 25
    _, ops = select(solver, A.device, "auto")
    plain = choose(n, d, K, 4, solver, form="normal")
    quick = accelerated(plain, n, d, K, 4, solver)
    assert quick.flops > plain.flops

    def after(chosen, iterations):
        Z, D = start(A, K, init, torch.Generator().manual_seed(seed))
        options = {"solver": solver, "ops": ops, "plan": chosen, "tol": 0}
        outcome = factorize_(Z, D, Rows(A), max_iter=iterations, **options)
        # the pair that is returned is the one whose error was told
        told = outcome.history[-1].relative_error
        assert told**2 == pytest.approx(error(A, Z, D) ** 2, abs=1e-6)
        return error(A, Z, D)

    # they may end in different local minima
    expected = after(plain, round(40 * quick.flops / plain.flops))
    assert after(quick, 40) <= 1.01 * expected


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize(("n", "d", "K"), SHAPES + WIDE, ids=str)
def test_every_solver_and_form_can_be_accelerated(n, d, K, dtype, solver, form):
    kind = "zero_rows" if n > 1 else "plain"
    A = torch.tensor(problem(n, d, K, kind=kind)[0], dtype=dtype)
    options = {"solver": solver, "form": form, "seed": 0, "tol": 0, "init": "random"}
    model = NMF(K, accelerate=True, **options)
    Z, D = model.fit(A, max_iter=20)
    assert model.fit_info_.accelerated
    for F in (Z, D):
        assert F.dtype == dtype
        assert F.isfinite().all()
        assert (F >= 0).all()
    assert (Z[(A == 0).all(1)] < 1e-3).all()
    plain = NMF(K, accelerate=False, **options).fit(A, max_iter=10)
    left = [float((A - Z @ D).norm()) for Z, D in ((Z, D), plain)]
    assert left[0] <= 1.02 * left[1] + 1e-3 * float(A.norm())
    assert len(model.fit_info_.history) == 20


def test_auto_accelerates_where_neither_start_nor_form_is_given():
    A, Z0, D0 = (torch.tensor(M, dtype=torch.float32) for M in problem(50, 20, 5))

    def info(**options):
        model = NMF(**{"nb_concepts": 5, **options}, max_iter=3, tol=0, seed=0)
        model.fit(A)
        return model.fit_info_

    drawn = info()
    assert drawn.accelerated
    assert min(drawn.inner_half_steps) > 1
    assert "half-steps an iteration" in str(drawn)
    for options in (
        {"init": (Z0, D0)},
        {"form": "residual"},
        {"solver": "anls"},
        {"accelerate": False},
        {"nb_concepts": 21},
    ):
        told = info(**options)
        assert not told.accelerated
        assert told.inner_half_steps == (1, 1)
        assert "half-steps an iteration" not in str(told)
    assert info(accelerate=True, init=(Z0, D0), form="residual").accelerated


def test_same_seed_gives_the_same_bits_and_pieces_do_not_matter():
    A = torch.tensor(gaussian(), dtype=torch.float64)
    options = {"seed": 3, "tol": 0, "max_iter": 20}
    (Z, D), (Z1, D1) = (NMF(9, **options).fit(A) for _ in range(2))
    assert torch.equal(Z, Z1)
    assert torch.equal(D, D1)
    Z2, D2 = NMF(9, tuning=Tuning(chunk_rows=70), **options).fit(A)
    assert torch.allclose(D, D2, rtol=1e-6, atol=1e-9)
    assert torch.allclose(Z, Z2, rtol=1e-6, atol=1e-9)


def test_concepts_keep_their_size_however_long_a_fit_goes_on():
    """Without that, one of these overflows in float32 after some 360 iterations."""
    A = torch.relu(torch.randn(500, 100, generator=torch.Generator().manual_seed(0)))
    _, ops = select("hals", A.device, "auto")
    chosen = dataclasses.replace(choose(500, 100, 20, 4, "hals", form="normal"), accelerates=True)
    Z, D = start(A, 20, "auto", torch.Generator().manual_seed(0))
    before = D.norm(dim=1)
    factorize_(Z, D, Rows(A), solver="hals", ops=ops, plan=chosen, max_iter=600, tol=0)
    grown = D.norm(dim=1) / before
    assert 0.98 < grown.min()
    assert grown.max() < 1.02


SUPPLIERS = [name for name in BACKEND_NAMES if "extrapolate_" in BACKENDS[name].operations]
LAYOUTS = {
    "concepts": torch.clone,
    "rows": lambda M: M.T.contiguous().clone().T,
    "strided": strided,
    "strided rows": lambda M: strided(M.T).T,
}


@pytest.mark.parametrize("backend", SUPPLIERS)
@pytest.mark.parametrize("step", [0.0, 0.7])
@pytest.mark.parametrize("least", [0.0, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize(("K", "m"), [(1, 1), (1, 33), (7, 1), (5, 0), (37, 101), (130, 300)])
def test_extrapolate_moves_on_and_measures_the_way(backend, K, m, dtype, layout, least, step):
    generator = torch.Generator().manual_seed(K + m)
    known = torch.rand(3, K, m, generator=generator, dtype=torch.float64) - 0.3
    known = known.clamp_(min=0).to(dtype)
    known[:, :, : m // 5] = 0
    F, swept, before = map(LAYOUTS[layout], known)
    β, sums = torch.tensor(step, dtype=dtype), torch.tensor([1.0, 2.0], dtype=torch.float64)
    _, ops = select("hals", F.device, backend)
    ops["extrapolate_"](F, swept, β, least, before, sums)
    now, former, begun = known.double()
    expected = torch.maximum(least * now, now + float(β) * (now - former))
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    assert torch.allclose(F.double(), expected, **tolerance)
    assert torch.equal(swept, known[0])
    assert torch.equal(before, known[2])
    totals = [1 + float((expected - begun).square().sum()), 2 + float(expected.square().sum())]
    assert sums.tolist() == pytest.approx(totals, rel=1e-12 if dtype == torch.float64 else 1e-5)
    if step == 0:
        assert torch.equal(F, known[0])
    # where nothing is measured
    F, swept = known[0].clone(), known[1].clone()
    ops["extrapolate_"](F, swept, β, least)
    assert torch.allclose(F.double(), expected, **tolerance)


# solver, form, concepts, and rows from which on a sweep takes the product with the data itself
CASES = [(by, form, 9, 1 << 30) for by in ("hals", "mu", "pgd") for form in ("normal", "residual")]
CASES += [("hals", "normal", 9, 0), ("hals", "normal", 140, 0)]


@pytest.mark.parametrize("backend", SUPPLIERS)
@pytest.mark.parametrize("piece_rows", [200, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize(("solver", "form", "K", "least_rows"), CASES)
def test_change_told_is_that_of_the_whole_iteration(
    solver, form, K, least_rows, dtype, piece_rows, backend, monkeypatch
):
    """Of codes moved on, balanced or not, taken back or not, wherever it is measured."""
    monkeypatch.setattr(sweeps, "LEAST_ROWS", least_rows)
    balanced, balance_ = [], Extrapolation._balance_
    taken, take_back_ = [], Extrapolation.take_back_

    def watched(self, *given):
        balanced.append(balance_(self, *given))
        return balanced[-1]

    def taking(self, Z, D):
        taken.append(True)
        take_back_(self, Z, D)

    monkeypatch.setattr(Extrapolation, "_balance_", watched)
    monkeypatch.setattr(Extrapolation, "take_back_", taking)
    A = torch.tensor(low_rank(), dtype=dtype)[:200, :70]
    A[3:9] = 0
    Z, D = start(A, K, "random", torch.Generator().manual_seed(1))
    _, ops = select(solver, A.device, backend)
    chosen = Plan(form, form, 160, piece_rows, 0.0, accelerates=True, inner=(2, 2))
    before, expected = [Z.clone()], []

    def each(iteration):
        delta, norm = (Z - before[0]).double().norm(), Z.double().norm()
        expected.append(float(delta / norm))
        before[0] = Z.clone()

    options = {"solver": solver, "ops": ops, "plan": chosen, "max_iter": 40, "tol": 0}
    outcome = factorize_(Z, D, Rows(A), each=each, **options)
    told = [iteration.relative_change for iteration in outcome.history]
    assert told == pytest.approx(expected, rel=2e-5 if dtype == torch.float32 else 1e-11)
    assert set(balanced) == {True, False}
    if solver == "hals" and form == "normal":
        assert taken


def ahead_of(Z, D):
    return Extrapolation(Z, D, 0.0, 4, REFERENCE)


def factors():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(*shape, generator=generator) for shape in ((7, 3), (3, 5))]


def test_concepts_have_the_norm_of_their_start_after_an_iteration():
    Z, D = factors()
    ahead = ahead_of(Z, D)
    norms = D.norm(dim=1)
    D[0] *= 37
    D[2] = 0
    product = Z @ D
    ahead.begin_(D.clone())
    ahead.keep_codes_(Z, slice(0, 7))
    ahead.end_(Z, D, torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(Z @ D, product)
    assert torch.allclose(D.norm(dim=1)[:2], norms[:2])
    assert (D[2] == 0).all()


def test_error_that_rises_takes_the_pair_back():
    Z, D = factors()
    ahead = ahead_of(Z, D)
    sums = torch.zeros(4, dtype=torch.float64)

    def step(error):
        """(codes as they were swept, the pair that an iteration ends with, whether it rose)."""
        for rows in (slice(0, 4), slice(4, 7)):
            ahead.keep_codes_(Z[rows], rows)
        Z.mul_(0.9)
        swept = Z.clone()
        for rows in (slice(0, 4), slice(4, 7)):
            ahead.move_codes_(Z[rows], rows)
        # another direction, as long as before
        D.copy_(D.flip(0) / D.flip(0).norm(dim=1, keepdim=True) * D.norm(dim=1, keepdim=True))
        ahead.end_(Z, D, sums)
        return swept, (Z.clone(), D.clone()), ahead.rose(error)

    def squares(F):
        return pytest.approx(float(F.double().square().sum()), rel=1e-5)

    ahead.set_out()
    ahead.begin_(D)
    before, start = Z.clone(), D.clone()
    swept, first, rose = step(0.5)
    assert not rose
    assert torch.allclose(Z, swept + 0.5 * (swept - before))
    assert float(sums[0]) == squares(Z - before)
    assert float(sums[1]) == squares(Z)
    ahead.set_out()
    ahead.begin_(D)
    moved = first[1] + 0.525 * (first[1] - start)
    assert torch.allclose(D, moved.clamp(min=0))
    _, _, rose = step(0.6)
    assert rose
    ahead.take_back_(Z, D)
    assert torch.equal(Z, first[0])
    assert torch.equal(D, first[1])
    ahead.begin_(D)
    assert torch.equal(D, first[1])
    swept, _, rose = step(0.45)
    assert not rose
    assert torch.equal(Z, swept)
    assert float(sums[0]) == squares(Z - first[0])


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_error_never_rises(solver, form):
    A = torch.tensor(low_rank(), dtype=torch.float64)
    model = NMF(
        12, solver=solver, accelerate=True, seed=0, tol=0, max_iter=60, tuning=Tuning(form=form)
    )
    Z, D = model.fit(A)
    errors = [iteration.relative_error for iteration in model.fit_info_.history]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(error(A, Z, D), rel=1e-9)


@pytest.mark.parametrize("value", ["yes", None, 2, "True"])
def test_unknown_acceleration_is_refused(value):
    with pytest.raises(ValueError, match="'auto', True or False"):
        NMF(3, accelerate=value)


def test_zero_data_give_zero_factors():
    Z, D = NMF(3, seed=0).fit(torch.zeros(6, 4))
    assert not Z.any()
    assert not D.any()


def test_stop_error_ends_when_the_error_falls_no_more():
    A = torch.tensor(digits(), dtype=torch.float32)
    model = NMF(10, seed=0, stop="error", tol=1e-3, max_iter=2000)
    model.fit(A)
    info = model.fit_info_
    assert info.stopped_by == "error"
    assert info.converged
    assert 10 < info.iterations < 2000
    assert "the error falls no more" in str(info)
    errors = [iteration.relative_error for iteration in info.history]
    assert errors[-11] - errors[-1] <= 1e-3 * errors[-11]
    assert errors[-12] - errors[-2] > 1e-3 * errors[-12]


def test_stop_error_with_no_tolerance_goes_on():
    model = NMF(3, seed=0, stop="error", tol=0, max_iter=25)
    model.fit(torch.rand(20, 8))
    assert model.fit_info_.iterations == 25


def test_max_seconds_ends_a_fit_and_warns(caplog):
    A = torch.tensor(gaussian(), dtype=torch.float32)
    model = NMF(30, seed=0, tol=1e-9, max_iter=10**6, max_seconds=0.3)
    model.fit(A)
    info = model.fit_info_
    assert info.stopped_by == "max_seconds"
    assert not info.converged
    assert 0.3 <= info.seconds < 3
    assert "max_seconds" in caplog.text
    assert "max_seconds reached" in str(info)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_max_seconds_must_be_more_than_nothing(value):
    with pytest.raises(ValueError, match="more than 0"):
        NMF(3, max_seconds=value)


def test_unknown_stopping_rule_is_refused():
    with pytest.raises(ValueError, match="codes, error"):
        NMF(3, stop="loss")
