"""Rows of files and objects that may be sparse, some at a time: .npz archives, .h5ad files, and
AnnData. Libraries that are optional are imported when such a file is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...backends.products import stored_share
from ...backends.sparse import SparseMatrix, concat
from ...errors import InvalidInput
from ...numerics import Part, compute_dtype
from ...planning.memory import available, size_of
from ..arrays import Expected, tensor_of, two_dimensional
from ..paths import only_one, refusing_damage
from ..tables import imported, refusing
from .arrays import canonical, is_sparse, sparse_matrix
from .whole import is_sparse_archive, sparse_form

_ANY = Expected(signed=True, empty=True)
# bytes that are decompressed to be skipped at a time
_SKIPPED = 1 << 20
# of what is not stored by rows, its entries and their indices are in memory several times meanwhile
_COPIES = 3


class StoredMatrix(NamedTuple):
    """Rows (n, d): the fields of shards.Shard without its name."""

    shape: tuple[int, int]
    dtype: torch.dtype
    read: Callable[[int, int], Part | SparseMatrix]
    stored: float | None = None


class _Member:
    """A .npy file in an archive, whose elements are read in order: going back begins anew."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name, self._file = path, f"{name}.npy", None
        with zipfile.ZipFile(path) as archive, archive.open(self._name) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0
            if version[0] > 1:
                header = np.lib.format.read_array_header_2_0
            self.shape, self.by_columns, self.dtype = header(file)
            self._offset = file.tell()
        self._size, self._at = math.prod(self.shape), 0
        if self.dtype.hasobject:
            raise InvalidInput(f"{path} holds objects; it must hold numbers")

    def read(self, first: int, last: int) -> np.ndarray:
        """The elements from first to last, a copy."""
        with refusing_damage(self._path):
            return self._read(first, last)

    def _read(self, first: int, last: int) -> np.ndarray:
        if self._file is None or first < self._at:
            self.close()
            self._file, self._at = zipfile.ZipFile(self._path).open(self._name), 0
            self._skip(self._offset)
        self._skip((first - self._at) * self.dtype.itemsize)
        content = bytearray((last - first) * self.dtype.itemsize)
        place, count = memoryview(content), 0
        while count < len(content):
            some = self._file.readinto(place[count:])
            if not some:
                raise InvalidInput(f"{self._path} is damaged: {self._name} in it is too short")
            count += some
        self._at = last
        if last == self._size:
            # which checks the sum of the whole
            self._file.read()
            self.close()
        return np.frombuffer(content, self.dtype)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _skip(self, count: int) -> None:
        while count > 0 and (some := len(self._file.read(min(count, _SKIPPED)))):
            count -= some


def open_npz(path: Path) -> StoredMatrix:
    """The array in an archive of NumPy, or the sparse matrix in one of scipy.sparse.save_npz. Rows
    of both are read in order; of other sparse formats than csr, all at once when it is opened."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    if not is_sparse_archive(names):
        return _open_array(path, _Member(path, only_one(path, names)))
    with np.load(path, allow_pickle=False) as arrays:
        form = arrays["format"].item()
        shape = tuple(map(int, arrays["shape"]))
        crow = arrays["indptr"] if "indptr" in names else None
    form = form.decode() if isinstance(form, bytes) else str(form)
    if form != "csr" or len(shape) != 2:
        entries = _Member(path, "data")
        _require_memory(path, form, math.prod(entries.shape), entries.dtype)
        scipy_sparse = imported("scipy.sparse", f"{path} is a sparse matrix by {form}")
        return _in_memory(scipy_sparse.load_npz(path), str(path))
    col, values = _Member(path, "indices"), _Member(path, "data")
    return _by_rows(crow, (col.read, values.read, values.dtype), shape, str(path))


def open_h5ad(path: Path) -> StoredMatrix:
    """The matrix X of an AnnData file, observations as rows; a sparse one that is stored by columns
    is read whole when it is opened."""
    h5py = imported("h5py", f"{path} is an .h5ad file")
    with refusing(path, RuntimeError), h5py.File(path, "r") as file:
        X = file.get("X")
        if X is None:
            raise InvalidInput(f"{path} has no matrix X: {', '.join(file) or 'nothing'} is there")
        if isinstance(X, h5py.Dataset):
            two_dimensional(np.broadcast_to(X.dtype.type(0), X.shape), str(path))
            like = np.empty(0, X.dtype)
            return StoredMatrix(X.shape, compute_dtype(like), partial(_slice_of, path, "X"))
        form, shape = sparse_form(path, X)
        crow, values = X["indptr"][()], X["data"].dtype
        if form == "csc":
            _require_memory(path, form, len(X["data"]), values)
            parts = X["data"][()], X["indices"][()], crow
            scipy_sparse = imported("scipy.sparse", f"{path} holds a sparse matrix")
            return _in_memory(scipy_sparse.csc_array(parts, shape), str(path))
    col = partial(_slice_of, path, "X/indices")
    return _by_rows(crow, (col, partial(_slice_of, path, "X/data"), values), shape, str(path))


def matrix_of(A: Any) -> Any:
    """X of an AnnData, observations as rows; a data frame all of whose columns are sparse as a
    sparse matrix, or as a dense one where it stores zeros; another input itself."""
    if all(hasattr(A, name) for name in ("X", "obs", "var", "layers")):
        return A.X
    # only such frames of pandas have it
    if hasattr(A, "columns") and hasattr(A, "dtypes") and hasattr(A, "sparse"):
        # what is not stored is zero in a sparse matrix
        zeros = all(getattr(dtype, "fill_value", None) == 0 for dtype in A.dtypes)
        return A.sparse.to_coo() if zeros else A.sparse.to_dense()
    return A


def loaded(A: Any) -> Any:
    """A whole matrix: X of an AnnData, read from its file where it is there; a list of sparse
    batches as one; another input itself."""
    A = matrix_of(A)
    if isinstance(A, list | tuple) and A and all(map(is_sparse, A)):
        parts = [sparse_matrix(part, _ANY, checks=False, zeros=True) for part in A]
        if len(widths := {part.shape[1] for part in parts}) > 1:
            raise InvalidInput(f"batches have different numbers of features: {sorted(widths)}")
        return concat(parts)
    return A.to_memory() if _is_backed(A) else A


def _is_backed(A: Any) -> bool:
    return all(hasattr(A, part) for part in ("to_memory", "format", "group", "shape"))


def backed(A: Any, name: str) -> StoredMatrix | None:
    """The rows of a sparse matrix that an AnnData has left in its file; None for another input."""
    if not _is_backed(A):
        return None
    if A.format != "csr":
        entries = A.group["data"]
        _require_memory(name, A.format, len(entries), entries.dtype)
        return _in_memory(A.to_memory(), name)

    def read(start: int, stop: int) -> SparseMatrix:
        rows = A[start:stop]
        parts = tuple(tensor_of(np.asarray(x)) for x in (rows.indptr, rows.indices, rows.data))
        return canonical(parts, rows.shape, name)

    entries, shape = A.group["data"], tuple(map(int, A.shape))
    share = len(entries) / max(1, math.prod(shape))
    return StoredMatrix(shape, compute_dtype(np.empty(0, entries.dtype)), read, share)


def _slice_of(path: Path, name: str, first: int, last: int) -> np.ndarray:
    h5py = imported("h5py", f"{path} is an .h5ad file")
    with refusing(path, RuntimeError), h5py.File(path, "r") as file:
        return file[name][first:last]


def _open_array(path: Path, member: _Member) -> StoredMatrix:
    two_dimensional(np.broadcast_to(member.dtype.type(0), member.shape), str(path))
    if member.dtype.kind not in "fiub":
        raise InvalidInput(f"{path} holds dtype {member.dtype}; it must hold real numbers")
    (n, d), dtype = member.shape, compute_dtype(np.empty(0, member.dtype))
    if member.by_columns and n > 1:
        whole = member.read(0, n * d).reshape(d, n).T
        return StoredMatrix((n, d), dtype, lambda i, j: whole[i:j])
    return StoredMatrix((n, d), dtype, lambda i, j: member.read(i * d, j * d).reshape(j - i, d))


def _by_rows(
    crow: np.ndarray,
    entries: tuple[Callable, Callable, np.dtype],
    shape: tuple[int, int],
    name: str,
) -> StoredMatrix:
    """Compressed rows. entries: functions that read columns and values, and the dtype of these."""
    col, values, dtype = entries
    if dtype.kind not in "fiub":
        raise InvalidInput(f"{name} holds dtype {dtype}; it must hold real numbers")
    if crow.ndim != 1 or crow.dtype.kind not in "iu" or len(crow) != shape[0] + 1:
        raise InvalidInput(f"{name} has {len(crow)} bounds of rows; {shape[0]} rows need one more")
    if len(crow) and (crow[0] != 0 or (crow[1:] < crow[:-1]).any()):
        raise InvalidInput(f"the bounds of {name}'s rows fall, or do not begin with 0")

    def read(start: int, stop: int) -> SparseMatrix:
        first, last = int(crow[start]), int(crow[stop])
        parts = crow[start : stop + 1] - first, col(first, last), values(first, last)
        return canonical(tuple(map(tensor_of, parts)), (stop - start, shape[1]), name)

    share = int(crow[-1]) / max(1, math.prod(shape))
    return StoredMatrix(shape, compute_dtype(np.empty(0, dtype)), read, share)


def _in_memory(A: Any, name: str) -> StoredMatrix:
    X = sparse_matrix(A, Expected(name, signed=True, empty=True))
    return StoredMatrix(X.shape, X.dtype, lambda i, j: X[i:j], stored_share(X))


def _require_memory(path: Path | str, form: str, entries: int, dtype: np.dtype) -> None:
    """Raise InvalidInput if a matrix that is read whole does not fit in memory."""
    size, limit = _COPIES * entries * (dtype.itemsize + 8), available()
    if size > limit:
        raise InvalidInput(
            f"{path} is stored as {form}, which is read whole and takes {size_of(size)}; "
            f"{size_of(limit)} are available. Write it by rows (A.tocsr()), which are read in "
            "passes"
        )
