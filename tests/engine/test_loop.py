"""The loop, its stopping rules, the State that it leaves and the history in it.

engine/loop.py, engine/history.py and engine/state.py; iteration.py and statistics.py are tested by
every fit, above all in tests/solvers/test_iterates.py and tests/test_distributed.py; codes.py in
tests/fit/test_encode.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fits import SOLVERS_AND_FORMS, digits, nmf, rows_of_five_concepts, run_loop
from oracle import objective, problem

from fastnmf import NMF, ConvergenceWarning
from fastnmf.engine.state import WINDOW, Stopping
from fastnmf.planning.plan import Plan


def few(K=5, n=40, d=17):
    return [torch.tensor(M) for M in problem(n, d, K)]


def plain(form="normal", tile_rows=23):
    return Plan(form, form, 16, tile_rows, 0.0)


@pytest.mark.parametrize(("solver", "form"), SOLVERS_AND_FORMS)
def test_history_has_the_change_and_the_error_of_each_iteration(solver, form):
    A, Z, D = few()
    seen = [(Z.clone(), D.clone())]

    def each(_):
        seen.append((Z.clone(), D.clone()))

    state = run_loop(A, (Z, D), solver, plain(form), Stopping(4, 0, each))
    assert [one.iteration for one in state.history] == [1, 2, 3, 4]
    # mu and pgd report the error of the dictionary before in residual form
    late = form == "residual" and solver in ("mu", "pgd")
    for one, (Z0, D0), (Z1, D1) in zip(state.history, seen, seen[1:], strict=False):
        change = max((Z1 - Z0).norm() / Z1.norm(), (D1 - D0).norm() / D1.norm())
        error = (A - Z1 @ (D0 if late else D1)).norm()
        assert one.relative_change == pytest.approx(float(change), rel=1e-9)
        assert one.relative_error == pytest.approx(float(error / A.norm()), rel=1e-6)
        assert one.relative_objective == one.relative_error


def test_relative_objective_has_twice_the_penalties():
    A, _, _ = few()
    model = NMF(5, seed=0, tol=0, max_iter=6, alpha_Z=0.01, l1_ratio=0.5)
    Z, D = model.fit(A)
    expected = (2 * objective(A.numpy(), Z.numpy(), D.numpy(), 0.01, 0.01, 0.5)) ** 0.5
    reported = model.fit_info_.history[-1].relative_objective
    assert reported == pytest.approx(expected / float(A.norm()), rel=1e-9)


def test_iterations_that_no_rule_reads_are_read_at_the_end_to_the_same_numbers():
    A, Z, D = few()
    watched, unwatched = (
        run_loop(A, (Z.clone(), D.clone()), "hals", plain(), Stopping(9, 0, each))
        for each in (lambda _: False, None)
    )
    histories = [
        [dataclasses.replace(one, seconds=0.0) for one in state.history]
        for state in (watched, unwatched)
    ]
    assert histories[0] == histories[1]


def test_callback_that_answers_true_ends_the_fit():
    A, Z, D = few()
    state = run_loop(A, (Z, D), "hals", plain(), Stopping(9, 0, lambda one: one.iteration == 3))
    assert (state.stopped_by, len(state.history)) == ("callback", 3)


def test_no_iterations_leave_the_start():
    A, Z, D = few()
    before = Z.clone(), D.clone()
    state = run_loop(A, (Z, D), "hals", plain(), Stopping(0, 0))
    assert (state.stopped_by, state.history) == ("max_iter", [])
    assert torch.equal(Z, before[0])
    assert torch.equal(D, before[1])


def test_factors_that_overflow_are_an_error():
    A, Z, D = (M.float() for M in few())
    with pytest.raises(
        ArithmeticError, match="overflowed in iteration 1: A, or a start or penalty"
    ):
        run_loop(A * 1e30, (Z, D), "hals", plain(), Stopping(3, 0, lambda _: False))


def test_residual_is_computed_anew_to_the_same_error():
    """One that is carried over more than REFRESH iterations is replaced."""
    A, Z, D = few()
    normal, residual = (
        run_loop(A, (Z.clone(), D.clone()), "hals", plain(form), Stopping(20, 0))
        for form in ("normal", "residual")
    )
    assert residual.iterations_since_fresh == 20 % residual.refresh
    errors = [[one.relative_error for one in state.history] for state in (normal, residual)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    E = A - residual.codes @ residual.D
    assert torch.allclose(residual.E, E, atol=1e-12)


def test_stop_codes_ends_at_the_first_change_of_no_more_than_tol():
    model = NMF(5, seed=0, tol=1e-3, max_iter=2000)
    model.fit(rows_of_five_concepts(200))
    changes = [one.relative_change for one in model.fit_info_.history]
    assert model.fit_info_.stopped_by == "tol"
    assert model.fit_info_.converged
    assert changes[-1] <= 1e-3 < min(changes[:-1])


def test_stop_error_ends_when_the_error_falls_no_more():
    model = NMF(10, seed=0, stop="error", tol=1e-3, max_iter=2000)
    model.fit(digits(torch.float32))
    info = model.fit_info_
    assert info.stopped_by == "error"
    assert info.converged
    assert WINDOW < info.iterations < 2000
    assert "the error falls by less than tol" in str(info)
    errors = [iteration.relative_error for iteration in info.history]
    assert errors[-11] - errors[-1] <= 1e-3 * errors[-11]
    assert errors[-12] - errors[-2] > 1e-3 * errors[-12]


def test_stop_error_with_no_tolerance_goes_on():
    model = NMF(3, seed=0, stop="error", tol=0, max_iter=25)
    model.fit(torch.rand(20, 8))
    assert model.fit_info_.iterations == 25


def test_max_seconds_ends_a_fit_and_warns():
    A = torch.tensor(np.random.default_rng(0).random((600, 100)), dtype=torch.float32)
    model = NMF(30, seed=0, tol=1e-9, max_iter=10**6)
    with pytest.warns(ConvergenceWarning, match="raise max_seconds or tol"):
        model.fit(A, max_seconds=0.1)
    info = model.fit_info_
    assert info.stopped_by == "max_seconds"
    assert not info.converged
    assert 0.1 <= info.seconds < 3
    assert "max_seconds reached" in str(info)


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_tiles_do_not_change_the_iterates(form):
    A, _, _ = few()
    options = {"seed": 0, "tol": 0, "max_iter": 8, "init": "random", "form": form}
    whole, tiled = (nmf(5, chunk_rows=rows, **options).fit(A) for rows in (None, 7))
    for F, its in zip(whole, tiled, strict=True):
        assert torch.allclose(F, its, rtol=1e-9, atol=1e-12)
