"""Files that may hold a sparse matrix, read whole: .npz of scipy.sparse, and .h5ad."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidInput
from ..tables import Wanted, imported, refusing, require_memory

# a name in an archive of scipy.sparse.save_npz
_SPARSE = {"format", "shape", "data"}


def is_sparse_archive(names: Iterable[str]) -> bool:
    """Whether these are the arrays in a file of scipy.sparse.save_npz."""
    return set(names) >= _SPARSE


def read_sparse(path: Path, wanted: Wanted) -> Any:
    """The sparse matrix in a file of scipy.sparse.save_npz, as a dense one or as it is."""
    sparse = imported("scipy.sparse", f"{path} is a sparse matrix")
    if wanted.sparse:
        return _by_rows(sparse, sparse.load_npz(path))
    with np.load(path, allow_pickle=False) as arrays:
        shape, dtype = tuple(map(int, arrays["shape"])), arrays["data"].dtype
    require_memory(path, shape, dtype, wanted.max_memory)
    return _dense(sparse.load_npz(path))


def read_h5ad(path: Path, wanted: Wanted) -> Any:
    """The matrix X of an AnnData file, observations as rows; a sparse one as a dense one or as it
    is."""
    h5py = imported("h5py", f"{path} is an .h5ad file")
    with refusing(path, RuntimeError), h5py.File(path, "r") as file:
        X = file.get("X")
        if X is None:
            raise InvalidInput(f"{path} has no matrix X: {', '.join(file) or 'nothing'} is there")
        if isinstance(X, h5py.Dataset):
            require_memory(path, X.shape, X.dtype, wanted.max_memory)
            return X[()]
        kind, shape = sparse_form(path, X)
        if not wanted.sparse:
            require_memory(path, shape, X["data"].dtype, wanted.max_memory)
        sparse = imported("scipy.sparse", f"{path} holds a sparse matrix")
        parts = X["data"][()], X["indices"][()], X["indptr"][()]
        matrix = getattr(sparse, f"{kind}_array")(parts, shape)
        return _by_rows(sparse, matrix) if wanted.sparse else _dense(matrix)


def sparse_form(path: Path, X: Any) -> tuple[str, tuple[int, int]]:
    """'csr' or 'csc', and the shape of a group of HDF5 that holds a sparse matrix."""
    # the second names are those of older files
    kind = X.attrs.get("encoding-type", X.attrs.get("h5sparse_format", "unknown"))
    kind = str(kind).removesuffix("_matrix")
    if kind not in ("csr", "csc"):
        raise InvalidInput(f"{path}: X is stored as {kind!r}; it must be an array, csr or csc")
    shape = X.attrs.get("shape", X.attrs.get("h5sparse_shape"))
    return kind, tuple(map(int, shape))


def _dense(matrix: Any) -> np.ndarray:
    return _checked(matrix).toarray()


def _by_rows(sparse: Any, matrix: Any) -> Any:
    """The matrix as a csr_array of scipy.sparse."""
    return sparse.csr_array(_checked(matrix))


def _checked(matrix: Any) -> Any:
    # an index outside the matrix would be written to memory outside it
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)
    return matrix
