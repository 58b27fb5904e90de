"""Warnings: of a class that can be filtered, at the line of the caller."""

from __future__ import annotations

import warnings

import pytest
import torch

from fastnmf import ConvergenceWarning, FastnmfWarning
from fastnmf.errors import hold_warnings, warn, warn_once


def test_a_warning_names_the_line_of_the_caller():
    with pytest.warns(ConvergenceWarning, match="too few") as caught:
        torch.no_grad()(warn)("too few", ConvergenceWarning)
    assert [warning.filename for warning in caught] == [__file__]


def test_one_filter_silences_all_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FastnmfWarning)
        warn("unseen")
        warn("unseen", ConvergenceWarning)


def warn_three_times():
    with hold_warnings():
        for i in range(3):
            warn_once(f"row {i} is not solved", ConvergenceWarning)


def fail_after_a_warning():
    with hold_warnings():
        warn_once("unseen", ConvergenceWarning)
        raise ZeroDivisionError


def test_warnings_that_repeat_are_given_once_at_the_end():
    with pytest.warns(ConvergenceWarning) as caught:
        warn_three_times()
    assert [str(one.message) for one in caught] == [
        "row 2 is not solved (3 times, the last is shown)"
    ]
    assert caught[0].filename == __file__
    with pytest.warns(ConvergenceWarning, match="alone$"):
        warn_once("alone", ConvergenceWarning)


def test_an_error_is_raised_without_the_warnings_before_it():
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ZeroDivisionError):
        fail_after_a_warning()
    assert not caught
