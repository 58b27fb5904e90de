"""Weights of entries beside data that are read in passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.data.arrays import Expected
from fastnmf.data.sources import Batches, rows_of_files
from fastnmf.data.weights.entries import EntryWeights
from fastnmf.data.weights.given import read_weights
from fastnmf.data.weights.observed import observed
from fastnmf.data.weights.read import WeightRows, filled, read_entries
from fastnmf.errors import InvalidInput

DRAWN = torch.Generator().manual_seed(0)
N, P = 23, 6
A = torch.rand(N, P, generator=DRAWN, dtype=torch.float64)
W = torch.rand(N, P, generator=DRAWN, dtype=torch.float64)
W *= torch.rand(N, P, generator=DRAWN) > 0.3
W[3] = 0
HIDDEN = torch.where(W > 0, A, torch.nan)
CPU = torch.device("cpu")


def source_of(given):
    found = rows_of_files(given, Expected())
    return Batches(given, "A") if found is None else found


@pytest.fixture(params=["npy", "npz", "shards", "map", "batches"])
def given(request, tmp_path):
    """A and W in files, or A in batches and W in memory."""
    paths = []
    for name, M in (("A", HIDDEN), ("W", W)):
        M, path = M.numpy(), tmp_path / f"{name}.npy"
        np.save(path, M)
        if request.param == "npz":
            path = tmp_path / f"{name}.npz"
            np.savez(path, M=M)
        if request.param == "shards":
            # of other lengths for both
            path = [tmp_path / f"{name}{part}.npy" for part in range(2)]
            at = 5 if name == "A" else 14
            np.save(path[0], M[:at])
            np.save(path[1], M[at:])
        paths.append(path)
    if request.param == "map":
        return tuple(np.load(path, mmap_mode="r") for path in paths)
    return ([*HIDDEN.split(7)], W) if request.param == "batches" else tuple(paths)


def test_statistics_and_estimates_are_those_in_memory(given):
    X, V = observed(HIDDEN, read_weights(W), Expected(), CPU)
    expected = EntryWeights(X, V)
    weights = read_weights(given[1])
    found = read_entries(source_of(given[0]), weights, Expected())
    assert found.shape == (N, P)
    for name in ("of_rows", "of_features", "mean_row", "observed_rows"):
        assert torch.allclose(getattr(found, name).double(), getattr(expected, name).double())
    assert found.squared_norm == pytest.approx(expected.squared_norm)
    assert found.squared_spread == pytest.approx(expected.squared_spread)
    opened = filled(source_of(given[0]), weights, Expected(), found)
    for _ in range(2):
        source = source_of(opened)
        rows = torch.cat([torch.as_tensor(part) for part, _, _ in source.parts()])
        assert torch.allclose(rows, X)
    some = slice(4, 17)
    assert torch.equal(found.beside(some, X[some]).W, W[some])


def test_weights_of_rows_and_features_are_rows_of_entries():
    weights = read_weights(torch.arange(1.0, N + 1)[:, None])
    part = WeightRows(weights).read(4, A[4:9])
    assert torch.equal(part, weights.rows[4:9, None].expand(5, P))
    features = WeightRows(read_weights(torch.arange(1.0, P + 1)[None]))
    assert torch.equal(features.read(4, A[4:9])[2], torch.arange(1.0, P + 1).double())


@pytest.mark.parametrize(
    "weights", [W[:, :5], W[:20], torch.ones(N - 1, 1), torch.ones(1, P + 1)], ids=str
)
@pytest.mark.parametrize("as_batches", [True, False])
def test_weights_of_another_shape_are_refused(weights, as_batches, tmp_path):
    np.save(tmp_path / "A.npy", A.numpy())
    source = source_of([*A.split(7)] if as_batches else tmp_path / "A.npy")
    with pytest.raises(InvalidInput, match="weights have shape"):
        read_entries(source, read_weights(weights), Expected())


def test_observed_values_that_cannot_be_used_are_named(tmp_path):
    X = HIDDEN.clone()
    X[20, 1] = -1
    V = W.clone()
    V[20, 1] = 1
    np.save(tmp_path / "A.npy", X.numpy())
    with pytest.raises(InvalidInput, match=r"row 20, column 1: −1"):
        read_entries(source_of(tmp_path / "A.npy"), read_weights(V), Expected())
