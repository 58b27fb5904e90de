"""Matrices in files: read with messages that say what is wrong, written atomically."""

# safetensors has no types; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .data.paths import check_output, existing, only_one, refusing_damage, replacing
from .errors import InvalidInput


def read_matrix(path: str | os.PathLike[str]) -> np.ndarray | Tensor:
    """Read a matrix from a file.

    Parameters
    ----------
    path : path
        A .npy, .npz, .pt, .pth or .safetensors file. A file of several arrays must name one of
        them 'A' or 'arr_0'.

    Returns
    -------
    ndarray or Tensor (n, d)
        The matrix on the CPU, in the dtype of the file: an array of a .npy file, which is mapped
        and not read, or of a .npz file; else a tensor.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    InvalidInput
        (a ValueError) For a file that is damaged or holds no dense matrix of real numbers.

    Notes
    -----
    Nothing in a file is executed: files with pickled objects are refused.

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
    with refusing_damage(path):
        matrix = READERS[path.suffix](path)
    if isinstance(matrix, Tensor):
        real = matrix.layout == torch.strided and not matrix.is_complex()
    else:
        real = matrix.dtype.kind in "fiub"
    if not real or matrix.ndim != 2:
        given = f"dtype {matrix.dtype} and shape {tuple(matrix.shape)}"
        raise InvalidInput(f"{path} holds {given}; it must hold a dense, real matrix (n, d)")
    return matrix


def write_matrix(path: str | os.PathLike[str], matrix: np.ndarray | Tensor) -> None:
    """Write a matrix to a file.

    Parameters
    ----------
    path : path
        A .npy, .npz, .pt, .pth or .safetensors file; links are followed.
    matrix : ndarray or Tensor (n, d)
        In .npz and .safetensors files it is named 'A'. bfloat16 is widened to float32 in .npy and
        .npz files, which have no such dtype.

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
    with replacing(path) as part:
        WRITERS[path.suffix](part, matrix)


def _read_npz(path: Path) -> np.ndarray:
    # np.load would take any file that NumPy wrote
    with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
        return arrays[only_one(path, arrays.files)]


def _read_pt(path: Path) -> Tensor:
    try:
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
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor(only_one(path, list(file.keys())))


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


READERS: dict[str, Callable[[Path], np.ndarray | Tensor]] = {
    ".npy": lambda path: np.lib.format.open_memmap(path, mode="r"),
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".safetensors": _read_safetensors,
}
WRITERS: dict[str, Callable[[Path, np.ndarray | Tensor], None]] = {
    ".npy": lambda path, matrix: np.save(path, _array(matrix), allow_pickle=False),
    ".npz": lambda path, matrix: np.savez(path, A=_array(matrix)),
    ".pt": lambda path, matrix: torch.save(_tensor(matrix), path),
    ".pth": lambda path, matrix: torch.save(_tensor(matrix), path),
    ".safetensors": lambda path, matrix: safetensors.torch.save_file({"A": _tensor(matrix)}, path),
}
