"""Warnings: of a class that can be filtered, at the line of the caller."""

from __future__ import annotations

import warnings

import pytest
import torch

from fastnmf import ConvergenceWarning, FastnmfWarning
from fastnmf.errors import warn


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
