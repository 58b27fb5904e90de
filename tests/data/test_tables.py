"""Matrices that other programs write (tables): read, or refused with the place of the fault."""

from __future__ import annotations

import io
import random
import sys
import warnings

import numpy as np
import pytest
import torch

import fastnmf
from fastnmf import NMF, InvalidInput
from fastnmf.data import tables
from fastnmf.files import read_matrix, write_matrix

A = np.array([[0.5, 0.0, 2.0], [1.0, 3.25, 0.0]])

# what is written in the file; header as given
READ = {
    "numbers": ("0.5,0,2\n1,3.25,0\n", "auto"),
    "names": ("a,b,c\n0.5,0,2\n1,3.25,0\n", "auto"),
    "one name among numbers": ("1,2,c\n0.5,0,2\n1,3.25,0\n", "auto"),
    "numbers as names, as pandas has them": ("0,1,2\n0.5,0,2\n1,3.25,0\n", "auto"),
    "numbers as names, by request": ("7,8,9\n0.5,0,2\n1,3.25,0\n", True),
    "labels of rows, as pandas writes them": (",a,b,c\nx,0.5,0,2\ny,1,3.25,0\n", "auto"),
    "labels of rows, as R writes them": ("a,b,c\nx,0.5,0,2\ny,1,3.25,0\n", "auto"),
    "tabs": ("0.5\t0\t2\n1\t3.25\t0\n", "auto"),
    "semicolons": ("0.5; 0; 2\n1; 3.25; 0\n", "auto"),
    "spaces, as np.savetxt has them": ("# made by us\n0.5 0 2\n1 3.25 0\n", "auto"),
    "quoted": ('"a","b,c","d"\n"0.5","0","2"\n"1","3.25","0"\n', "auto"),
    "ends of lines and of the file": ("\ufeffa,b,c\r\n\r\n0.5,0,2\r\n1,3.25,0", "auto"),
    "exponents": ("5e-1,0e0,2E0\n1.,+3.25,0\n", "auto"),
}


@pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")
@pytest.mark.parametrize("case", READ)
def test_text_is_read(case, tmp_path):
    text, header = READ[case]
    path = tmp_path / "A.csv"
    path.write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_matrix(path, header=header), A)
    np.testing.assert_array_equal(tables.read_stream(text.encode(), header), A)


def test_table_without_a_header_keeps_its_first_line(tmp_path):
    (tmp_path / "A.csv").write_text("0,1,2\n3,4,5\n")
    assert read_matrix(tmp_path / "A.csv", header=False).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,1,2\n3,4,5\n", "taken as a header"),
        ("1,oops\n3,4\n", "taken as a header, since 'oops' is no number; header=False reads"),
        (",a\nx,1\ny,2\n", "left out, as labels"),
    ],
)
def test_guess_about_a_table_warns(text, said, tmp_path):
    (tmp_path / "A.csv").write_text(text)
    with pytest.warns(fastnmf.FastnmfWarning, match=said):
        read_matrix(tmp_path / "A.csv")


def test_plain_table_is_read_without_a_warning(tmp_path):
    (tmp_path / "A.csv").write_text("a,b\n1,2\n3,4\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_matrix(tmp_path / "A.csv").shape == (2, 2)


@pytest.mark.parametrize(("text", "shape"), [("1,2,3\n", (1, 3)), ("1\n2\n3\n", (3, 1))])
def test_one_row_or_column_is_a_matrix(text, shape, tmp_path):
    (tmp_path / "A.tsv").write_text(text)
    assert read_matrix(tmp_path / "A.tsv").shape == shape


AT_FAULT = {
    "word": ("1,2\n3,x\n", "line 2, column 2: 'x' is no number; fill it in, or leave"),
    "word under a name": ("a,b\n1,2\n\n3,x\n", r"line 4, column 2 \('b'\): 'x' is no number"),
    "labels with a name": ("gene,a\nTP53,1\n", r"line 2, column 1 \('gene'\): 'TP53' is no num"),
    "word beside labels": (",a\nx,1\ny,z\n", r"line 3, column 2 \('a'\): 'z' is no number"),
    "word beside labels of R": ("a,b\nx,1,2\ny,1,z\n", r"line 3, column 3 \('b'\): 'z' is no num"),
    "empty cell": ("1,2\n3,\n", "line 2, column 2: an empty cell is no number"),
    "decimal commas in the first row": (
        "1,5;2,5\n3;4\n",
        "line 1, column 1: '1,5' is no number; w",
    ),
    "decimal comma": ("1;2\n1,5;2\n", "line 2, column 1: '1,5' is no number; write decimals with"),
    "underscore": ("1,2\n1_0,2\n", "line 2, column 1: '1_0' is no number"),
    "short row": ("1,2\n3\n", "line 2: 1 cells, the first row has 2"),
    "long row": ("1,2\n3,4,5\n", "line 2: 3 cells, the first row has 2"),
    "long row beside labels": (",a\nx,1\ny,1,2\n", "line 3: 3 cells, the first row has 2"),
    "names alone": ("a,b\n", "has a header and no rows"),
    "a cell without an end": (
        "1," + "9" * 200_000 + "x\n1,2\n",
        "cannot be read as a table: field",
    ),
    "nothing": ("", "is empty; it must hold a matrix"),
    "comments alone": ("# a\n\n", "is empty; it must hold a matrix"),
    "no text": ("1,2\n\ufffd\0,3\n", "line 2, column 1"),
}


@pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")
@pytest.mark.parametrize("case", AT_FAULT)
def test_fault_in_a_text_is_named_with_its_place(case, tmp_path):
    text, message = AT_FAULT[case]
    path = tmp_path / "A.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=message) as refusal:
        read_matrix(path)
    assert str(path) in str(refusal.value)


def test_header_of_another_kind_is_refused(tmp_path):
    (tmp_path / "A.csv").write_text("1,2\n")
    with pytest.raises(InvalidInput, match="header='no' must be True, False or 'auto'"):
        read_matrix(tmp_path / "A.csv", header="no")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, bool])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_has_the_digits_to_give_the_same_numbers(suffix, dtype, tmp_path):
    matrix = (np.random.default_rng(0).random((5, 4)) * 3).astype(dtype)
    write_matrix(tmp_path / f"A{suffix}", matrix)
    np.testing.assert_array_equal(read_matrix(tmp_path / f"A{suffix}").astype(dtype), matrix)


def test_array_that_is_piped_in_is_read():
    buffer = io.BytesIO()
    np.save(buffer, A.astype(np.float32))
    assert tables.read_stream(buffer.getvalue(), "auto").dtype == np.float32
    with pytest.raises(InvalidInput, match=r"neither a \.npy file nor a text table"):
        tables.read_stream(b"PK\3\4\0\0", "auto")


SPARSE = ["csr", "csc", "coo", "bsr", "dia"]


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_matrix_is_read_as_a_dense_one(kind, tmp_path):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    path = tmp_path / "A.npz"
    sparse.save_npz(path, sparse.coo_matrix(A).asformat(kind))
    np.testing.assert_array_equal(read_matrix(path), A)
    Z, D = NMF(2, seed=0).fit(read_matrix(path))
    assert (Z.shape, D.shape) == ((2, 2), (2, 3))


def test_sparse_matrix_that_would_not_fit_is_refused_with_its_size(tmp_path):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    path = tmp_path / "A.npz"
    sparse.save_npz(path, sparse.csr_matrix((10**6, 10**6), dtype=np.float32))
    message = r"A.npz holds 1,000,000 × 1,000,000 numbers, which take 4TB as a dense matrix; .*"
    with pytest.raises(InvalidInput, match=message + "are read in passes"):
        read_matrix(path)
    sparse.save_npz(path, sparse.csr_matrix(A))
    with pytest.raises(InvalidInput, match="take 48B as a dense matrix; 40B may be used"):
        read_matrix(path, max_memory=40)


def test_index_outside_a_sparse_matrix_is_refused(tmp_path):
    """It would be written to memory outside of the dense one."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    parts = {"data": np.ones(1), "indices": np.array([10**8]), "indptr": np.array([0, 1, 1])}
    np.savez(tmp_path / "A.npz", format=b"csr", shape=np.array([2, 3]), **parts)
    with pytest.raises(InvalidInput, match=r"cannot be read as \.npz"):
        read_matrix(tmp_path / "A.npz")


@pytest.mark.parametrize(
    ("name", "module", "advice"),
    [
        ("A.parquet", "pyarrow", "pip install pyarrow"),
        ("A.h5ad", "h5py", "pip install h5py"),
        ("A.npz", "scipy", "pip install scipy"),
    ],
)
def test_package_that_is_missing_is_named(name, module, advice, tmp_path, monkeypatch):
    parts = {"data": np.ones(1), "indices": np.array([0]), "indptr": np.array([0, 1, 1])}
    np.savez(tmp_path / "A.npz", format=b"csr", shape=np.array([2, 3]), **parts)
    (tmp_path / name).touch()
    for found in [found for found in sys.modules if found.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, found)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"{name} .*{advice}"):
        read_matrix(tmp_path / name)


def test_parquet_is_read_without_the_index(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = tmp_path / "A.parquet"
    frame = pandas.DataFrame(A.astype(np.float32), columns=list("abc"), index=["x", "y"])
    frame.to_parquet(path)
    np.testing.assert_array_equal(read_matrix(path), A)
    assert read_matrix(path).dtype == np.float32
    frame.assign(c=[1, None]).to_parquet(path)
    with pytest.raises(InvalidInput, match="column 'c' has missing values, the first in row 1"):
        read_matrix(path)
    frame.assign(c=["u", "v"]).to_parquet(path)
    with pytest.raises(InvalidInput, match=r"column 'c' holds .*string.*leave it out"):
        read_matrix(path)
    frame.to_parquet(path)
    with pytest.raises(InvalidInput, match="take 24B as a dense matrix; 20B may be used"):
        read_matrix(path, max_memory=20)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "backed"])
def test_x_of_an_h5ad_file_is_read(kind, tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    X = getattr(sparse, f"{kind}_matrix")(A) if kind in ("csr", "csc") else A
    anndata.AnnData(X).write_h5ad(tmp_path / "A.h5ad")
    np.testing.assert_array_equal(read_matrix(tmp_path / "A.h5ad"), A)
    with pytest.raises(InvalidInput, match="take 48B as a dense matrix; 40B may be used"):
        read_matrix(tmp_path / "A.h5ad", max_memory=40)


@pytest.mark.parametrize("suffix", [".parquet", ".h5ad"])
def test_damaged_file_of_a_library_is_refused(suffix, tmp_path):
    path = tmp_path / f"A{suffix}"
    if suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(arrow.table({"a": [1.0, 2.0], "b": [3.0, 4.0]}), path)
    else:
        h5py = pytest.importorskip("h5py", reason="h5py is not installed")
        with h5py.File(path, "w") as file:
            file["X"] = A
    whole = path.read_bytes()
    chosen = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole[: chosen.randrange(len(whole) + 1)])
        for _ in range(chosen.randrange(4) if damaged else 0):
            damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        path.write_bytes(damaged)
        try:
            matrix = read_matrix(path)
        except InvalidInput:
            continue
        assert matrix.ndim == 2
    for content in (b"", b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=f"A{suffix} cannot be read as {suffix}"):
            read_matrix(path)


def test_memoryview_is_a_matrix():
    view = memoryview(A)
    Z, D = NMF(2, seed=0).fit(view)
    expected = NMF(2, seed=0).fit(A)
    assert torch.equal(Z, expected[0])
    assert torch.equal(D, expected[1])
    model = NMF(2).load_dictionary(D)
    assert torch.equal(model.encode(view), model.encode(A))
    assert torch.equal(model.decode(memoryview(Z.numpy())), model.decode(Z.numpy()))
    assert torch.equal(NMF(2, seed=0).partial_fit(view).D, NMF(2, seed=0).partial_fit(A).D)
    assert torch.equal(fastnmf.nnls(view, D), fastnmf.nnls(A, D))
    with pytest.raises(InvalidInput, match=r"A has shape \(6,\); it must be \(n, d\)"):
        NMF(2).fit(memoryview(b"abcdef"))
    with pytest.raises(InvalidInput, match="negative"):
        NMF(2).fit(memoryview(-A))
