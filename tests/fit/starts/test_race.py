"""Several starts of one fit: which goes on, what the summary says, and that checkpoints, limits of
time and iterations, and seeds mean what they mean for one start."""

from __future__ import annotations

import pytest
import torch
from fits import rows_of_five_concepts

from fastnmf import NMF, ConvexNMF, SemiNMF
from fastnmf.engine.state import Iteration, State, Stopping
from fastnmf.fit.starts.race import Race


def falling_to(levels, notes=None):
    """A race whose run of start i has the objective levels[i] + 0.5 ** iteration, and its runs: the
    numbers of starts in order."""
    runs = []

    def make(number):
        state = State(None, None)
        state.revived = number
        return state

    def run_(state, stopping):
        number = state.revived
        runs.append(number)
        for iteration in range(len(state.history) + 1, stopping.max_iter + 1):
            error = levels[number] + 0.5**iteration
            state.history.append(Iteration(iteration, 1.0, error, 0.0, relative_objective=error))
            if stopping.each is not None and stopping.each(state.history[-1]):
                state.stopped_by = "callback"
                return

    note = (lambda text: None) if notes is None else notes.append
    return Race(make, run_, Stopping(500, 0.0), note), runs


def test_better_half_goes_on_twice_as_long_until_one_is_left():
    race, runs = falling_to([0.5, 0.4, 0.2, 0.3, 0.6])
    best = race.best_of(5)
    assert runs == [0, 1, 2, 3, 4, 2, 3]
    assert best.starts.best == 2
    assert best.stopped_by == "max_iter"
    # the first of 0.5 ** 11 falls by less than 1e-3 of 0.5
    assert len(best.history) == 22
    assert best.starts.iterations == 5 * 11 + 2 * 11
    assert best.starts.errors[2] == min(best.starts.errors)


def test_first_runs_are_as_long_as_the_error_falls_fast():
    race, _ = falling_to([1e-6, 2e-6])
    # 0.5 ** 20 is about 1e-6
    assert 20 < len(race.best_of(2).history) < 40


def test_equal_starts_leave_the_first():
    race, _ = falling_to([0.3, 0.3, 0.3])
    assert race.best_of(3).starts.best == 0


def test_starts_that_are_not_reached_in_time_are_not_chosen():
    race, runs = falling_to([0.3, 0.1])
    stopping = Stopping(500, 0.0, deadline=0.0)
    best = Race(race.make, race.run_, stopping, race.note).best_of(2)
    assert runs == [0]
    assert best.starts.errors[1] == float("inf")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NMF, {}),
        # K > d, in residual form, whose residual is not kept between runs
        (NMF, {"nb_concepts": 12}),
        (NMF, {"solver": "mu"}),
        (NMF, {"alpha_Z": 1e-3, "l1_ratio": 1.0, "unit_norm": True}),
        (NMF, {"init": "spread", "revive": True}),
        (SemiNMF, {"offset": True}),
        (ConvexNMF, {}),
    ],
)
def test_fit_is_of_the_best_start_with_the_same_bits_for_a_seed(kind, options):
    A = rows_of_five_concepts()
    given = {"nb_concepts": 5, "n_init": 4, "seed": 3, "max_iter": 40, "tol": 0, **options}
    model, again = kind(**given), kind(**given)
    Z, D = model.fit(A)
    assert torch.equal(D, again.fit(A)[1])
    info = model.fit_info_
    assert (info.n_init, len(info.start_errors), info.iterations) == (4, 4, 40)
    assert info.start_errors[info.best_start] == min(info.start_errors)
    # from which the fit went on
    assert info.history[-1].relative_objective <= min(info.start_errors) * (1 + 1e-5)
    assert "starts:" in str(info)
    rebuilt = Z @ D + (0 if model.offset_ is None else model.offset_)
    error = (A - rebuilt).norm() / A.norm()
    assert float(error) == pytest.approx(info.relative_error, rel=1e-3)


def test_errors_of_starts_are_those_of_short_fits_from_their_seeds():
    A = rows_of_five_concepts()
    options = {"init": "random", "max_iter": 5, "tol": 0}
    several = NMF(5, n_init=3, seed=7, **options)
    several.fit(A)
    first = NMF(5, seed=7, **options)
    first.fit(A)
    # with max_iter=5 the first runs are all that there is
    found = several.fit_info_.start_errors[0]
    # that of a fit is measured anew at its end
    assert found == pytest.approx(first.fit_info_.relative_error, rel=1e-3)
    assert len(set(several.fit_info_.start_errors)) == 3


def test_auto_takes_its_start_once_and_random_ones_beside_it():
    A = rows_of_five_concepts()
    errors = {}
    for init in ("auto", "random"):
        model = NMF(5, init=init, n_init=2, seed=0, max_iter=3, tol=0)
        model.fit(A)
        errors[init] = model.fit_info_.start_errors
        assert model.fit_info_.init in ("nndsvda", "random")
    plain = NMF(5, seed=0, max_iter=3, tol=0)
    plain.fit(A)
    assert errors["auto"][0] == pytest.approx(plain.fit_info_.relative_error, rel=1e-3)
    assert errors["auto"][1] == errors["random"][1]


def test_resumed_fit_of_several_starts_has_the_bits_of_one_that_was_not_interrupted(tmp_path):
    A, path = rows_of_five_concepts(), tmp_path / "fit.safetensors"
    options = {"n_init": 4, "seed": 3, "max_iter": 60, "tol": 0}
    whole = NMF(5, **options)
    Z, D = whole.fit(A)
    left = NMF(5, tuning=_saving_always(), **options)
    left.fit(A, checkpoint=path, callback=lambda it: it.iteration >= 50)
    again = NMF(5, tuning=_saving_always(), **options)
    assert torch.equal(again.fit(A, checkpoint=path, resume=True)[0], Z)
    assert torch.equal(again.D, D)
    assert again.fit_info_.start_errors == whole.fit_info_.start_errors
    assert again.fit_info_.best_start == whole.fit_info_.best_start


def test_callback_is_called_for_the_run_that_goes_on():
    seen = []
    model = NMF(5, n_init=3, seed=0, max_iter=60, tol=0)
    model.fit(rows_of_five_concepts(), callback=lambda it: seen.append(it.iteration))
    assert seen == list(range(seen[0], 61))
    assert seen[0] > 10


def test_summary_of_several_starts_is_in_model_files(tmp_path):
    model = NMF(5, n_init=3, seed=0, max_iter=20, tol=0)
    model.fit(rows_of_five_concepts())
    model.save(tmp_path / "model.safetensors")
    assert NMF.load(tmp_path / "model.safetensors").fit_info_ == model.fit_info_


def _saving_always():
    from fastnmf import Tuning

    return Tuning(checkpoint_seconds=0)
