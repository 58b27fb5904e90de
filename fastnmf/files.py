"""Matrices in files: read with messages that say what is wrong, written atomically."""

# safetensors has no types; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import tables
from .data.arrays import Expected, two_dimensional
from .data.paths import check_output, existing, only_one, refusing_damage, replacing, writing
from .data.sparse import whole
from .data.sparse.arrays import is_sparse, sparse_matrix
from .data.sparse.codes import SUFFIX, save_npz
from .errors import InvalidInput
from .isolation import isolated


@isolated
def read_matrix(
    path: str | os.PathLike[str],
    *,
    header: bool | str = "auto",
    max_memory: int | str | None = None,
    sparse: bool = False,
) -> Any:
    """Read a matrix from a file.

    Parameters
    ----------
    path : path
        A .npy, .npz, .pt, .pth or .safetensors file; of several arrays in it one must be named 'A'
        or 'arr_0'. A .npz file that ``scipy.sparse.save_npz`` wrote. A .csv or .tsv file, a row in
        each line, divided by tabs, semicolons, commas or spaces. A .parquet file, of which every
        column holds numbers. An .h5ad file, of which X is read.
    header : {'auto', True, False}, default 'auto'
        Whether the first line of a .csv or .tsv file holds names. 'auto' takes it as names if one
        of its cells is no number, or if they are 0, 1, 2 …, as pandas writes them.
    max_memory : int or str, optional
        Bytes that a sparse matrix, a .parquet or an .h5ad file may take as a dense matrix, such as
        '2GB'; by default 70 % of the available memory.
    sparse : bool, default False
        Whether a sparse matrix stays sparse: it is then a ``scipy.sparse.csr_array``. By default it
        becomes a dense one. `NMF` takes the path of such a file itself, and never makes it dense.

    Returns
    -------
    ndarray, Tensor or csr_array (n, d)
        The matrix on the CPU: a tensor of a .pt, .pth or .safetensors file, else an array. It has
        the dtype of the file, and float64 of a text. A .npy file is mapped and not read.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    InvalidInput
        (a ValueError) For a file that is damaged or holds no matrix of real numbers, and for a
        matrix that does not fit in memory.
    ModuleNotFoundError
        If the package is not installed that reads such a file: scipy for sparse matrices, pyarrow
        for .parquet, h5py for .h5ad.

    Notes
    -----
    Nothing in a file is executed: files with pickled objects are refused. A first column of a text
    that has no name in the header holds labels of rows: it is left out, with a warning.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from fastnmf.files import read_matrix, write_matrix
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "A.npz")
    ...     write_matrix(path, np.eye(2))
    ...     print(read_matrix(path))
    [[1. 0.]
     [0. 1.]]
    """
    path = existing(path, READERS)
    if not isinstance(header, bool) and header != "auto":
        raise InvalidInput(f"header={header!r} must be True, False or 'auto'")
    wanted = tables.Wanted(header, max_memory, sparse)
    with refusing_damage(path):
        matrix = READERS[path.suffix](path, wanted)
    if sparse and is_sparse(matrix):
        if matrix.dtype.kind not in "fiub":
            raise InvalidInput(f"{path} holds dtype {matrix.dtype}; it must hold real numbers")
        return matrix
    return real_matrix(matrix, str(path))


def real_matrix(matrix: Any, name: str) -> np.ndarray | Tensor:
    """Return what was read under this name. Raises InvalidInput if it is no real matrix (n, d)."""
    if isinstance(matrix, Tensor):
        odd = matrix.is_complex() or matrix.is_quantized or matrix.is_meta
        real = matrix.layout == torch.strided and not odd
    else:
        real = isinstance(matrix, np.ndarray) and matrix.dtype.kind in "fiub"
    if not real:
        given = type(matrix).__name__
        if isinstance(matrix, np.ndarray | Tensor):
            given = f"dtype {matrix.dtype} and shape {tuple(matrix.shape)}"
        raise InvalidInput(f"{name} holds {given}; it must hold a dense, real matrix (n, d)")
    return two_dimensional(matrix, name)


@isolated
def write_matrix(path: str | os.PathLike[str], matrix: Any) -> None:
    """Write a matrix to a file.

    Parameters
    ----------
    path : path
        A .npy, .npz, .pt, .pth, .safetensors, .csv or .tsv file; links are followed.
    matrix : ndarray or Tensor (n, d)
        A sparse one, of torch or SciPy, goes to an .npz file as ``scipy.sparse.save_npz`` writes
        it. In other .npz and in .safetensors files the matrix is named 'A'. bfloat16 is widened to
        float32 in .npy and .npz files, which have no such dtype. A text has as many digits as give
        the same numbers.

    Raises
    ------
    InvalidInput
        (a ValueError) For another suffix, or a folder.
    FileNotFoundError
        If the folder of the file does not exist.
    PermissionError
        If the file may not be written.

    Notes
    -----
    A file of this name is replaced in one step once the new one is complete on the disk, and stays
    as it was if writing fails.

    Examples
    --------
    >>> import os, tempfile
    >>> import torch
    >>> from fastnmf.files import read_matrix, write_matrix
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "A.safetensors")
    ...     write_matrix(path, torch.ones(2, 3))
    ...     print(read_matrix(path).shape)
    torch.Size([2, 3])
    """
    path = check_output(path, WRITERS)
    if not is_sparse(matrix):
        with replacing(path) as part:
            WRITERS[path.suffix](part, matrix)
        return
    if path.suffix != SUFFIX:
        raise InvalidInput(f"{path}: a sparse matrix is written to an {SUFFIX} file; give one")
    rows = sparse_matrix(matrix, Expected("matrix", signed=True, empty=True))
    with replacing(path) as part, writing(path):
        save_npz(part, rows)


def _read_npz(path: Path, wanted: tables.Wanted) -> Any:
    # np.load would take any file that NumPy wrote
    with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
        if not whole.is_sparse_archive(arrays.files):
            return arrays[only_one(path, arrays.files)]
    return whole.read_sparse(path, wanted)


def _read_pt(path: Path) -> Tensor:
    try:
        with warnings.catch_warnings():
            # about types of tensors that are refused below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message suggests executing the file
        hint = "it is damaged or holds more than tensors; write it by torch.save(A, path)"
        raise InvalidInput(f"{path} cannot be read as {path.suffix}: {hint}") from error
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = tensors[only_one(path, list(tensors))]
    if not isinstance(content, Tensor):
        raise InvalidInput(f"{path} holds a {type(content).__name__}; it must hold a tensor")
    return content


def _read_safetensors(path: Path) -> Tensor:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor(only_one(path, list(file.keys())))


def _write_safetensors(path: Path, matrix: np.ndarray | Tensor) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"A": _tensor(matrix)}, path)


def _array(matrix: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(matrix, Tensor):
        matrix = matrix.float() if matrix.dtype == torch.bfloat16 else matrix
        return matrix.detach().cpu().numpy()
    return matrix


def _tensor(matrix: np.ndarray | Tensor) -> Tensor:
    tensor = matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix))
    tensor = tensor.detach().cpu().contiguous()
    # torch.save writes the whole storage of a view
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_text(path: Path, matrix: np.ndarray | Tensor) -> None:
    array = _array(matrix)
    # digits after which float16 and float32, and float64, are the same again
    digits = "%.9g" if array.itemsize <= 4 else "%.17g"
    form = digits if array.dtype.kind == "f" else "%d"
    np.savetxt(path, array, form, "\t" if path.suffix == ".tsv" else ",")


# a function of the path, and of header and max_memory as they are given to read_matrix
READERS: dict[str, Callable[[Path, tables.Wanted], Any]] = {
    ".npy": lambda path, _: np.lib.format.open_memmap(path, mode="r"),
    ".npz": _read_npz,
    ".pt": lambda path, _: _read_pt(path),
    ".pth": lambda path, _: _read_pt(path),
    ".safetensors": lambda path, _: _read_safetensors(path),
    ".csv": lambda path, wanted: tables.read_text(path, wanted.header),
    ".tsv": lambda path, wanted: tables.read_text(path, wanted.header),
    ".parquet": lambda path, wanted: tables.read_parquet(path, wanted.max_memory),
    ".h5ad": lambda path, wanted: whole.read_h5ad(path, wanted),
}
WRITERS: dict[str, Callable[[Path, np.ndarray | Tensor], None]] = {
    ".npy": lambda path, matrix: np.save(path, _array(matrix), allow_pickle=False),
    ".npz": lambda path, matrix: np.savez(path, A=_array(matrix)),
    ".pt": lambda path, matrix: torch.save(_tensor(matrix), path),
    ".pth": lambda path, matrix: torch.save(_tensor(matrix), path),
    ".safetensors": _write_safetensors,
    ".csv": _write_text,
    ".tsv": _write_text,
}
