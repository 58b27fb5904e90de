"""The progress bar together with the user's callback."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import tqdm.auto

from fastnmf import NMF
from fastnmf.engine.state import Iteration, Stopping
from fastnmf.results.progress import Progress, _span


def test_nothing_is_called_where_there_is_nothing_to_show():
    with Progress(False, Stopping(5, 0.0)) as each:
        assert each is None


def test_callback_is_called_and_its_answer_returned(capsys):
    seen = []
    with Progress(False, Stopping(5, 0.0), lambda info: seen.append(info) or "stop") as each:
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
    with Progress(True, Stopping(5, 0.0), streamed=streamed) as each:
        # a fit that continues from a checkpoint begins later
        for iteration in (3, 4):
            assert each(Iteration(iteration, 0.0123, 0.25, 0.1)) is None
    shown = capsys.readouterr().err
    assert "fit 4/5: " in shown
    assert unit in shown
    assert "change=1.23e-02, error=0.25000" in shown


def test_bar_of_codes_alone_has_no_error(capsys):
    with Progress(True, Stopping(2, 0.0)) as each:
        for iteration in (1, 2):
            each(Iteration(iteration, 0.5, float("nan"), 0.1))
    shown = capsys.readouterr().err
    assert "fit 2/2: 100%" in shown
    assert "change=5.00e-01" in shown
    assert "error" not in shown


def test_bar_is_labelled_and_gives_no_time_left_at_first(capsys):
    with Progress(True, Stopping(500, 1e-4), label="fit", begins="start") as each:
        assert "start:   0%" in capsys.readouterr().err
        each(Iteration(1, 0.5, 0.25, 0.1))
    shown = capsys.readouterr().err
    assert "fit 1/500: " in shown
    assert "left" not in shown
    assert "<" not in shown


def test_bar_is_taken_away_by_an_interrupt(capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    ends = Stopping(500, 0.0)
    with pytest.raises(KeyboardInterrupt), Progress(True, ends, interrupt, label="encode") as each:
        each(Iteration(1, 0.5, 0.25, 0.1))
    shown = capsys.readouterr().err
    assert "encode 1/500: " in shown
    # the last line is blank, and the cursor is at its beginning
    assert shown.endswith("\r")
    assert shown.rstrip("\r").rpartition("\r")[2].strip() == ""
    assert "\n" not in shown


def test_bar_of_a_fit_that_met_its_rule_is_full(capsys):
    with Progress(True, Stopping(500, 1e-2)) as each:
        for iteration, change in enumerate([1.0, 0.5, 0.1, 0.01], 1):
            each(Iteration(iteration, change, 0.25, 0.1))
    assert "fit 4/500: 100%" in capsys.readouterr().err


def test_bar_shows_how_far_the_change_has_fallen_to_tol(capsys):
    """On a log scale: 1e-2 is halfway from 1 to 1e-4."""
    with Progress(True, Stopping(500, 1e-4)) as each:
        for iteration, change in enumerate([1.0, *[1e-2] * 5], 1):
            each(Iteration(iteration, change, 0.25, 0.1))
    assert "fit 6/500:  50%" in capsys.readouterr().err


def test_bar_of_chunks_counts_rows(capsys):
    stopping = Stopping(3, 0.0)
    bar = Progress(True, stopping, label="encode", rows=(1500, 1000))
    with bar as each:
        for rows in (1000, 500):
            for iteration in (1, 2, 3):
                each(Iteration(iteration, 0.5, float("nan"), 0.1))
            bar.done(rows)
            bar._show(at_once=True)
            bar._bar.refresh()
            assert f"encode {bar._rows_done:,}/1,500 rows" in capsys.readouterr().err
    assert "encode 1,500/1,500 rows: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("how", [{}, {"method": "exact"}, {"method": "sweeps"}, {"top_k": 2}])
def test_every_way_to_encode_shows_the_rows_that_are_done(how, capsys):
    A = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    model = NMF(4, seed=0, max_iter=20, tol=0)
    model.fit(A)
    assert capsys.readouterr().err == ""
    model.verbose = True
    model.encode(A, **how)
    assert "encode 60/60 rows: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((2.2, 9.4), "2-9s"),
        ((9.1, 9.4), "9s"),
        ((0.0, 9.4), "at most 9s"),
        ((0.4, 9.4), "at most 9s"),
        ((0.0, 0.0), "0s"),
        ((40.0, 125.0), "0:40-2:05"),
        ((0.0, 3725.0), "at most 1:02:05"),
    ],
)
def test_time_left_is_as_exact_as_it_is_known(span, words):
    assert _span(*span) == words


def test_a_bar_that_tqdm_disables_is_none(monkeypatch):
    # as with TQDM_DISABLE=1 in the environment
    monkeypatch.setattr(tqdm.auto, "tqdm", partial(tqdm.auto.tqdm, disable=True))
    with Progress(True, Stopping(5, 0.0)) as each:
        assert each is None
