"""Rows of files and objects that may be sparse: formats, order of reading, damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf import NMF
from fastnmf.backends.sparse import SparseMatrix
from fastnmf.data.paths import refusing_damage
from fastnmf.data.sparse import files
from fastnmf.data.sparse.files import backed, matrix_of, open_h5ad, open_npz
from fastnmf.errors import InvalidInput
from fastnmf.files import read_matrix
from fastnmf.planning import memory

scipy_sparse = pytest.importorskip("scipy.sparse", reason="scipy makes these inputs")
DENSE = np.random.default_rng(0).integers(0, 3, (9, 7)).astype(np.float32)
DENSE[4], DENSE[:, 2] = 0, 0


def dense(rows):
    return rows.to_dense().numpy() if isinstance(rows, SparseMatrix) else np.asarray(rows)


SHARE = float((DENSE != 0).mean())


def check(found, *, stored=SHARE):
    """In order, again from the start, backwards, and no rows."""
    assert (tuple(found.shape), found.dtype, found.stored) == ((9, 7), torch.float32, stored)
    for first, last in ((0, 2), (2, 7), (7, 9), (0, 9), (3, 5), (1, 2), (4, 5), (5, 5)):
        rows = found.read(first, last)
        assert isinstance(rows, SparseMatrix) == (stored is not None)
        np.testing.assert_array_equal(dense(rows), DENSE[first:last])


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
def test_rows_of_a_sparse_archive_are_read(form, compressed, tmp_path):
    A = getattr(scipy_sparse, f"{form}_array")(DENSE)
    scipy_sparse.save_npz(tmp_path / "A.npz", A, compressed=compressed)
    check(open_npz(tmp_path / "A.npz"))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_a_dense_archive_are_read(save, order, tmp_path):
    save(tmp_path / "A.npz", other=np.ones(3), A=np.asarray(DENSE, order=order))
    check(open_npz(tmp_path / "A.npz"), stored=None)


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_rows_of_an_h5ad_file_are_read(form, tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    X = DENSE if form == "dense" else getattr(scipy_sparse, f"{form}_matrix")(DENSE)
    anndata.AnnData(X).write_h5ad(tmp_path / "A.h5ad")
    options = {"stored": None} if form == "dense" else {}
    check(open_h5ad(tmp_path / "A.h5ad"), **options)
    open_file = anndata.read_h5ad(tmp_path / "A.h5ad", backed="r")
    if form != "dense":
        check(backed(matrix_of(open_file), "A"), **options)
    open_file.file.close()


def test_matrix_of_an_anndata_is_its_x():
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    X = scipy_sparse.csr_matrix(DENSE)
    np.testing.assert_array_equal(matrix_of(anndata.AnnData(X)).toarray(), DENSE)
    assert matrix_of(DENSE) is DENSE
    assert backed(X, "A") is None


def test_sparse_archive_by_rows_needs_no_scipy(tmp_path, monkeypatch):
    scipy_sparse.save_npz(tmp_path / "A.npz", scipy_sparse.csr_array(DENSE))
    monkeypatch.setattr(files, "imported", lambda *_: pytest.fail("scipy was imported"))
    check(open_npz(tmp_path / "A.npz"))


def test_entries_of_a_file_are_brought_into_order(tmp_path):
    parts = {"indptr": np.array([0, 3, 3]), "indices": np.array([2, 0, 2])}
    np.savez(
        tmp_path / "A.npz", format="csr", shape=(2, 3), data=np.array([1.0, 0.0, 4.0]), **parts
    )
    rows = open_npz(tmp_path / "A.npz").read(0, 2)
    assert (rows.to_dense().tolist(), rows.nnz) == ([[0, 0, 5], [0, 0, 0]], 1)


BROKEN = [
    ({"indptr": np.array([0, 2, 1])}, "bounds of .*A.npz's rows fall"),
    ({"indptr": np.array([0, 2])}, "2 bounds of rows; 2 rows need one more"),
    ({"indices": np.array([0, 9])}, "has an index 9; indices must be from 0 to 2"),
    ({"indices": np.array([0])}, "indices.npy in it is too short"),
    ({"data": np.array([1, 2j])}, "dtype complex128; it must hold real numbers"),
    ({"format": "xyz"}, "cannot be read as"),
]


@pytest.mark.parametrize(("parts", "message"), BROKEN)
def test_damaged_archives_are_refused(parts, message, tmp_path):
    right = {
        "format": "csr",
        "shape": (2, 3),
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 1]),
        "data": np.ones(2),
    }
    path = tmp_path / "A.npz"
    np.savez(path, **right | parts)
    with pytest.raises(InvalidInput, match=message), refusing_damage(path):
        open_npz(path).read(0, 2)


def test_what_is_read_whole_must_fit_in_memory(tmp_path, monkeypatch):
    scipy_sparse.save_npz(tmp_path / "A.npz", scipy_sparse.csc_array(DENSE))
    monkeypatch.setattr(files, "available", lambda: 100)
    with pytest.raises(InvalidInput, match=r"stored as csc, .*A\.tocsr\(\)"):
        open_npz(tmp_path / "A.npz")


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_read_matrix_keeps_a_sparse_matrix_where_that_is_wanted(form, tmp_path):
    A = getattr(scipy_sparse, f"{form}_array")(DENSE)
    scipy_sparse.save_npz(tmp_path / "A.npz", A)
    found = read_matrix(tmp_path / "A.npz", sparse=True, max_memory=10)
    assert isinstance(found, scipy_sparse.csr_array)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray(), DENSE)
    assert isinstance(read_matrix(tmp_path / "A.npz"), np.ndarray)
    np.save(tmp_path / "A.npy", DENSE)
    assert isinstance(read_matrix(tmp_path / "A.npy", sparse=True), np.ndarray)
    scipy_sparse.save_npz(tmp_path / "A.npz", A.astype(np.complex64))
    with pytest.raises(InvalidInput, match="complex64; it must hold real numbers"):
        read_matrix(tmp_path / "A.npz", sparse=True)


@pytest.fixture(scope="module")
def cells():
    return scipy_sparse.random_array((700, 40), density=0.1, dtype=np.float32, rng=0, format="csr")


def fitted(A, **options):
    model = NMF(4, seed=0, max_iter=8, tol=0, init="random", **options)
    Z, D = model.fit(A)
    return Z, D, model


def test_files_are_fitted_as_the_matrix_in_memory_is(cells, tmp_path):
    paths = [tmp_path / "A.npz", tmp_path / "B.npz"]
    for path, rows in zip(paths, (cells[:300], cells[300:]), strict=True):
        scipy_sparse.save_npz(path, rows)
    scipy_sparse.save_npz(tmp_path / "whole.npz", cells)
    Z, D, model = fitted(cells)
    for given in (paths, tmp_path / "whole.npz"):
        found = fitted(given)
        assert found[0].equal(Z)
        assert found[1].equal(D)
        assert model.encode(given).equal(model.encode(cells))


def test_files_are_read_in_passes_where_they_do_not_fit(
    cells, tmp_path, small_budgets, monkeypatch
):
    paths = [tmp_path / "A.npz", tmp_path / "B.npz"]
    for path, rows in zip(paths, (cells[:300], cells[300:]), strict=True):
        scipy_sparse.save_npz(path, rows)
    Z, D, _ = fitted(cells, accelerate=False)
    monkeypatch.setattr(memory, "LEAST_ROWS", 16)
    share = cells.nnz / (700 * 40)
    most = memory.Needs(700, 40, 4, 4, "memory", "random", stored=share).streamed(97)
    found = fitted(paths, max_memory=most, accelerate=False)
    assert found[2].fit_info_.passes > 8
    torch.testing.assert_close(found[0], Z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], D, rtol=1e-4, atol=1e-5)


def test_values_in_files_are_refused_with_their_place(cells, tmp_path):
    wrong = cells.copy()
    wrong.data[-1] = -1
    scipy_sparse.save_npz(tmp_path / "A.npz", wrong)
    row = int(np.flatnonzero(np.diff(wrong.indptr))[-1])
    with pytest.raises(InvalidInput, match=f"1 negative entry, the first in .*A.npz at row {row},"):
        fitted(tmp_path / "A.npz")


def test_anndata_is_fitted_in_memory_and_in_its_file(cells, tmp_path):
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    A = anndata.AnnData(scipy_sparse.csr_matrix(cells))
    A.write_h5ad(tmp_path / "A.h5ad")
    Z, D, model = fitted(cells)
    codes, online = model.encode(cells), NMF(4, seed=0).partial_fit(cells[:64])
    in_file = anndata.read_h5ad(tmp_path / "A.h5ad", backed="r")
    for given in (A, A.X, in_file, in_file.X, tmp_path / "A.h5ad"):
        found = fitted(given)
        assert found[0].equal(Z)
        assert found[1].equal(D)
        assert model.encode(given).equal(codes)
    for given in (A[:64], in_file[:64]):
        assert NMF(4, seed=0).partial_fit(given).D.equal(online.D)
    in_file.file.close()
