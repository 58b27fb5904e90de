"""Matrices and models in files: read with a clear refusal, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ._version import __version__
from .errors import InvalidInput
from .paths import check_output, existing, only_one, refusing_damage, replacing

if TYPE_CHECKING:
    from .nmf import NMF

FORMAT = "fastnmf"
FORMAT_VERSION = 1
MODEL_SUFFIXES = (".safetensors",)
PENALTIES = ("alpha_Z", "alpha_D", "l1_ratio", "unit_norm")


def read_matrix(path: str | os.PathLike) -> np.ndarray | Tensor:
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


def write_matrix(path: str | os.PathLike, matrix: np.ndarray | Tensor) -> None:
    """Write a matrix as .npy, .npz (named 'A'), .pt, .pth or .safetensors ('A'); see `replacing`.

    Raises what `check_output` raises before it writes.
    """
    path = check_output(path, WRITERS)
    with replacing(path) as part:
        WRITERS[path.suffix](part, matrix)


def save_model(path: str | os.PathLike, nmf: NMF) -> None:
    """Write a fitted model (D, solver, tol, penalties, fit_info_) as .safetensors; see `replacing`.

    Raises NotFitted or what `check_output` raises before it writes.
    """
    path = check_output(path, MODEL_SUFFIXES)
    D = _tensor(nmf.get_dictionary())
    info = None if nmf.fit_info_ is None else asdict(nmf.fit_info_)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "fastnmf_version": __version__,
        "solver": nmf.solver,
        "nb_concepts": str(nmf.nb_concepts),
        "tol": repr(nmf.tol),
        "penalties": json.dumps({name: getattr(nmf, name) for name in PENALTIES}),
        "fit_info": json.dumps(info),
    }
    with replacing(path) as part:
        safetensors.torch.save_file({"D": D}, part, metadata=metadata)


def load_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> NMF:
    """The fitted model that `save_model` wrote, on device.

    Raises FileNotFoundError, or InvalidInput for a file that is damaged, foreign or too new.
    """
    from .engine import Iteration
    from .info import FitInfo
    from .nmf import NMF

    path = existing(path, MODEL_SUFFIXES)
    with refusing_damage(path):
        metadata, D = _read_model(path)
        concepts, tol = int(metadata["nb_concepts"]), float(metadata["tol"])
        solver, info = metadata["solver"], json.loads(metadata["fit_info"])
        # models of versions without them have none
        penalties = json.loads(metadata.get("penalties", "{}"))
    nmf = NMF(concepts, device=device, solver=solver, tol=tol, **penalties).load_dictionary(D)
    # another version may account for other things
    if info is not None and info.keys() == {field.name for field in fields(FitInfo)}:
        info["history"] = tuple(Iteration(**iteration) for iteration in info["history"])
        for name in ("l0_histogram", "energy", "inner_half_steps"):
            info[name] = tuple(info[name])
        nmf.fit_info_ = FitInfo(**info)
    return nmf


def model_version(path: str | os.PathLike) -> str:
    """The version of fastnmf that wrote a model. Raises as load_model does."""
    path = existing(path, MODEL_SUFFIXES)
    with refusing_damage(path):
        return _read_model(path)[0]["fastnmf_version"]


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


def _read_model(path: Path) -> tuple[dict[str, str], Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            held = ", ".join(file.keys()) or "nothing"
            raise InvalidInput(f"{path} holds {held}, and is no fastnmf model; make one with fit")
        if int(metadata["format_version"]) > FORMAT_VERSION:
            newer = f"format {metadata['format_version']} of fastnmf {metadata['fastnmf_version']}"
            own = f"fastnmf {__version__} reads up to format {FORMAT_VERSION}"
            raise InvalidInput(f"{path} is in {newer}; {own}: upgrade it")
        return metadata, file.get_tensor("D")


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
