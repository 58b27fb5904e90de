"""Weights as callers give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.data.weights.given import Weights, read_weights
from fastnmf.errors import FastnmfWarning, InvalidInput


def test_a_column_weighs_rows_and_a_row_features():
    rows = read_weights(np.array([[1], [0], [3]]))
    assert (rows.kind, rows.rows.tolist(), rows.features) == ("rows", [1.0, 0.0, 3.0], None)
    features = read_weights(torch.tensor([[True, False]]))
    assert (features.kind, features.features.tolist()) == ("features", [1.0, 0.0])
    assert read_weights(rows) is rows


def test_a_file_is_read(tmp_path):
    np.save(tmp_path / "w.npy", np.array([[1.0, 2.0]], np.float32))
    assert read_weights(tmp_path / "w.npy").features.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones(4), r"shape \(4,\): give weights.reshape\(4, 1\) for rows"),
        (np.array([[1.0, -1.0]]), "row 0, column 1: −1"),
        (np.array([[1.0], [np.nan]]), "row 1, column 0: nan"),
        (np.array([[1.0], [np.inf]]), "row 1, column 0: inf"),
        (np.zeros((3, 1)), "all weights are 0"),
        (np.ones((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.ones((0, 1)), r"shape \(0, 1\)"),
        ("stored.npy", "stored.npy"),
        (np.full((3, 1), 1e-40), "the largest weight is 1e-40"),
        (np.full((3, 2), 1e40), "the largest weight is 1e.40"),
    ],
)
def test_what_cannot_be_weights_is_refused(given, message):
    with pytest.raises((InvalidInput, FileNotFoundError), match=message):
        read_weights(given)


def test_weights_of_other_values_have_another_identity():
    one, other = (Weights(rows=torch.tensor([1.0, x])) for x in (1.0, 2.0))
    assert one.identity() != other.identity()
    assert one.identity() == Weights(rows=torch.tensor([1.0, 1.0])).identity()


def test_rows_without_weight_warn():
    with pytest.warns(FastnmfWarning, match="1 row of A has no entry"):
        Weights(rows=torch.tensor([1.0, 0.0])).warn_of_unobserved()


def test_one_weight_is_that_of_one_row():
    assert read_weights(np.ones((1, 1))).kind == "rows"
    assert read_weights(np.ones((1, 1)), 1).kind == "features"
