"""Matrices in files: read with a clear refusal, written whole or not at all."""

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
    """The matrix in a .npy (mapped, not read), .npz, .pt, .pth or .safetensors file, on the CPU.

    A file of several arrays must name one of them 'A' or 'arr_0'. Nothing in a file is executed.
    Raises FileNotFoundError, or InvalidInput for a file that holds no matrix of real numbers.
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
    """Write a matrix as .npy, .npz (named 'A'), .pt, .pth or .safetensors ('A'); see `replacing`.

    Raises what `check_output` raises before it writes.
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
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message invites to execute what the file holds
        hint = "it is damaged or holds more than tensors; write it by torch.save(A, path)"
        raise InvalidInput(f"{path} cannot be read as {path.suffix}: {hint}") from error
    if isinstance(held, dict):
        tensors = {str(key): value for key, value in held.items() if isinstance(value, Tensor)}
        held = tensors[only_one(path, list(tensors))]
    if not isinstance(held, Tensor):
        raise InvalidInput(f"{path} holds a {type(held).__name__}; it must hold a tensor")
    return held


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
    # torch.save writes all that lies under a view
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
