"""Acceleration: extrapolated factors and inner half-steps reach less error for the same work."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from fits import SOLVERS_AND_FORMS, digits, method, nmf, run_loop, start_of
from half_steps import BACKEND_NAMES, strided
from oracle import problem

from fastnmf import NMF, Tuning
from fastnmf.backends.registry import BACKENDS, select
from fastnmf.backends.torch import REFERENCE
from fastnmf.engine.acceleration import Extrapolation
from fastnmf.engine.state import Stopping
from fastnmf.planning.inner import accelerated
from fastnmf.planning.plan import Plan, Problem, choose
from fastnmf.solvers import half_step
from fastnmf.solvers.registry import SOLVERS


def gaussian(dtype):
    A = np.random.default_rng(0).standard_normal((600, 100)).clip(min=0)
    return torch.tensor(A, dtype=dtype)


def low_rank(dtype):
    rng = np.random.default_rng(1)
    A = rng.random((500, 20)) ** 4 @ rng.random((20, 80)) ** 4 + 0.05 * rng.random((500, 80))
    return torch.tensor(A, dtype=dtype)


def error(A, Z, D):
    return float((A - Z @ D).double().norm() / A.double().norm())


# each solver on data that it fits well and on data that it does not, from either start
COMPARED = [
    ("hals", digits, "nndsvda"),
    ("hals", gaussian, "random"),
    ("mu", low_rank, "nndsvda"),
    ("mu", gaussian, "random"),
    ("pgd", digits, "random"),
    ("pgd", low_rank, "nndsvda"),
]


@pytest.mark.parametrize(("solver", "data", "init"), COMPARED)
def test_no_higher_error_than_the_plain_loop_for_the_same_flops(solver, data, init):
    A = data(torch.float32)
    (n, d), K = A.shape, 25
    sizes = Problem(n, d, K, 4, SOLVERS[solver])
    plain = choose(sizes, tuning=Tuning(form="normal"))
    quick = accelerated(plain, sizes)
    assert quick.flops > plain.flops

    def after(plan, iterations):
        Z, D = start_of(A, K, init)
        by = method(solver, "auto")
        state = run_loop(A, (Z, D), solver, plan, Stopping(iterations, 0), by=by)
        # the pair that is returned is the one whose error was reported
        reported = state.history[-1].relative_error
        assert reported**2 == pytest.approx(error(A, Z, D) ** 2, abs=1e-6)
        return error(A, Z, D)

    # they may end in different local minima
    expected = after(plain, round(40 * quick.flops / plain.flops))
    assert after(quick, 40) <= 1.01 * expected


# every solver and form: many concepts in float32, sizes that no tile divides in float64
SHAPES = [(*case, 40, 13, 37, torch.float32) for case in SOLVERS_AND_FORMS]
SHAPES += [(*case, 23, 17, 5, torch.float64) for case in SOLVERS_AND_FORMS]
# one row, one feature, one concept; more concepts than rows; several blocks
SHAPES += [
    ("hals", form, *shape, torch.float32)
    for form in ("normal", "residual")
    for shape in ((1, 7, 3), (5, 1, 2), (9, 6, 1), (7, 33, 20), (65, 40, 131))
]


@pytest.mark.parametrize(("solver", "form", "n", "d", "K", "dtype"), SHAPES)
def test_every_solver_and_form_can_be_accelerated(solver, form, n, d, K, dtype):
    kind = "zero_rows" if n > 1 else "plain"
    A = torch.tensor(problem(n, d, K, kind=kind)[0], dtype=dtype)
    options = {"solver": solver, "form": form, "seed": 0, "tol": 0, "init": "random"}
    model = nmf(K, accelerate=True, **options)
    Z, D = model.fit(A, max_iter=20)
    assert model.fit_info_.accelerated
    for F in (Z, D):
        assert F.dtype == dtype
        assert F.isfinite().all()
        assert (F >= 0).all()
    assert (Z[(A == 0).all(1)] < 1e-3).all()
    plain = nmf(K, accelerate=False, **options).fit(A, max_iter=10)
    left = [float((A - Z @ D).norm()) for Z, D in ((Z, D), plain)]
    assert left[0] <= 1.02 * left[1] + 1e-3 * float(A.norm())
    assert len(model.fit_info_.history) == 20


def test_auto_accelerates_where_neither_start_nor_form_is_given():
    A, Z0, D0 = (torch.tensor(M, dtype=torch.float32) for M in problem(50, 20, 5))

    def info(**options):
        model = nmf(**{"nb_concepts": 5, **options}, max_iter=3, tol=0, seed=0)
        model.fit(A)
        return model.fit_info_

    drawn = info()
    assert drawn.accelerated
    assert min(drawn.inner_half_steps) > 1
    assert "half-steps per iteration" in str(drawn)
    for options in (
        {"init": (Z0, D0)},
        {"form": "residual"},
        {"solver": "anls"},
        {"accelerate": False},
        {"nb_concepts": 21},
    ):
        plain = info(**options)
        assert not plain.accelerated
        assert plain.inner_half_steps == (1, 1)
        assert "half-steps per iteration" not in str(plain)
    assert info(nb_concepts=20).accelerated
    assert info(accelerate=True, init=(Z0, D0), form="residual").accelerated


def test_same_seed_gives_the_same_bits_and_tiles_do_not_matter():
    A = gaussian(torch.float64)
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
    plan = choose(Problem(500, 100, 20, 4, SOLVERS["hals"]), tuning=Tuning(form="normal"))
    plan = dataclasses.replace(plan, accelerates=True)
    Z, D = start_of(A, 20, "auto")
    before = D.norm(dim=1)
    run_loop(A, (Z, D), "hals", plan, Stopping(600, 0), by=method("hals", "auto"))
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


# K, m, layout, dtype, least share, step: each layout in either dtype, extrapolated or not, entries
# of which a share is left or none; one row, one column, no column, more than one block
MOVES = [
    (37, 101, "concepts", torch.float32, 0.0, 0.7),
    (37, 101, "rows", torch.float32, 0.5, 0.7),
    (37, 101, "strided", torch.float64, 0.0, 0.7),
    (37, 101, "strided rows", torch.float64, 0.5, 0.7),
    (130, 300, "concepts", torch.float64, 0.5, 0.7),
    (130, 300, "rows", torch.float64, 0.0, 0.7),
    (130, 300, "strided", torch.float32, 0.5, 0.7),
    (130, 300, "strided rows", torch.float32, 0.0, 0.7),
    (37, 101, "concepts", torch.float32, 0.5, 0.0),
    (130, 300, "rows", torch.float64, 0.5, 0.0),
    (1, 1, "concepts", torch.float32, 0.0, 0.7),
    (1, 33, "rows", torch.float64, 0.0, 0.7),
    (7, 1, "strided", torch.float32, 0.5, 0.7),
    (5, 0, "rows", torch.float64, 0.0, 0.7),
]


@pytest.mark.parametrize("backend", SUPPLIERS)
@pytest.mark.parametrize(("K", "m", "layout", "dtype", "least", "step"), MOVES)
def test_extrapolate_moves_on_and_measures_the_way(K, m, layout, dtype, least, step, backend):
    generator = torch.Generator().manual_seed(K + m)
    known = torch.rand(3, K, m, generator=generator, dtype=torch.float64) - 0.3
    known = known.clamp_(min=0).to(dtype)
    known[:, :, : m // 5] = 0
    F, swept, before = map(LAYOUTS[layout], known)
    β, sums = torch.tensor(step, dtype=dtype), torch.tensor([1.0, 2.0], dtype=torch.float64)
    _, ops = select(SOLVERS["hals"].operations, F.device, backend)
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


# solver, form, concepts, rows from which on a sweep takes the product with the data itself, dtype
# and rows of a tile: all in one, or several
CASES = [
    ("hals", "normal", 9, 1 << 30, torch.float32, 70),
    ("hals", "residual", 9, 1 << 30, torch.float64, 70),
    ("mu", "normal", 9, 1 << 30, torch.float64, 70),
    ("mu", "residual", 9, 1 << 30, torch.float32, 200),
    ("pgd", "normal", 9, 1 << 30, torch.float32, 200),
    ("pgd", "residual", 9, 1 << 30, torch.float64, 70),
    ("hals", "normal", 9, 0, torch.float64, 70),
    ("hals", "normal", 9, 0, torch.float32, 200),
    ("hals", "normal", 140, 0, torch.float64, 70),
    ("hals", "normal", 140, 0, torch.float32, 70),
]


@pytest.mark.parametrize("backend", SUPPLIERS)
@pytest.mark.parametrize(("solver", "form", "K", "least_rows", "dtype", "tile_rows"), CASES)
def test_change_that_is_reported_is_that_of_the_whole_iteration(
    solver, form, K, least_rows, dtype, tile_rows, backend, monkeypatch
):
    """Of codes moved on, balanced or not, taken back or not, wherever it is measured."""
    monkeypatch.setattr(half_step, "LEAST_ROWS", least_rows)
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
    A = low_rank(dtype)[:200, :70]
    A[3:9] = 0
    Z, D = start_of(A, K, seed=1)
    plan = Plan(form, form, 160, tile_rows, 0.0, accelerates=True, inner=(2, 2))
    before, expected = [Z.clone(), D.clone()], []

    def each(iteration):
        moved = [
            float((F - old).double().norm() / F.double().norm())
            for F, old in zip((Z, D), before, strict=True)
        ]
        expected.append(max(moved))
        before[:] = Z.clone(), D.clone()

    by = method(solver, backend)
    state = run_loop(A, (Z, D), solver, plan, Stopping(40, 0, each), by=by)
    reported = [iteration.relative_change for iteration in state.history]
    assert reported == pytest.approx(expected, rel=2e-5 if dtype == torch.float32 else 1e-11)
    # where concepts did not grow it may not be called
    assert 0 < sum(balanced) < 40
    if solver == "hals" and form == "normal":
        assert taken


def extrapolation_of(Z, D):
    return Extrapolation(Z, D, 0.0, 4, REFERENCE)


def factors():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(*shape, generator=generator) for shape in ((7, 3), (3, 5))]


def test_concepts_have_the_norm_of_their_start_after_an_iteration():
    Z, D = factors()
    extrapolation = extrapolation_of(Z, D)
    norms = D.norm(dim=1)
    D[0] *= 37
    D[2] = 0
    product = Z @ D
    extrapolation.begin_(D.clone())
    extrapolation.keep_codes_(Z, slice(0, 7))
    extrapolation.end_(Z, D, *torch.zeros(2, 4, dtype=torch.float64))
    assert torch.allclose(Z @ D, product)
    assert torch.allclose(D.norm(dim=1)[:2], norms[:2])
    assert (D[2] == 0).all()


def test_error_that_rises_takes_the_pair_back():
    Z, D = factors()
    extrapolation = extrapolation_of(Z, D)
    sums, of_D = torch.zeros(2, 4, dtype=torch.float64)

    def step(error):
        """(codes as they were swept, the pair that an iteration ends with, whether it rose)."""
        for rows in (slice(0, 4), slice(4, 7)):
            extrapolation.keep_codes_(Z[rows], rows)
        Z.mul_(0.9)
        swept = Z.clone()
        for rows in (slice(0, 4), slice(4, 7)):
            extrapolation.move_codes_(Z[rows], rows)
        # another direction, as long as before
        D.copy_(D.flip(0) / D.flip(0).norm(dim=1, keepdim=True) * D.norm(dim=1, keepdim=True))
        extrapolation.end_(Z, D, sums, of_D)
        return swept, (Z.clone(), D.clone()), extrapolation.rose(error, 1e-6)

    def squares(F):
        return pytest.approx(float(F.double().square().sum()), rel=1e-5)

    extrapolation.set_out()
    extrapolation.begin_(D)
    before, start = Z.clone(), D.clone()
    swept, first, rose = step(0.5)
    assert not rose
    assert torch.allclose(Z, swept + 0.5 * (swept - before))
    assert float(sums[0]) == squares(Z - before)
    assert float(sums[1]) == squares(Z)
    assert float(of_D[0]) == squares(D - start)
    assert float(of_D[1]) == squares(D)
    extrapolation.set_out()
    extrapolation.begin_(D)
    moved = first[1] + 0.525 * (first[1] - start)
    assert torch.allclose(D, moved.clamp(min=0))
    _, _, rose = step(0.6)
    assert rose
    extrapolation.take_back_(Z, D)
    assert torch.equal(Z, first[0])
    assert torch.equal(D, first[1])
    extrapolation.begin_(D)
    assert torch.equal(D, first[1])
    swept, _, rose = step(0.45)
    assert not rose
    assert torch.equal(Z, swept)
    assert float(sums[0]) == squares(Z - first[0])


@pytest.mark.parametrize(("solver", "form"), SOLVERS_AND_FORMS)
def test_error_never_rises(solver, form):
    A = low_rank(torch.float64)
    options = {"solver": solver, "form": form, "accelerate": True}
    model = nmf(12, seed=0, tol=0, max_iter=60, **options)
    Z, D = model.fit(A)
    errors = [iteration.relative_error for iteration in model.fit_info_.history]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(error(A, Z, D), rel=1e-9)


def test_zero_data_give_zero_factors():
    Z, D = NMF(3, seed=0).fit(torch.zeros(6, 4))
    assert not Z.any()
    assert not D.any()
