"""Data frames, nested lists and arrays of other libraries: the matrix, and clear errors, in every
call that takes a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastnmf
from fastnmf import NMF, InvalidInput
from fastnmf.data.arrays import read_matrix
from fastnmf.frames import array_of

EXPECTED = np.random.default_rng(0).random((30, 5))
LIBRARIES = ["pandas", "polars", "array_api_strict"]


def made(library, values=EXPECTED):
    """The values as a matrix of the library."""
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "array_api_strict":
        return module.asarray(values)
    names = [f"gene {j}" for j in range(values.shape[1])]
    if library == "polars":
        return module.DataFrame(values, schema=names)
    return module.DataFrame(values, columns=names)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, np.bool_])
def test_numbers_are_read_as_from_an_array(library, dtype):
    values = (EXPECTED * 3).astype(dtype)
    found, expected = (read_matrix(A, "cpu") for A in (made(library, values), values))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("library", [*LIBRARIES, "lists"])
def test_every_call_takes_them(library):
    A = EXPECTED.tolist() if library == "lists" else made(library)
    nmf, plain = NMF(3, seed=0, tol=0, max_iter=5), NMF(3, seed=0, tol=0, max_iter=5)
    Z, D = plain.fit(EXPECTED)
    for F, expected in zip(nmf.fit(A), (Z, D), strict=True):
        assert torch.equal(F, expected)
    assert torch.equal(nmf.encode(A), plain.encode(EXPECTED))
    of_D = D.tolist() if library == "lists" else made(library, D.numpy())
    assert torch.equal(fastnmf.nnls(A, of_D), fastnmf.nnls(EXPECTED, D))
    assert torch.equal(NMF(3).load_dictionary(of_D).D, D)
    of_Z = Z.tolist() if library == "lists" else made(library, Z.numpy())
    assert torch.equal(nmf.decode(of_Z), plain.decode(Z))
    started = NMF(3, init=(of_Z, of_D), tol=0, max_iter=2).fit(A)[1]
    assert torch.equal(started, NMF(3, init=(Z, D), tol=0, max_iter=2).fit(EXPECTED)[1])
    assert nmf.partial_fit(A).online_info_.rows == 30


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_column_of_text_is_named(library):
    frame = pytest.importorskip(library, reason=f"{library} is not installed").DataFrame
    A = frame({"gene 1": [1.0, 2.0], "cell type": ["T", "B"]})
    for call in (NMF(2).fit, lambda A: fastnmf.nnls(A, np.ones((1, 2)))):
        with pytest.raises(TypeError, match=r"column 'cell type' of A .*leave it out"):
            call(A)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_kinds_of_columns_are_mixed_and_missing_values_are_named(library):
    frame = pytest.importorskip(library, reason=f"{library} is not installed").DataFrame
    A = frame({"flag": [True, False], "count": [1, 2], "value": [0.5, 1.5]})
    np.testing.assert_array_equal(array_of(A, "A"), [[1, 1, 0.5], [0, 2, 1.5]])
    A = frame({"count": [1, None], "value": [0.5, 1.5]})
    with pytest.raises(InvalidInput, match="1 nan or inf entry, the first at row 1, column 0"):
        NMF(1).fit(A)


def test_dtypes_of_pandas_own_become_float64():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    A = pandas.DataFrame({"a": [1, 0], "b": [0.5, 2.0]}).convert_dtypes()
    assert read_matrix(A, "cpu").tolist() == [[1.0, 0.5], [0.0, 2.0]]
    A["a"] = pandas.array([1, None], dtype="Int64")
    with pytest.raises(InvalidInput, match="row 1, column 0: nan"):
        read_matrix(A, "cpu")
    sparse = pandas.DataFrame({"a": pandas.arrays.SparseArray([0.0, 1.0])})
    with pytest.raises(TypeError, match=r"A has sparse columns; give A.sparse.to_coo\(\)"):
        read_matrix(sparse, "cpu")


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_frame_of_sparse_columns_is_a_sparse_matrix_where_zeros_are_not_stored(fill):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("scipy", reason="SciPy is not installed")
    A = np.random.default_rng(0).choice([fill, 2.0, 3.0], (30, 6), p=[0.6, 0.2, 0.2])
    of_sparse = pandas.SparseDtype("float64", fill)
    frame = pandas.DataFrame(A).astype(of_sparse)
    options = {"seed": 0, "max_iter": 10, "tol": 0}
    expected, model = NMF(2, **options), NMF(2, **options)
    expected.fit(A)
    model.fit(frame)
    assert (model.fit_info_.density is not None) == (fill == 0)
    torch.testing.assert_close(model.D, expected.D, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.encode(frame), expected.encode(A), rtol=1e-6, atol=1e-6)
    assert NMF(2, **options).partial_fit(frame).online_info_.rows == 30
    found = [fastnmf.stability(each, 2, runs=2, **options).dictionary for each in (A, frame)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_arrays_are_not_copied():
    A = EXPECTED.copy()
    frame = made("pandas", A)
    assert np.shares_memory(array_of(frame, "A"), frame.to_numpy())

    class OnlyDlpack:
        def __dlpack__(self, **options):
            return A.__dlpack__(**options)

        def __dlpack_device__(self):
            return A.__dlpack_device__()

    found = read_matrix(OnlyDlpack(), "cpu")
    assert found.data_ptr() == A.ctypes.data


@pytest.mark.parametrize(
    ("A", "message"),
    [
        ([[1.0, 2.0], [3.0]], "the rows of A are not of one length"),
        ([[1.0], []], "the rows of A are not of one length"),
        ([[]], "batch 0 of A is a list"),
        ([[1, -2], [3, 4]], "A has 1 negative entry, the first at row 0, column 1: −2"),
    ],
    ids=str,
)
def test_lists_that_are_no_matrix_are_refused(A, message):
    with pytest.raises((InvalidInput, TypeError), match=message):
        NMF(1).fit(A)


def test_lists_of_batches_stay_batches():
    assert array_of([EXPECTED[:2], EXPECTED[2:]], "A") is None
    assert array_of([(EXPECTED, "label")], "A") is None
    assert array_of(["A.npy"], "A") is None
    assert array_of([], "A") is None
