"""Chunks of sparse rows, and the places of what cannot be used."""

from __future__ import annotations

import pytest
import torch

from fastnmf.backends.sparse import SparseMatrix
from fastnmf.data.arrays import Expected, ValueCheck
from fastnmf.data.sparse.rows import chunks_of, largest_of, mean_share
from fastnmf.errors import InvalidInput


def some(m=23, d=7):
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(m, d, generator=generator) * (torch.rand(m, d, generator=generator) < 0.4)
    dense[3] = 0
    rows, col = dense.nonzero(as_tuple=True)
    crow = torch.cat([torch.zeros(1, dtype=torch.long), (dense > 0).sum(1).cumsum(0)])
    return SparseMatrix(crow.int(), col.int(), dense[rows, col], (m, d)), dense


# a chunk ends within a part, with one, and after several
@pytest.mark.parametrize("rows", [4, 10, 23, 50])
def test_chunks_cross_the_bounds_of_parts(rows):
    X, dense = some()
    parts = [X[:10], X[10:10], X[10:12], X[12:]]
    found = list(chunks_of(parts, rows, torch.float64))
    assert [part.start for part, _ in found] == list(range(0, 23, rows))
    assert all(chunk.dtype == torch.float64 for _, chunk in found)
    assert torch.equal(torch.cat([chunk.to_dense() for _, chunk in found]), dense.double())


def test_entries_that_cannot_be_used_are_counted_with_their_place():
    X, dense = some()
    assert largest_of(ValueCheck(Expected()), X, "A", 0) == float(dense.max())
    X.values[-1] = torch.inf
    check = ValueCheck(Expected())
    largest_of(check, X, "b.npz", 100)
    with pytest.raises(
        InvalidInput, match=r"1 nan or inf entry, the first in b\.npz at row 122, c"
    ):
        check.report()


def test_shares_are_weighted_by_rows():
    assert mean_share([(0.5, 10), (0.1, 30), (0.0, 0)], "A") == pytest.approx(0.2)
    assert mean_share([(None, 10), (0.3, 0)], "A") is None
    with pytest.raises(InvalidInput, match="some rows of A are sparse and others dense"):
        mean_share([(None, 10), (0.3, 1)], "A")
