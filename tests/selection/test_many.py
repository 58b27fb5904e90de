"""fit_many: the models of single fits; matrices that fail do not lose the others; threads and
generators are as they were."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch

from fastnmf import NMF, ConvergenceWarning, FitsFailed, InvalidInput, SemiNMF, fit_many

MATRICES = [
    torch.rand(20 + 5 * i, 12, generator=torch.Generator().manual_seed(i)) for i in range(5)
]


@pytest.fixture(params=[1, 3])
def threads(request):
    """Numbers of threads of torch; 3 make fits at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [NMF, SemiNMF])
def test_models_are_those_of_single_fits(threads, kind):
    models = fit_many(MATRICES, 4, model=kind, seed=3, max_iter=30, tol=0)
    assert torch.get_num_threads() == threads
    for A, model in zip(MATRICES, models, strict=True):
        single = kind(4, seed=3, max_iter=30, tol=0)
        single.fit(A)
        torch.testing.assert_close(model.D, single.D, rtol=1e-5, atol=1e-5)
        assert model.fit_info_.n == len(A)


def test_fits_at_a_time_have_one_thread_each(monkeypatch):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    fit = NMF.fit

    def watched(self, A, *given, **named):
        seen.append(torch.get_num_threads())
        return fit(self, A, *given, **named)

    monkeypatch.setattr(NMF, "fit", watched)
    try:
        fit_many(MATRICES, 3, seed=0, max_iter=2, tol=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * len(MATRICES)


def test_matrix_that_fails_is_named_and_loses_no_other(threads):
    bad = [*MATRICES[:2], torch.full((9, 12), torch.nan), MATRICES[2], "no such file.npy"]
    with pytest.raises(FitsFailed, match=r"2 of 5 fits failed: matrix 2: .*; matrix 4: ") as caught:
        fit_many(bad, 3, seed=0, max_iter=3, tol=0)
    failed = caught.value
    assert [model is None for model in failed.models] == [False, False, True, False, True]
    assert isinstance(failed.errors[2], InvalidInput)
    assert isinstance(failed.errors[4], FileNotFoundError)
    assert str(pickle.loads(pickle.dumps(failed))) == str(failed)
    returned = fit_many(bad, 3, seed=0, max_iter=3, tol=0, errors="return")
    assert torch.equal(returned[3].D, failed.models[3].D)
    assert isinstance(returned[2], InvalidInput)


def test_drawn_seeds_are_those_of_the_generator_in_any_threads(threads):
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(fit_many(MATRICES, 3, init="random", max_iter=3, tol=0))
    seeds = [[model.fit_info_.seed for model in models] for models in found]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(MATRICES)


def test_fits_that_end_at_their_limit_warn_once(threads):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_many(MATRICES, 3, seed=0, max_iter=2)
    (warning,) = caught
    assert issubclass(warning.category, ConvergenceWarning)
    assert str(warning.message).startswith("5 of 5 fits had not converged after max_iter=2")
    assert warning.filename == __file__


def test_bar_counts_fits(capsys):
    fit_many(MATRICES, 3, seed=0, max_iter=2, tol=0, verbose=True)
    assert "fit_many, 5 of 5 fits" in capsys.readouterr().err


def test_interrupt_begins_no_further_fit(monkeypatch, threads):
    begun = []

    def interrupted(self, A):
        begun.append(A)
        raise KeyboardInterrupt

    monkeypatch.setattr(NMF, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_many(MATRICES * 20, 3)
    # those that ran beside the first
    assert len(begun) <= threads
    assert torch.get_num_threads() == threads


def test_no_matrices_and_a_stack_of_them():
    assert fit_many([], 3) == []
    assert len(fit_many(torch.rand(2, 9, 5), 3, max_iter=2, tol=0)) == 2


def test_what_cannot_be_meant_is_refused_before_any_fit():
    one = MATRICES[0]
    for given in (one, one[0], one.tolist(), one.numpy(), "A.npy", Path("A.npy")):
        with pytest.raises(InvalidInput, match="is one matrix"):
            fit_many(given, 3)
    for given in (None, 5):
        with pytest.raises(TypeError, match=f"of type {type(given).__name__}; give"):
            fit_many(given, 3)
    with pytest.raises(InvalidInput, match=r"give list\(matrices.values\(\)\)"):
        fit_many({"one": MATRICES[0]}, 3)
    with pytest.raises(InvalidInput, match="errors='ignore'"):
        fit_many(MATRICES, 3, errors="ignore")
    with pytest.raises(InvalidInput, match="all fits would start alike"):
        fit_many(MATRICES, 3, init=(torch.ones(2, 3), torch.ones(3, 2)))
    with pytest.raises(TypeError, match="callback"):
        fit_many(MATRICES, 3, callback=print)
