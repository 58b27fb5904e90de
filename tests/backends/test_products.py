"""Products and measures give the same of sparse rows as of the dense ones."""

from __future__ import annotations

import pytest
import torch

from fastnmf.backends import products
from fastnmf.backends.sparse import SparseMatrix, concat
from fastnmf.backends.torch import moments_


def both(m=23, p=17, dtype=torch.float64) -> tuple[SparseMatrix, torch.Tensor]:
    """A sparse matrix with an empty row and an empty column, and the dense one."""
    generator = torch.Generator().manual_seed(3)
    dense = torch.rand(m, p, generator=generator, dtype=dtype)
    dense *= torch.rand(m, p, generator=generator) < 0.3
    dense[4], dense[:, 2] = 0, 0
    csr = dense.to_sparse_csr()
    index = csr.crow_indices().int(), csr.col_indices().int()
    return SparseMatrix(*index, csr.values(), (m, p)), dense


def drawn(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.mark.parametrize("every", [1, 4])
def test_products_are_those_of_the_dense_rows(every):
    X, dense = both()
    columns = dense[:, ::every]
    Bt, Z = drawn(columns.shape[1], 3), drawn(23, 3)
    torch.testing.assert_close(products.dot(X, Bt, every=every), columns @ Bt)
    torch.testing.assert_close(products.dot(X, drawn(17)), dense @ drawn(17))
    for M in (X, dense):
        for out in (torch.ones(columns.shape[1], 3), torch.ones(3, columns.shape[1]).T):
            out = out.double()
            products.add_tdot_(out, M, Z, every)
            torch.testing.assert_close(out, 1 + columns.T @ Z)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("by_features", [False, True])
def test_statistics_are_those_of_the_dense_rows(adds, by_features):
    X, dense = both()
    Z, before = drawn(23, 3), drawn(3, 17)
    cross = before.T.contiguous().T if by_features else before.clone()
    products.cross_(cross, X, Z, moments_, adds=adds)
    torch.testing.assert_close(cross, Z.T @ dense + (before if adds else 0))


def test_measures_of_rows_are_those_of_the_dense_rows():
    X, dense = both()
    torch.testing.assert_close(products.row_maxima(X), dense.amax(1))
    norms = products.row_norms(X, torch.float64)
    torch.testing.assert_close(norms, torch.linalg.vector_norm(dense, dim=1))
    assert float(products.largest(X)) == float(dense.max())
    assert products.stored_share(X) == int((dense > 0).sum()) / dense.numel()
    assert products.stored_share(dense) is None
    numbers = torch.tensor([5, 4, 5, 22])
    assert torch.equal(products.take(X, numbers), dense[numbers])
    power = torch.arange(23)[:, None] - 11
    for given in (power, torch.tensor(3)):
        assert torch.equal(products.times_powers(X, given).to_dense(), dense * 2.0**given)


@pytest.mark.parametrize(("first", "every", "rows"), [(0, 1, 5), (2, 4, 2), (3, 4, 100)])
def test_strided_tiles_are_those_of_the_dense_rows(first, every, rows):
    X, dense = both()
    tiles = [tile.to_dense() for tile in products.strided_tiles(X, first, every, rows)]
    assert torch.equal(torch.cat(tiles), dense[first::every])
    assert max(map(len, tiles)) <= rows


def test_few_rows_are_made_dense_at_a_time(monkeypatch):
    X, dense = both()
    monkeypatch.setattr(products, "DENSE_BYTES", 3 * 17 * 8)
    parts = list(products.dense_tiles(X))
    assert [len(rows) for _, rows in parts] == [3] * 7 + [2]
    assert torch.equal(torch.cat([rows for _, rows in parts]), dense)
    assert [len(rows) for _, rows in products.dense_tiles(dense)] == [23]
    torch.testing.assert_close(products.rows_gram(X), dense @ dense.T)


# K as large as p: an exact product, whose error is not computed as a difference
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_error_is_that_of_the_residual(exact, dtype):
    X, dense = both(dtype=dtype)
    Z, D = drawn(23, 3, dtype=dtype), drawn(3, 17, dtype=dtype)
    if exact:
        Z, D = dense * (1 + 1e-5), torch.eye(17, dtype=dtype)
    error = products.Rebuilt(D).squared_error(X, Z)
    residual = (dense.double() - Z.double() @ D.double()).square().sum()
    torch.testing.assert_close(error, residual, rtol=1e-2 if exact else 1e-5, atol=0)
    inner, square = products.Rebuilt(D).inner_and_square(X, Z)
    of_dense = products.Rebuilt(D).inner_and_square(dense, Z)
    torch.testing.assert_close(torch.stack((inner, square)), torch.stack(of_dense).double())


def test_parts_below_each_other_are_one_matrix():
    X, dense = both()
    joined = concat([X.rows(slice(0, 9)), X.rows(slice(9, 9)), X.rows(slice(9, 23))])
    assert joined.shape == (23, 17)
    assert joined.crow.dtype == torch.int32
    assert torch.equal(joined.to_dense(), dense)
    assert concat([X]) is X


# all pairs at once, and parts of rows with more pairs than are multiplied at a time
@pytest.mark.parametrize("pairs", [1 << 19, 5])
def test_gram_of_sparse_codes_is_that_of_dense_ones(pairs, monkeypatch):
    monkeypatch.setattr(products, "_PAIRS", pairs)
    generator = torch.Generator().manual_seed(0)
    Z = torch.rand(40, 9, generator=generator) * (torch.rand(40, 9, generator=generator) < 0.3)
    Z[7] = 0
    rows, col = Z.nonzero(as_tuple=True)
    crow = torch.cat([torch.zeros(1, dtype=torch.long), (Z > 0).sum(1).cumsum(0)])
    gram = torch.ones(9, 9)
    codes = products.SparseMatrix(crow.int(), col.int(), Z[rows, col], (40, 9))
    products.add_gram_(gram, codes)
    torch.testing.assert_close(gram, 1 + Z.T @ Z)
    products.add_gram_(gram, codes[:0])
    torch.testing.assert_close(gram, 1 + Z.T @ Z)
