"""Codes of few active concepts in compressed rows: made a chunk at a time, returned as a CSR tensor
of torch, and written as a file of scipy.sparse.save_npz. Those of a fit are in ../storage.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix, concat
from ..locks import WorkingFolder
from ..paths import replacing, writing
from .arrays import canonical

# the destination of codes that are returned in compressed rows, and the suffix of files of them
SPARSE, SUFFIX = "sparse", ".npz"


def are_sparse(place: Path | str | None) -> bool:
    """Whether codes with this destination are stored in compressed rows."""
    return place == SPARSE or (isinstance(place, Path) and place.suffix == SUFFIX)


def compressed(Z: Tensor) -> SparseMatrix:
    """Dense codes (m, K) in compressed rows, on their device."""
    dtype = torch.int32 if Z.numel() < 2**31 else torch.int64
    row, col = Z.nonzero().unbind(1)
    crow = torch.zeros(len(Z) + 1, dtype=dtype, device=Z.device)
    torch.cumsum(torch.bincount(row, minlength=len(Z)), 0, out=crow[1:])
    return SparseMatrix(crow, col.to(dtype), Z[row, col], (Z.shape[0], Z.shape[1]))


def csr_tensor(Z: SparseMatrix) -> Tensor:
    """The same entries as a CSR tensor of torch, not copied."""
    with warnings.catch_warnings():
        # that CSR is in beta
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            *(Z.crow, Z.col, Z.values), Z.shape, device=Z.device, check_invariants=False
        )


def save_npz(file: Path, Z: SparseMatrix) -> None:
    """Write the file that scipy.sparse.save_npz writes for a csr_array."""
    values, col, crow = (part.cpu().numpy() for part in (Z.values, Z.col, Z.crow))
    entries: dict[str, Any] = {"indices": col, "indptr": crow, "data": values}
    shape = np.array(Z.shape, dtype=np.int64)
    np.savez(file, format=np.array(b"csr"), shape=shape, _is_array=np.array(True), **entries)


def delivered(Z: SparseMatrix, folder: WorkingFolder | None) -> Tensor:
    """The codes for the caller, written to the file of this working folder if there is one; then
    they are on the CPU."""
    if folder is None:
        return csr_tensor(Z)
    with replacing(folder.path, folder) as part, writing(folder.path):
        save_npz(part, Z)
    return csr_tensor(Z.to(device="cpu"))


class Collected:
    """Rows that are appended in order, a chunk at a time, in compressed rows."""

    def __init__(self, K: int, like: Tensor) -> None:
        self._parts = [compressed(like.new_empty(0, K))]

    def append(self, Z: Tensor) -> None:
        """Add dense codes (m, K) below the others."""
        self._parts.append(compressed(Z))

    def matrix(self) -> SparseMatrix:
        """All rows."""
        return concat(self._parts)


def load_npz(file: Path) -> SparseMatrix:
    """The rows that `save_npz` wrote. Raises what numpy raises for a damaged file."""
    with np.load(file, allow_pickle=False) as arrays:
        parts = (torch.from_numpy(arrays[name]) for name in ("indptr", "indices", "data"))
        n, K = map(int, arrays["shape"])
        return canonical(tuple(parts), (n, K), str(file))
