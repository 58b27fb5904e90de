"""Rows that are computed for the rows of a matrix, such as codes, or data from codes: with any
leading dimensions, of no rows, and chunk by chunk to memory or to a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.products import Matrix
from ..data.arrays import Expected, as_matrix, read_matrix
from ..data.dataset import Data
from ..data.locks import WorkingFolder, working_folder
from ..data.shards import Shards, open_paths, paths_of
from ..data.sparse.arrays import is_sparse
from ..data.storage import InMemory, mapped, written
from ..errors import InvalidInput
from ..numerics import compute_dtype


def as_rows(A: Any, width: int) -> tuple[Any, tuple[int, ...] | None]:
    """A tensor or an array (…, width) as a matrix, and its leading dimensions; anything else, a
    matrix too, as it is, and None. A memoryview becomes an array."""
    A = np.asarray(A) if isinstance(A, memoryview) else A
    if isinstance(A, Tensor | np.ndarray) and A.ndim not in (0, 2) and A.shape[-1] == width:
        return A.reshape(-1, width), tuple(A.shape[:-1])
    return A, None


def given_codes(Z0: Any, data: Data, K: int) -> Tensor:
    """Codes (n, K) to start from, checked, in the dtype of the data."""
    expected = Expected("Z0", K, "concepts")
    Z0 = read_matrix(Z0, data.device, expected)
    if len(Z0) != data.n:
        raise InvalidInput(f"Z0 has {len(Z0)} rows, A has {data.n}; they must agree")
    return Z0.to(data.dtype)


def kind_of(place: Path | str) -> str:
    """Where rows are stored, as Budget names it."""
    return "memory" if place == "memory" else "file"


def locked(place: Path | str, stack: ExitStack) -> WorkingFolder | None:
    """The working folder of the file to write, until the stack ends; None for memory."""
    return stack.enter_context(working_folder(place)) if isinstance(place, Path) else None


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


def no_rows(A: Any, expected: Expected, width: int, folder: WorkingFolder | None) -> Tensor:
    """The result (0, width) for a matrix of no rows, with a gradient of nothing where A has one."""
    found, least = A if isinstance(A, Tensor) else None, expected.dtype or torch.float32
    known = isinstance(A, Tensor | np.ndarray)
    dtype = torch.promote_types(compute_dtype(A), least) if known else least
    if folder is not None:
        with written(folder.path, folder, (0, width), dtype):
            pass
        return mapped(folder.path)
    if found is None:
        return torch.empty(0, width, dtype=dtype, device="cpu")
    return found.to(dtype) @ found.new_zeros(found.shape[1], width, dtype=dtype)


def through(
    data: Data,
    made: Callable[[slice, Matrix], Tensor],
    width: int,
    folder: WorkingFolder | None,
) -> Tensor:
    """made(part, X) (m, width) of all rows, a chunk at a time: in memory, or as a map of the file
    of this working folder."""
    shape = (data.n, width)
    with ExitStack() as stack:
        if folder is not None:
            place = folder.path, folder, shape, data.dtype
            store = stack.enter_context(written(*place))
        else:
            store = InMemory(torch.empty(shape, dtype=data.dtype, device=data.device))
        for part, X, _ in data.chunks():
            store.save(part, made(part, X))
    return store.Z if isinstance(store, InMemory) else mapped(Path(store.place))
