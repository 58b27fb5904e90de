"""The progress bar together with the user's callback."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf import NMF
from fastnmf.engine.state import Iteration
from fastnmf.results.progress import Progress


def test_nothing_is_called_where_there_is_nothing_to_show():
    with Progress(False, 5, None) as each:
        assert each is None


def test_callback_is_called_and_its_answer_returned(capsys):
    seen = []
    with Progress(False, 5, lambda info: seen.append(info) or "stop") as each:
        assert each(Iteration(1, 0.5, 0.25, 0.1)) is True
    assert [info.iteration for info in seen] == [1]
    assert capsys.readouterr().err == ""


async def _awaited(info):
    return False


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda info: np.zeros(3), "ndarray of shape (3,)"),
        (lambda info: torch.zeros(2, 2), "Tensor of shape (2, 2)"),
        # would count as true
        (_awaited, "coroutine"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_answer_of_a_callback_that_is_neither_true_nor_false_is_named(answer, named):
    model = NMF(2, seed=0)
    with pytest.raises(TypeError, match="the callback returned a") as raised:
        model.fit(torch.rand(9, 4), callback=answer)
    assert named in str(raised.value)
    assert "return True to end the fit" in str(raised.value)
    assert not model.fitted


@pytest.mark.parametrize("answer", [np.bool_(True), np.ones(1), torch.ones(()), [0], "yes", 1])
def test_answers_of_one_truth_end_a_fit(answer):
    model = NMF(2, seed=0)
    model.fit(torch.rand(9, 4), callback=lambda info: answer)
    assert (model.fit_info_.iterations, model.fit_info_.stopped_by) == (1, "callback")


@pytest.mark.parametrize(("streamed", "unit"), [(False, "it/s"), (True, "pass/s")])
def test_bar_shows_iteration_change_and_error(streamed, unit, capsys):
    with Progress(True, 5, None, streamed) as each:
        # a fit that continues from a checkpoint begins later
        assert each(Iteration(3, 0.0123, 0.25, 0.1)) is None
    shown = capsys.readouterr().err
    assert "3/5" in shown
    assert unit in shown
    assert "change=1.23e-02, error=0.25000" in shown


def test_bar_of_codes_alone_has_no_error(capsys):
    with Progress(True, 2, None) as each:
        for iteration in (1, 2):
            each(Iteration(iteration, 0.5, float("nan"), 0.1))
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "change=5.00e-01" in shown
    assert "error" not in shown


def test_bar_is_labelled_and_gives_no_time_left(capsys):
    with Progress(True, 500, None, label="fit", begins="start") as each:
        assert "start: 0/500" in capsys.readouterr().err
        each(Iteration(1, 0.5, 0.25, 0.1))
    shown = capsys.readouterr().err
    assert "fit: 1/500" in shown
    assert "%" not in shown
    assert "<" not in shown


def test_bar_is_taken_away_by_an_interrupt(capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Progress(True, 500, interrupt, label="encode") as each:
        each(Iteration(1, 0.5, 0.25, 0.1))
    shown = capsys.readouterr().err
    assert "encode: " in shown
    # the last line is blank, and the cursor is at its beginning
    assert shown.endswith("\r")
    assert shown.rstrip("\r").rpartition("\r")[2].strip() == ""
    assert "\n" not in shown


def test_bar_counts_anew_for_every_chunk_of_rows(capsys):
    """It counted on, beyond its end."""
    with Progress(True, 3, None, label="encode") as each:
        for iteration in (1, 2, 3, 1, 2):
            each(Iteration(iteration, 0.5, float("nan"), 0.1))
    shown = capsys.readouterr().err
    assert "encode, chunk 2: 2/3 |" in shown
    assert "/?" not in shown
