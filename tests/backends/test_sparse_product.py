"""The compiled products of a sparse matrix, given views of memory, on every instruction set usable
here."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCES

from fastnmf.backends.pointers import view
from fastnmf.backends.registry import BACKENDS
from fastnmf.backends.sparse import SparseMatrix

pytestmark = pytest.mark.filterwarnings("ignore:.*beta state:UserWarning")
F4, F8 = torch.float32, torch.float64
I4, I8 = torch.int32, torch.int64
# m, d, density, K, dtype, index. A vector has 4, 8 or 16 lanes in float32, 2, 4 or 8 in float64; a
# group has up to 8 vectors
CASES = [
    # a single entry
    (1, 1, 1.0, 1, F4, I4),
    # fewer concepts than lanes, as many, and one more
    (40, 30, 0.4, 3, F4, I4),
    (40, 30, 0.4, 8, F8, I8),
    (40, 30, 0.4, 17, F4, I8),
    # several groups of concepts, of different sizes
    (30, 20, 0.4, 139, F4, I4),
    (30, 20, 0.4, 139, F8, I4),
    # so few entries that nothing is copied
    (3, 200, 0.02, 17, F4, I4),
    (2, 900, 0.9, 5, F8, I8),
    # rows that are summed in parts
    (9, 900, 0.9, 20, F4, I4),
    # several blocks of columns, and several tiles of rows
    (40, 9001, 0.1, 128, F4, I4),
    (5000, 16, 0.3, 2, F4, I4),
]


def drawn(m, d, density, dtype, index):
    """A dense matrix whose rows have very different numbers of entries, and its parts."""
    generator = torch.Generator().manual_seed(m + d)
    share = torch.rand(m, 1, generator=generator).pow(2) * 3 * density
    dense = torch.rand(m, d, generator=generator) + 0.1
    dense = (dense * (torch.rand(m, d, generator=generator) < share)).to(dtype)
    if m > 2:
        dense[m // 2] = 0
        dense[-1, -1] = 2
    else:
        dense[0, 0] = 1
    parts = dense.to_sparse_csr()
    return dense, (parts.crow_indices().to(index), parts.col_indices().to(index), parts.values())


def apart(X):
    """X as every row of a matrix with two more columns, which are NaN."""
    wide = torch.full((X.shape[0], X.shape[1] + 2), torch.nan, dtype=X.dtype)
    wide[:, : X.shape[1]] = X
    return wide, wide[:, : X.shape[1]]


def product(extension, out, X, dense, transposed, adds=False, threads=2):
    parts = tuple(map(view, X))
    extension.sparse_product(view(out), parts, view(dense), transposed, adds, threads)
    return out


@pytest.mark.parametrize(("m", "d", "density", "K", "dtype", "index"), CASES)
def test_products_are_those_of_the_dense_matrix(extension, m, d, density, K, dtype, index):
    A, X = drawn(m, d, density, dtype, index)
    tolerance = {"rtol": TOLERANCES["hals", str(dtype).removeprefix("torch.")], "atol": 0}
    for transposed, adds in ((False, False), (True, False), (True, True)):
        M = A.T if transposed else A
        _, dense = apart(torch.rand(M.shape[1], K, dtype=dtype) + 0.1)
        start = torch.full((M.shape[0], K), 0.5 if adds else torch.nan, dtype=dtype)
        whole, out = apart(start)
        product(extension, out, X, dense, transposed, adds)
        expected = M.double() @ dense.double() + 0.5 * adds
        torch.testing.assert_close(out.double(), expected, **tolerance)
        # nothing behind a row is written to
        assert bool(whole[:, K:].isnan().all())


@pytest.mark.parametrize(("m", "d", "density", "K", "dtype", "index"), CASES)
def test_transposed_operand_changes_no_bit(extension, m, d, density, K, dtype, index):
    """In the order of a dictionary, of which a column is a row of the operand."""
    _, X = drawn(m, d, density, dtype, index)
    _, turned = apart(torch.rand(K, d, dtype=dtype) + 0.1)
    results = [
        product(extension, torch.full((m, K), torch.nan, dtype=dtype), X, dense, False)
        for dense in (turned.T.contiguous(), turned.T)
    ]
    assert results[0].equal(results[1])


def test_threads_change_no_bit(extension):
    _, X = drawn(700, 900, 0.05, F4, I4)
    for transposed, size in ((False, 700), (True, 900)):
        dense = torch.rand(1600 - size, 37)
        results = [
            product(extension, torch.empty(size, 37), X, dense, transposed, threads=threads)
            for threads in (1, 2, 3, 7)
        ]
        assert all(result.equal(results[0]) for result in results[1:])


def test_long_sums_are_as_exact_as_those_of_a_dense_product(extension):
    """Summed one after the other in float32 they have errors of up to 4e-6."""
    n = 30_000
    generator = torch.Generator().manual_seed(0)
    A = (torch.rand(n, 2, generator=generator) + 0.5).to_sparse_csr()
    X = A.crow_indices(), A.col_indices(), A.values()
    Z = torch.rand(n, 3, generator=generator) + 0.5
    exact = A.to_dense().double().T @ Z.double()
    sums = product(extension, torch.empty(2, 3), X, Z, True).double()
    assert float(((sums - exact) / exact).abs().max()) < 1e-6
    Xt = A.to_dense().T.contiguous().to_sparse_csr()
    X = Xt.crow_indices(), Xt.col_indices(), Xt.values()
    sums = product(extension, torch.empty(2, 3), X, Z, False).double()
    assert float(((sums - exact) / exact).abs().max()) < 1e-6


def test_matrix_without_rows_adds_nothing(checking):
    X = torch.zeros(1, dtype=I4), torch.zeros(1, dtype=I4)[:0], torch.ones(1)[:0]
    out = torch.ones(3, 2)
    product(checking, out, X, torch.ones(1, 2)[:0], True, adds=True)
    assert bool((out == 1).all())


def call(extension, **parts):
    """A product of two rows, some of whose arguments are others."""
    given = {
        "out": torch.empty(2, 3),
        "crow": torch.tensor([0, 1, 2]),
        "col": torch.tensor([0, 3]),
        "values": torch.ones(2),
        "dense": torch.ones(4, 3),
        "threads": 1,
    } | parts
    X = given["crow"], given["col"], given["values"]
    product(extension, given["out"], X, given["dense"], False, threads=given["threads"])


WRONG = [
    ({"crow": torch.tensor([0, 1, 3])}, "crow goes from 0 to 3: 0 to 2 entries of col"),
    ({"crow": torch.tensor([0, 2])}, r"crow has shape \(2\): \(3\) is needed"),
    ({"crow": torch.tensor([0, 1, 2], dtype=I4)}, "col has dtype 'int64': 'int32' is needed"),
    ({"values": torch.ones(3)}, r"values has shape \(3\): \(2\) is needed"),
    ({"values": torch.ones(2, dtype=F8)}, "values has dtype 'float64': 'float32' is needed"),
    ({"dense": torch.ones(4, 5)}, r"dense has shape \(4, 5\): \(-1, 3\) is needed"),
    ({"dense": torch.ones(4, 6)[:, ::2]}, "dense .* its rows must be contiguous"),
    ({"out": torch.empty(3, 2).T}, "out .* its rows must be contiguous"),
    ({"threads": 0}, "threads = 0: at least 1 is needed"),
]


@pytest.mark.parametrize(("parts", "message"), WRONG)
def test_wrong_arguments_are_refused(checking, parts, message):
    call(checking)
    with pytest.raises(ValueError, match=message):
        call(checking, **parts)


@pytest.mark.parametrize("operations", [BACKENDS["torch"].load(), None])
def test_operations_of_a_backend_are_those_that_compute(checking, operations):
    A, parts = drawn(40, 30, 0.4, F4, I4)
    called = []
    ours = operations or BACKENDS["cpp"].load()
    watched = {
        name: lambda *given, name=name, **how: (called.append(name), ours[name](*given, **how))
        for name in ("sparse_dot_", "sparse_tdot_")
    }
    X = SparseMatrix(*parts, tuple(A.shape)).using(watched)
    D, Z = torch.rand(6, 30), torch.rand(40, 6)
    # rows and conversions keep them
    torch.testing.assert_close(X.to(F8).rows(slice(2, 30)).dot(D.T.double()).float(), A[2:30] @ D.T)
    torch.testing.assert_close(X.tdot(Z), A.T @ Z)
    assert called == ["sparse_dot_", "sparse_tdot_"]
