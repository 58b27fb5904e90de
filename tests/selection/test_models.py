import pytest
import torch

import fastnmf
from fastnmf import ConvergenceWarning, InvalidInput
from fastnmf.selection.models import Fits, bar, met_rule, warn_of_limits
from fastnmf.selection.runs import Run, Runs


def test_fits_say_what_the_summary_says():
    A = torch.rand(40, 10, generator=torch.Generator().manual_seed(0))
    fits = Fits.of(fastnmf.NMF, {"max_iter": 2})
    model, run = fits.fit(A, 3, 0)
    info = model.fit_info_
    assert torch.equal(run.D, model.D)
    assert run.numbers["relative_error"] == info.relative_error
    assert run.numbers["converged"] == 0
    with pytest.warns(ConvergenceWarning, match="1 of 1 fits .* max_iter=2 "):
        warn_of_limits([met_rule(model)], {"max_iter": 2})
    with pytest.warns(ConvergenceWarning, match="1 of 1 fits .* max_iter=0 "):
        warn_of_limits([False], {"max_iter": 0})
    with pytest.warns(ConvergenceWarning, match="max_iter=500 "):
        warn_of_limits([False], {"max_iter": None})
    _, run = Fits.of(fastnmf.NMF, {"max_iter": 2, "tol": 0}).fit(A, 3, 0)
    assert run.numbers["converged"] == 1


@pytest.mark.parametrize("option", ["seed", "nb_concepts", "distributed"])
def test_options_of_the_call_are_no_options_of_the_model(option):
    with pytest.raises(InvalidInput, match=f"{option}=1 is no option here"):
        Fits.of(fastnmf.NMF, {option: 1})


def test_options_that_need_several_concepts_are_taken():
    """top_k=2 was refused, since the options were checked with one concept."""
    A = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    options = {"folds": 2, "seed": 0, "max_iter": 5, "tol": 0, "top_k": 2}
    choice = fastnmf.choose_concepts(A, [2, 3], **options)
    assert all(each.mean_l0 <= 2 for each in choice.candidates)
    with pytest.raises(InvalidInput, match="top_k=2 must be at most nb_concepts=1"):
        fastnmf.choose_concepts(A, [1, 3], **options)
    with pytest.raises(InvalidInput, match="top_k=0 must be at least 1"):
        fastnmf.choose_concepts(A, [2, 3], **{**options, "top_k": 0})


@pytest.mark.filterwarnings("ignore:R² is")
@pytest.mark.parametrize("target", [1, 1.5, 2.0])
def test_a_number_of_active_concepts_is_taken(target):
    """target_l0=1.5 was refused, for the same reason."""
    A = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    options = {"seed": 0, "max_iter": 2, "tol": 0, "target_l0": target}
    assert len(fastnmf.fit_many([A], 3, **options)) == 1
    assert fastnmf.stability(A, 3, runs=2, **options).dictionary.shape == (3, 6)


def test_bar_counts_fits_and_the_work_that_is_left(capsys):
    runs = Runs(None, {}, 0, resume=False)
    runs.get("1/0", lambda: Run(torch.zeros(1), {}))
    with bar(True, "choose", {"1/0": 1, "3/0": 3}, runs) as done:
        done("1/0")
        assert "choose, 1 of 2 fits:  25 %" in capsys.readouterr().err
        done("3/0")
    shown = capsys.readouterr().err
    assert "choose, 2 of 2 fits: 100 %" in shown
    assert "left]" in shown


def test_stop_by_validation_is_refused_once_before_any_fit():
    A = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda: fastnmf.fit_many([A, A], 3, stop="validation"),
        lambda: fastnmf.stability(A, 3, stop="validation"),
        lambda: fastnmf.choose_concepts(A, [2, 3], stop="validation"),
    ):
        with pytest.raises(InvalidInput, match="give stop='change' or 'error'"):
            call()
