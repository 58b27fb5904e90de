"""Statistics of data whose entries have weights."""

from __future__ import annotations

import pytest
import torch

from fastnmf.data.sparse.arrays import sparse_matrix
from fastnmf.data.weights.entries import EntryWeights
from fastnmf.errors import FastnmfWarning

DRAWN = torch.Generator().manual_seed(0)
W = torch.rand(9, 6, generator=DRAWN, dtype=torch.float64)
W *= torch.rand(9, 6, generator=DRAWN) > 0.4
W[2] = 0
X = torch.rand(9, 6, generator=DRAWN, dtype=torch.float64)
Z, D = torch.rand(9, 2, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)


def both():
    stored = sparse_matrix(W.to_sparse_csr())
    values = X[stored.row_of_entries().long(), stored.col.long()]
    from dataclasses import replace

    return [EntryWeights(X, W), EntryWeights(replace(stored, values=values), stored)]


@pytest.mark.parametrize("weights", both(), ids=["dense", "sparse"])
def test_statistics_are_those_of_the_weighted_entries(weights):
    assert weights.squared_norm == pytest.approx(float((W * X.square()).sum()))
    mean = (W * X).sum(0) / W.sum(0)
    assert torch.allclose(weights.mean_row, mean)
    assert weights.squared_spread == pytest.approx(float((W * (X - mean).square()).sum()))
    assert torch.allclose(weights.of_rows, W.sum(1))
    assert torch.allclose(weights.of_features, W.sum(0))
    part = slice(1, 7)
    error = (W * (X - Z @ D).square())[part].sum()
    some = weights.beside(part, weights.X[part])
    assert some.squared_error(Z[part], D) == pytest.approx(float(error))
    expected = W[part] * X[part] * (Z @ D)[part], W[part] * (Z @ D)[part].square()
    assert some.products(Z[part], D) == pytest.approx([float(M.sum()) for M in expected])


@pytest.mark.parametrize("weights", both(), ids=["dense", "sparse"])
def test_rows_without_weight_are_not_observed_and_warn(weights):
    assert (~weights.observed_rows).nonzero().flatten().tolist() == [2]
    with pytest.warns(FastnmfWarning, match="1 row of A"):
        weights.warn_of_unobserved()
