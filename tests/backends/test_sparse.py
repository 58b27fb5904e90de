"""SparseMatrix: its views, sums and products, against dense ones in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fastnmf.backends.sparse import SparseMatrix, transpose_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def drawn(m, d, density, dtype=torch.float32, index=torch.int32, seed=0):
    """A matrix in both forms: (SparseMatrix, dense)."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(m, d, generator=generator, dtype=torch.float64) + 0.1
    dense *= torch.rand(m, d, generator=generator) < density
    return compressed(dense.to(dtype), index), dense.to(dtype)


def compressed(dense, index=torch.int32):
    counts = (dense != 0).sum(1)
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows, columns = dense.nonzero(as_tuple=True)
    parts = crow.to(index), columns.to(index), dense[rows, columns]
    return SparseMatrix(*parts, tuple(dense.shape))


# (m, d, density, K): one row; no entries; rows and columns without any; more concepts than columns
SHAPES = [(1, 5, 1.0, 3), (4, 3, 0.0, 2), (40, 30, 0.05, 1), (70, 20, 0.4, 33)]


@pytest.mark.parametrize(("m", "d", "density", "K"), SHAPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products_are_those_of_the_dense_matrix(m, d, density, K, index, dtype):
    X, dense = drawn(m, d, density, dtype, index)
    Bt, Z = torch.rand(d, K, dtype=dtype), torch.rand(m, K, dtype=dtype)
    wide, tolerance = dense.double(), {"rtol": TOLERANCE[dtype], "atol": 0}
    nan = torch.full((m, K), torch.nan, dtype=dtype)
    torch.testing.assert_close(X.dot(Bt, nan).double(), wide @ Bt.double(), **tolerance)
    assert X.dot(Bt, nan).data_ptr() == nan.data_ptr()
    nan = torch.full((d, K), torch.nan, dtype=dtype)
    torch.testing.assert_close(X.tdot(Z, nan).double(), wide.T @ Z.double(), **tolerance)
    out = X.tdot(Z, torch.ones(d, K, dtype=dtype), adds=True)
    torch.testing.assert_close(out.double(), 1 + wide.T @ Z.double(), **tolerance)


def test_products_take_operands_in_any_layout():
    X, dense = drawn(50, 31, 0.2)
    D, Zt = torch.rand(7, 31), torch.rand(7, 50)
    torch.testing.assert_close(X.dot(D.T), dense @ D.T)
    torch.testing.assert_close(X.tdot(Zt.T), dense.T @ Zt.T)


def test_sum_of_the_parts_is_the_product():
    X, dense = drawn(90, 31, 0.2)
    Z, out = torch.rand(90, 7), torch.zeros(31, 7)
    for part in (slice(0, 40), slice(40, 40), slice(40, 90)):
        X.rows(part).tdot(Z[part], out, adds=True)
    torch.testing.assert_close(out, dense.T @ Z)


@pytest.mark.parametrize("part", [slice(3, 11), slice(None, 5), slice(8, 8), slice(-4, 99)])
def test_rows_are_a_view(part):
    X, dense = drawn(20, 9, 0.3)
    rows = X.rows(part)
    assert rows.to_dense().equal(dense[part])
    assert len(rows) == len(dense[part])
    assert not rows.nnz or X.values.data_ptr() <= rows.values.data_ptr()
    assert rows.values.untyped_storage().data_ptr() == X.values.untyped_storage().data_ptr()


def test_rows_must_be_adjacent():
    with pytest.raises(IndexError, match="must be adjacent"):
        drawn(20, 9, 0.3)[0].rows(slice(0, 20, 2))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_sums_are_those_of_the_dense_matrix(index):
    X, dense = drawn(30, 9, 0.3, index=index)
    wide = dense.double()
    torch.testing.assert_close(X.squared_norm(), wide.square().sum(), rtol=1e-7, atol=0)
    torch.testing.assert_close(X.column_sums(), wide.sum(0))
    assert X.largest() == float(dense.max())
    assert X.nnz == int((dense != 0).sum())


def test_largest_entry_may_be_one_that_is_not_stored():
    assert compressed(torch.tensor([[-1.0, 0.0]])).largest() == 0
    assert compressed(torch.tensor([[-1.0, -2.0]])).largest() == -1
    assert compressed(torch.zeros(2, 2)).largest() == 0


def test_conversion_shares_what_it_need_not_copy():
    X, dense = drawn(30, 9, 0.3)
    wide = X.to(torch.float64)
    assert wide.dtype == torch.float64
    assert wide.col.data_ptr() == X.col.data_ptr()
    assert wide.to_dense().equal(dense.double())
    assert X.to(device="cpu").values.data_ptr() == X.values.data_ptr()


# one part, and several, of which one has no rows and one no entries
@pytest.mark.parametrize("bounds", [[0, 30], [0, 7, 7, 9, 30]])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_transpose_of_parts_is_that_of_all_rows(bounds, index):
    X, dense = drawn(30, 9, 0.3, index=index)
    dense[7:9] = 0
    X = compressed(dense, index)
    parts = [X.rows(slice(*some)) for some in itertools.pairwise(bounds)]
    found, (expected, _) = transpose_of(parts), X.transposed()
    assert found.shape == (9, 30)
    for name in ("crow", "col", "values"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    none = transpose_of([compressed(torch.zeros(3, 4), index)])
    assert none.nnz == 0
    assert none.shape == (4, 3)


def test_stored_zeros_are_left_out():
    X, _ = drawn(30, 9, 0.3)
    assert X.without_zeros() is X
    kept = X.values > X.values.median()
    some = replace(X, values=X.values * kept).without_zeros()
    assert some.nnz == int(kept.sum())
    assert some.to_dense().equal(replace(X, values=X.values * kept).to_dense())
    assert replace(X, values=X.values * 0).without_zeros().crow.tolist() == [0] * 31
