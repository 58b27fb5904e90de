"""Rows that are computed for the rows of a matrix, such as codes, or data from codes: with any
leading dimensions, of no rows, and chunk by chunk to memory or to a file; and where those of a fit
are stored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backends.products import Matrix
from ..data.arrays import NON_NEGATIVE, Expected, as_matrix, read_matrix
from ..data.dataset import Data
from ..data.locks import WorkingFolder, working_folder
from ..data.shards import Shards, open_paths, paths_of
from ..data.sparse.arrays import is_sparse, sparse_matrix
from ..data.sparse.codes import Collected, are_sparse, delivered
from ..data.sparse.files import loaded
from ..data.storage import (
    Compressed,
    InMemory,
    NotKept,
    OnDisk,
    Storage,
    copy_rows,
    mapped,
    written,
)
from ..errors import InvalidInput
from ..numerics import compute_dtype
from .options import Options


def as_rows(A: Any, width: int) -> tuple[Any, tuple[int, ...] | None]:
    """A tensor or an array (…, width) as a matrix, and its leading dimensions; anything else, a
    matrix too, as it is, and None. A memoryview becomes an array."""
    A = np.asarray(A) if isinstance(A, memoryview) else A
    if isinstance(A, Tensor | np.ndarray) and A.ndim not in (0, 2) and A.shape[-1] == width:
        return A.reshape(-1, width), tuple(A.shape[:-1])
    return A, None


def with_weights_as_rows(
    A: Any, weights: Any, width: int
) -> tuple[Any, Any, tuple[int, ...] | None]:
    """A and its leading dimensions as of `as_rows`, and between them weights: those of the same
    leading dimensions become a matrix, others stay as they are."""
    A, leading = as_rows(A, width)
    whole = isinstance(weights, Tensor | np.ndarray) and leading is not None
    if whole and weights.ndim and tuple(weights.shape[:-1]) == leading:
        weights = weights.reshape(-1, weights.shape[-1])
    return A, weights, leading


def given_codes(Z0: Any, data: Data, K: int) -> Matrix:
    """Codes (n, K) to start from, checked, in the dtype of the data; sparse ones stay so."""
    expected = Expected("Z0", K, "concepts")
    if is_sparse(Z0):
        Z0 = sparse_matrix(Z0, expected, data.device)
    else:
        Z0 = read_matrix(Z0, data.device, expected)
    if len(Z0) != data.n:
        raise InvalidInput(f"Z0 has {len(Z0)} rows, A has {data.n}; they must agree")
    return Z0.to(dtype=data.dtype)


def kind_of(place: Path | str) -> str:
    """Where rows are stored, as Budget names it."""
    return "memory" if place == "memory" else "file"


def refuse_leading(place: Path | str, leading: tuple[int, ...] | None, width: int) -> None:
    """Raise InvalidInput for codes of any leading dimensions that are to be stored in compressed
    rows, which are a matrix."""
    if leading is not None and are_sparse(place):
        shape = (*leading, width)
        raise InvalidInput(
            f"A has shape {shape}, and codes that are stored sparse are a matrix; give "
            f"A.reshape(-1, {width}), or codes='memory'"
        )


class Place(NamedTuple):
    """Where computed rows are stored: in the file of this working folder, or without one in memory;
    whether in compressed rows."""

    folder: WorkingFolder | None
    sparse: bool


def locked(place: Path | str, stack: ExitStack) -> Place:
    """The Place that a destination means, with its file locked until the stack ends."""
    file = stack.enter_context(working_folder(place)) if isinstance(place, Path) else None
    return Place(file, are_sparse(place))


def has_no_rows(A: Any, expected: Expected) -> bool:
    """Whether A is a matrix of no rows, as a tensor, an array or one file."""
    paths = paths_of(A)
    if is_sparse(A):
        return tuple(A.shape) == (0, expected.features)
    if paths is not None:
        one = len(paths) == 1 and not Path(paths[0]).is_dir()
        return one and Shards(open_paths(paths), expected.name).shape == (0, expected.features)
    whole = isinstance(A, Tensor | np.ndarray) and as_matrix(A, expected.name) is not None
    return whole and tuple(A.shape) == (0, expected.features)


def no_rows(A: Any, expected: Expected, width: int, place: Place) -> Tensor:
    """The result (0, width) for a matrix of no rows, with a gradient of nothing where A has one."""
    found, least = A if isinstance(A, Tensor) else None, expected.dtype or torch.float32
    known, folder = isinstance(A, Tensor | np.ndarray), place.folder
    dtype = torch.promote_types(compute_dtype(A), least) if known else least
    if place.sparse:
        device = "cpu" if found is None else found.device
        none = torch.empty(0, dtype=dtype, device=device)
        return delivered(Collected(width, none).matrix(), folder)
    if folder is not None:
        with written(folder.path, folder, (0, width), dtype):
            pass
        return mapped(folder.path)
    if found is None:
        return torch.empty(0, width, dtype=dtype, device="cpu")
    return found.to(dtype) @ found.new_zeros(found.shape[1], width, dtype=dtype)


def through(
    data: Data, made: Callable[[slice, Matrix], Tensor], width: int, place: Place
) -> Tensor:
    """made(part, X) (m, width) of all rows, a chunk at a time: in memory, dense or in compressed
    rows, or in the file of this place, of which dense rows are a map."""
    shape, folder = (data.n, width), place.folder
    if place.sparse:
        rows = Collected(width, data.like)
        for part, X, _ in data.chunks():
            rows.append(made(part, X))
        return delivered(rows.matrix(), folder)
    with ExitStack() as stack:
        if folder is not None:
            to = folder.path, folder, shape, data.dtype
            store = stack.enter_context(written(*to))
        else:
            store = InMemory(torch.empty(shape, dtype=data.dtype, device=data.device))
        for part, X, _ in data.chunks():
            store.save(part, made(part, X))
    return store.Z if isinstance(store, InMemory) else mapped(Path(store.place))


# where the codes of a fit are written: a .npy file, or the folder in which an .npz file is, at the
# end
File = OnDisk | WorkingFolder


def storage_of(options: Options, data: Data, file: File | None) -> Storage:
    """Where codes go during a fit: directly to the file where data are read in passes."""
    if options.codes is None:
        return NotKept()
    if are_sparse(options.destination()):
        return Compressed(data.n_here, options.nb_concepts, data.like)
    if isinstance(file, OnDisk) and not data.resident:
        return file
    # codes of data in memory here are allocated for the start, once there is a plan
    rows = 0 if data.in_memory_here else data.n_here
    return InMemory(data.like.new_empty(rows, options.nb_concepts))


def delivered_codes(Z: Storage, file: File | None) -> tuple[Tensor | None, str]:
    """The codes of a fit for the caller, but for those in a .npy file, and where they are; what is
    not yet in its file is written."""
    if isinstance(Z, Compressed):
        folder = file if isinstance(file, WorkingFolder) else None
        return delivered(Z.matrix(), folder), Z.place if folder is None else str(folder.path)
    if isinstance(file, OnDisk):
        if Z is not file:
            copy_rows(Z, file)
        return None, file.place
    return Z.Z if isinstance(Z, InMemory) else None, Z.place


def in_memory(A: Any, device: torch.device, expected: Expected = NON_NEGATIVE) -> Data:
    """A, which is in memory or is read into it whole, as Data."""
    read = sparse_matrix if is_sparse(A := loaded(A)) else read_matrix
    return Data(read(A, device=device, expected=expected))
