"""Sparse inputs: formats, dtypes, sharing, indices and values that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.data.arrays import Expected
from fastnmf.data.sparse import arrays
from fastnmf.data.sparse.arrays import is_sparse, sparse_matrix
from fastnmf.errors import InvalidInput

scipy_sparse = pytest.importorskip("scipy.sparse", reason="scipy makes these inputs")
DENSE = np.random.default_rng(0).integers(0, 3, (9, 7)).astype(np.float64)
DENSE[4], DENSE[:, 2] = 0, 0
pytestmark = pytest.mark.filterwarnings("ignore:.*(beta state|invariant checks):UserWarning")
# with entries in another order, twice, and zeros
MESSY = (
    np.array([0, 3, 3, 5]),
    np.array([2, 0, 2, 1, 0]),
    np.array([1.0, 2.0, 4.0, 0.0, 3.0], np.float32),
)


def read(A, **options):
    return sparse_matrix(A, Expected(**options), "cpu")


def is_canonical(X):
    ordered = all(bool((row.diff() > 0).all()) for row in X.col.tensor_split(X.crow[1:-1].long()))
    return ordered and bool((X.values != 0).all())


def torch_csr(dense, index=torch.int64):
    X = torch.tensor(dense).to_sparse_csr()
    return torch.sparse_csr_tensor(
        X.crow_indices().to(index), X.col_indices().to(index), X.values(), X.shape
    )


INPUTS = {
    **{f"{form}_array": getattr(scipy_sparse, f"{form}_array") for form in "csr csc coo".split()},
    **{f"{form}_matrix": getattr(scipy_sparse, f"{form}_matrix") for form in "csr csc coo".split()},
    # those that are converted by their own tocsr
    **{form: getattr(scipy_sparse, f"{form}_array") for form in "bsr lil dok dia".split()},
    "torch csr": torch_csr,
    "torch csr int32": lambda dense: torch_csr(dense, torch.int32),
    "torch csc": lambda dense: torch.tensor(dense).to_sparse_csc(),
    "torch coo": lambda dense: torch.tensor(dense).to_sparse(),
}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("kind", INPUTS)
def test_every_format_is_read(kind, small, monkeypatch):
    if small:
        monkeypatch.setattr(arrays, "PART_ENTRIES", 5)
    A = INPUTS[kind](DENSE)
    assert is_sparse(A)
    X = read(A)
    assert X.to_dense().numpy().tolist() == DENSE.tolist()
    assert X.crow.dtype == X.col.dtype
    assert is_canonical(X)


def test_dense_inputs_are_not_sparse():
    assert not any(map(is_sparse, (DENSE, torch.tensor(DENSE), [[1.0]], None, "A.npz")))


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("longdouble", torch.float64),
        (">f8", torch.float64),
        ("int64", torch.float32),
        ("uint8", torch.float32),
        ("bool", torch.float32),
    ],
)
def test_dtypes_are_those_of_dense_inputs(given, computed):
    dense = DENSE.astype(given)
    A = scipy_sparse.csr_array(DENSE)
    A.data = A.data.astype(given)
    X = read(A)
    assert X.dtype == computed
    assert X.to_dense().numpy().tolist() == dense.astype(np.float64).tolist()


def test_sixteen_bits_are_computed_in_float32():
    X = read(torch.tensor(DENSE, dtype=torch.float16).to_sparse())
    assert X.dtype == torch.float32
    assert X.to_dense().numpy().tolist() == DENSE.tolist()
    assert read(scipy_sparse.csr_array(DENSE.astype("f4")), dtype=torch.float64).dtype == (
        torch.float64
    )


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_canonical_rows_are_not_copied(index):
    A = scipy_sparse.csr_array(DENSE)
    A.indices, A.indptr = A.indices.astype(index), A.indptr.astype(index)
    X = read(A)
    for part, array in ((X.crow, A.indptr), (X.col, A.indices), (X.values, A.data)):
        assert part.data_ptr() == array.ctypes.data
    B = torch_csr(DENSE)
    X = read(B)
    assert X.values.data_ptr() == B.values().data_ptr()


@pytest.mark.parametrize("index", [np.int16, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_indices_of_any_whole_type_are_read(index, form):
    matrix = scipy_sparse.csr_array(np.eye(3, 4, dtype=np.float32)).asformat(form)
    for name in ("indices", "indptr") if form != "coo" else ():
        setattr(matrix, name, getattr(matrix, name).astype(index))
    if form == "coo":
        matrix.coords = tuple(part.astype(index) for part in matrix.coords)
    X = read(matrix)
    assert is_canonical(X)
    assert X.to_dense().equal(torch.eye(3, 4))


@pytest.mark.parametrize("small", [False, True])
def test_duplicates_are_summed_columns_sorted_and_zeros_left_out(small, monkeypatch):
    if small:
        monkeypatch.setattr(arrays, "PART_ENTRIES", 2)
    indptr, indices, data = MESSY
    A = scipy_sparse.csr_array((data.copy(), indices.copy(), indptr.copy()), (3, 3))
    X = read(A)
    assert is_canonical(X)
    assert X.to_dense().tolist() == [[2, 0, 5], [0, 0, 0], [3, 0, 0]]
    # the input is not changed
    assert A.indices.tolist() == indices.tolist()
    assert A.data.tolist() == data.tolist()
    rows = np.repeat([0, 1, 2], np.diff(indptr))
    places = np.stack([rows, indices])[:, ::-1].copy()
    for form in (
        scipy_sparse.coo_array((data[::-1].copy(), tuple(places)), (3, 3)),
        torch.sparse_coo_tensor(torch.tensor(places), torch.tensor(data[::-1].copy()), (3, 3)),
    ):
        assert read(form).to_dense().tolist() == X.to_dense().tolist()


def test_entries_that_cancel_are_no_negative_entries():
    A = scipy_sparse.coo_array(([-1.0, 3.0], ([0, 0], [1, 1])), (2, 2))
    assert read(A).to_dense().tolist() == [[0, 2], [0, 0]]


def test_matrix_without_entries_is_read():
    for A in (scipy_sparse.csr_array((3, 4)), torch.zeros(3, 4).to_sparse()):
        X = read(A)
        assert (X.shape, X.nnz) == ((3, 4), 0)


def test_arrays_that_are_read_only_are_read():
    A = scipy_sparse.csr_array(DENSE)
    A.data.flags.writeable = A.indices.flags.writeable = A.indptr.flags.writeable = False
    assert read(A).to_dense().numpy().tolist() == DENSE.tolist()


def test_arrays_longer_than_their_rows_are_cut():
    A = scipy_sparse.csr_array(([1.0, 2.0, -9.0], [0, 1, 1], [0, 1, 2]), (2, 2))
    assert read(A).to_dense().tolist() == [[1, 0], [0, 2]]


VALUES = [
    (-1.5, "negative entry, the first at row 5, column 3: −1.5; NMF needs A ≥ 0"),
    (np.nan, "nan or inf entry, the first at row 5, column 3: nan; NMF needs finite numbers"),
    (np.inf, "nan or inf entry, the first at row 5, column 3: inf; NMF needs finite numbers"),
]


@pytest.mark.parametrize(("value", "message"), VALUES)
@pytest.mark.parametrize("kind", ["csr_array", "csc_array", "coo_array", "torch csr", "torch coo"])
def test_values_that_cannot_be_used_are_refused_with_their_place(kind, value, message):
    dense = DENSE.copy()
    dense[5, 3] = value
    library = {"t": r"A\.values\(\)"}.get(kind[0], r"A\.(data|maximum)")
    with pytest.raises(InvalidInput, match=f"A has 1 {message} .*{library}"):
        read(INPUTS[kind](dense))


def test_signed_values_are_read_where_they_are_allowed():
    assert read(scipy_sparse.csr_array(-DENSE), signed=True).to_dense().numpy().tolist() == (
        (-DENSE).tolist()
    )


def csr(indptr, indices, shape=(3, 3), form="csr"):
    """A matrix of scipy with these indices, which it checks only when it is made."""
    A = getattr(scipy_sparse, f"{form}_array")(np.eye(3))
    A.indptr, A.indices = np.asarray(indptr), np.asarray(indices)
    A.data = np.ones(len(A.indices))
    return A


BROKEN = [
    (([0, 1, 2, 3], [0, 3, 1]), InvalidInput, "index 3; indices must be from 0 to 2"),
    (([0, 1, 2, 3], [0, -1, 1]), InvalidInput, "index -1; indices must be from 0 to 2"),
    (([0, 2, 1, 3], [0, 1, 1]), InvalidInput, "fall from 2 to 1 at 1"),
    (([1, 1, 2, 3], [0, 1, 1]), InvalidInput, "are 1 to 3; they must be 0 to 3"),
    (([0, 1, 2, 9], [0, 1, 1]), InvalidInput, "are 0 to 9; they must be 0 to 3"),
    (([0, 1, 3], [0, 1, 1]), InvalidInput, "3 bounds, 3 indices and 3 values; 3 rows need 4"),
    (([0, 1, 2, 3], [0.0, 1.0, 1.0]), TypeError, "indices of dtype torch.float64"),
]


@pytest.mark.parametrize(("parts", "kind", "message"), BROKEN)
def test_indices_that_describe_no_matrix_are_refused(parts, kind, message):
    with pytest.raises(kind, match=message):
        read(csr(*parts))
    with pytest.raises(kind, match=message.replace("3 rows need", "3 columns need")):
        read(csr(*parts, form="csc"))


def test_indices_of_torch_that_were_not_checked_are_refused():
    parts = torch.tensor([0, 1, 2]), torch.tensor([0, 5]), torch.ones(2)
    for build in (torch.sparse_csr_tensor, torch.sparse_csc_tensor):
        with pytest.raises(InvalidInput, match="index 5; indices must be from 0 to 1"):
            read(build(*parts, (2, 2), check_invariants=False))
    places = torch.tensor([[0, 1], [0, 5]])
    with pytest.raises(InvalidInput, match="index 5; indices must be from 0 to 1"):
        read(torch.sparse_coo_tensor(places, torch.ones(2), (2, 2), check_invariants=False))
    A = scipy_sparse.coo_array(np.eye(2))
    A.coords = (np.array([0, -1]), np.array([0, 1]))
    with pytest.raises(InvalidInput, match="index -1; indices must be from 0 to 1"):
        read(A)


def test_what_holds_no_real_numbers_is_refused():
    for A in (
        scipy_sparse.csr_array(DENSE.astype(complex)),
        torch.tensor(DENSE.astype(complex)).to_sparse(),
    ):
        with pytest.raises(TypeError, match=r"dtype .*complex128; it must hold real numbers"):
            read(A)


def test_shapes_are_those_of_dense_inputs():
    with pytest.raises(InvalidInput, match=r"A has no rows, its shape is \(0, 4\)"):
        read(scipy_sparse.csr_array((0, 4)))
    assert read(scipy_sparse.csr_array((0, 4)), empty=True).shape == (0, 4)
    with pytest.raises(InvalidInput, match=r"7 features, the dictionary has 9; A\.T fits"):
        read(scipy_sparse.csr_array(DENSE), features=9)
    with pytest.raises(InvalidInput, match=r"shape \(3,\); it must be \(n, d\)"):
        read(scipy_sparse.coo_array(np.ones(3)))
    with pytest.raises(InvalidInput, match=r"shape \(2, 2, 2\); it must be \(n, d\)"):
        read(torch.ones(2, 2, 2).to_sparse())
    with pytest.raises(InvalidInput, match="dense dimensions"):
        read(torch.ones(2, 2).to_sparse(1))


def test_gradients_are_not_kept():
    A = torch.tensor(DENSE).to_sparse().requires_grad_()
    assert not read(A).values.requires_grad
