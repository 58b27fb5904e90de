"""Data in memory of which some rows, or some rows and columns, are taken: dense or sparse."""

# scipy has no types; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.products import Matrix, Rebuilt
from ..data.arrays import Expected, read_matrix
from ..data.sparse.arrays import is_sparse, sparse_matrix
from ..data.sparse.files import loaded
from ..files import read_matrix as read_file
from ..numerics import squared_norm

# of values that are checked already; a block may have no entries, and any signs
_ANY = Expected("X", signed=True)
# rows that are looked at together
_ROWS = 1 << 16


@dataclass(frozen=True)
class Whole:
    """A checked matrix A (n, d) on the CPU: a tensor, or a CSR array of SciPy."""

    A: Any
    n: int
    d: int

    @classmethod
    def of(cls, A: Any, expected: Expected) -> Whole:
        """Read A, which is in memory or the path of one file. Raises InvalidInput for values that
        cannot be used."""
        if isinstance(A, str | os.PathLike):
            A = read_file(A, sparse=True)
        A = loaded(A)
        if not is_sparse(A):
            A = read_matrix(A, "cpu", expected)
            return cls(A, *A.shape)
        import scipy.sparse

        X = sparse_matrix(A, expected)
        parts = tuple(part.numpy() for part in (X.values, X.col, X.crow))
        return cls(scipy.sparse.csr_array(parts, shape=X.shape), *X.shape)

    def identity(self) -> dict[str, Any]:
        """What tells these data from others, where a call resumes."""
        parts = [self.A]
        if not isinstance(self.A, Tensor):
            parts = [torch.from_numpy(x) for x in (self.A.indptr, self.A.indices, self.A.data)]
        checksum = 0
        for part in (some for each in parts for some in each.split(_ROWS)):
            checksum = zlib.crc32(part.contiguous().view(torch.uint8).numpy(), checksum)
        return {"n": self.n, "d": self.d, "checksum": f"{checksum:x}"}

    @property
    def entries(self) -> int:
        """How many entries are stored."""
        return self.A.numel() if isinstance(self.A, Tensor) else self.A.nnz

    @property
    def is_sparse(self) -> bool:
        return not isinstance(self.A, Tensor)

    def rows(self, numbers: Tensor) -> Any:
        """These rows, in this order."""
        return self.A[numbers] if isinstance(self.A, Tensor) else self.A[numbers.numpy()]

    def block(self, numbers: Tensor, columns: Tensor) -> Any:
        """These columns of these rows."""
        if isinstance(self.A, Tensor):
            return self.A[numbers][:, columns]
        return self.A[numbers.numpy()][:, columns.numpy()]


def squared_error(X: Any, Z: Tensor, D: Tensor) -> tuple[float, float]:
    """‖X − Z D‖² and ‖X‖² for rows X of a `Whole`."""
    rows: Matrix = X if isinstance(X, Tensor) else sparse_matrix(X, _ANY)
    return float(Rebuilt(D).squared_error(rows, Z)), float(squared_norm(rows))
