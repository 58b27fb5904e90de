"""SparseMatrix: A matrix in compressed rows, with its two products. Inputs are checked and brought
into this form in data/sparse."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..errors import BackendUnavailable
from ..numerics import squared_norm
from .registry import ENVIRONMENT, select
from .torch import REFERENCE, Compressed

# entries that are widened at a time
_SUMMED = 1 << 19


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """X (m, d) in compressed rows (CSR): columns ascend within a row, none twice, and no zeros.

    crow (m + 1,), col (nnz,): int32 or int64, both the same. values (nnz,): float32 or float64.
    The entries of row i are those from crow[i] to crow[i + 1]. operations: by name, those of a
    backend; None: of the one that `auto` chooses.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    shape: tuple[int, int]
    operations: Mapping[str, Callable] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self.values.device

    @property
    def nnz(self) -> int:
        """The number of entries that are stored."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """The bytes of entries and indices."""
        return sum(part.numel() * part.itemsize for part in (self.crow, self.col, self.values))

    def rows(self, part: slice) -> SparseMatrix:
        """These rows, adjacent ones, without a copy of their entries. Waits for a device."""
        start, stop, step = part.indices(self.shape[0])
        if step != 1:
            raise IndexError(f"rows {part} of a sparse matrix must be adjacent")
        stop = max(start, stop)
        if (start, stop) == (0, self.shape[0]):
            return self
        first, last = self.crow[[start, stop]].tolist()
        shape = stop - start, self.shape[1]
        crow = self.crow[start : stop + 1] - first
        col, values = self.col[first:last], self.values[first:last]
        return SparseMatrix(crow, col, values, shape, self.operations)

    def using(self, operations: Mapping[str, Callable] | None) -> SparseMatrix:
        """The same matrix, with the operations of another backend."""
        return replace(self, operations=operations)

    def __getitem__(self, part: slice) -> SparseMatrix:
        """The same as `rows`."""
        return self.rows(part)

    def take(self, numbers: Tensor) -> SparseMatrix:
        """The rows of these numbers (r,), in this order: a copy."""
        counts = self.crow.diff()[numbers].long()
        ends = counts.cumsum(0)
        # from the place of an entry in the copy to its place here
        shift = self.crow[:-1][numbers].long() - (ends - counts)
        at = torch.repeat_interleave(shift, counts)
        at += torch.arange(len(at), device=self.device)
        crow = torch.cat((ends.new_zeros(1), ends)).to(self.crow.dtype)
        shape = len(numbers), self.shape[1]
        return SparseMatrix(crow, self.col[at], self.values[at], shape, self.operations)

    def transposed(self) -> tuple[SparseMatrix, Tensor]:
        """The transpose, a copy, and where its entries are here (nnz,)."""
        col, order = torch.sort(self.col, stable=True)
        counts = torch.bincount(col, minlength=self.shape[1])
        crow = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(self.crow.dtype)
        shape = self.shape[1], self.shape[0]
        rows, values = self.row_of_entries()[order], self.values[order]
        return SparseMatrix(crow, rows, values, shape, self.operations), order

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> SparseMatrix:
        """The matrix in this dtype on this device; shares what need not be copied."""
        crow, col = self.crow.to(device), self.col.to(device)
        values = self.values.to(device, dtype)
        return SparseMatrix(crow, col, values, self.shape, self.operations)

    def without_zeros(self) -> SparseMatrix:
        """The matrix without stored zeros: itself where there are none."""
        kept = self.values != 0
        if bool(kept.all()):
            return self
        before = torch.cat((self.crow.new_zeros(1), kept.cumsum(0).to(self.crow.dtype)))
        crow, col = before[self.crow.long()], self.col[kept]
        return replace(self, crow=crow, col=col, values=self.values[kept])

    def to_dense(self) -> Tensor:
        """The matrix with its zeros."""
        dense = self.values.new_zeros(self.shape)
        dense[self.row_of_entries(), self.col] = self.values
        return dense

    def row_of_entries(self) -> Tensor:
        """The row of each entry (nnz,)."""
        rows = torch.arange(len(self), device=self.device, dtype=self.col.dtype)
        return torch.repeat_interleave(rows, self.crow.diff(), output_size=self.nnz)

    def squared_norm(self) -> Tensor:
        """‖X‖², a float64 scalar."""
        return squared_norm(self.values[None])

    def column_sums(self) -> Tensor:
        """The sums of the columns (d,), in float64."""
        sums = torch.zeros(self.shape[1], dtype=torch.float64, device=self.device)
        for col, values in zip(self.col.split(_SUMMED), self.values.split(_SUMMED), strict=True):
            sums.index_add_(0, col, values.double())
        return sums

    def largest(self) -> float:
        """The largest entry, which may be one that is not stored."""
        filled = self.nnz and self.nnz == self.shape[0] * self.shape[1]
        most = float(self.values.amax()) if self.nnz else 0.0
        return most if filled else max(0.0, most)

    def dot(self, Bt: Tensor, out: Tensor | None = None) -> Tensor:
        """X Bt (m, K), Bt (d, K). 2 nnz K flops."""
        out = Bt.new_empty(self.shape[0], Bt.shape[1]) if out is None else out
        self._operation("sparse_dot_")(out, self._parts, Bt)
        return out

    def tdot(self, Z: Tensor, out: Tensor | None = None, *, adds: bool = False) -> Tensor:
        """Xᵀ Z (d, K), Z (m, K); added to `out` if adds. 2 nnz K flops, without a copy of Xᵀ."""
        out = Z.new_empty(self.shape[1], Z.shape[1]) if out is None else out
        self._operation("sparse_tdot_")(out, self._parts, Z, adds=adds)
        return out

    @property
    def _parts(self) -> Compressed:
        return self.crow, self.col, self.values

    def _operation(self, name: str) -> Callable:
        if self.operations is not None:
            return self.operations[name]
        return _automatic(self.device.type, os.environ.get(ENVIRONMENT))[name]


@cache
def _automatic(device_type: str, requested: str | None) -> Mapping[str, Callable]:
    """The operations of the backend that `auto` chooses. requested: by the environment."""
    try:
        return select(("sparse_dot_", "sparse_tdot_"), torch.device(device_type), "auto")[1]
    except BackendUnavailable:
        # the environment names a backend for other operations
        return REFERENCE


def transpose_of(parts: Sequence[SparseMatrix]) -> SparseMatrix:
    """The transpose of the rows of all parts, one below the other, without a copy of all of them
    beside it."""
    counts = [torch.bincount(part.col, minlength=part.shape[1]) for part in parts]
    crow = sum(counts).cumsum(0)
    nnz, m, (first, *_) = int(crow[-1]) if len(crow) else 0, sum(map(len, parts)), parts
    dtype = torch.int64 if max(nnz, m) > torch.iinfo(torch.int32).max else first.crow.dtype
    rows, values = first.col.new_empty(nnz, dtype=dtype), first.values.new_empty(nnz)
    # where the next entry of each column goes
    places, before = crow - sum(counts), 0
    for part, count in zip(parts, counts, strict=True):
        col, order = torch.sort(part.col, stable=True)
        at = (places - (count.cumsum(0) - count))[col.long()]
        at += torch.arange(part.nnz, device=part.device)
        rows[at] = part.row_of_entries()[order].to(dtype) + before
        values[at] = part.values[order]
        places += count
        before += len(part)
    crow = torch.cat((crow.new_zeros(1), crow)).to(dtype)
    return SparseMatrix(crow, rows, values, (first.shape[1], m), first.operations)


def concat(parts: Sequence[SparseMatrix]) -> SparseMatrix:
    """The rows of all parts, one below the other: a copy, or the only part itself."""
    if len(parts) == 1:
        return parts[0]
    nnz = sum(part.nnz for part in parts)
    wide = nnz > torch.iinfo(torch.int32).max or parts[0].crow.dtype == torch.int64
    dtype, before, bounds = torch.int64 if wide else torch.int32, 0, [parts[0].crow[:1]]
    for part in parts:
        bounds.append(part.crow[1:].to(dtype) + before)
        before += part.nnz
    col = torch.cat([part.col.to(dtype) for part in parts])
    values = torch.cat([part.values for part in parts])
    shape = sum(map(len, parts)), parts[0].shape[1]
    return SparseMatrix(torch.cat(bounds).to(dtype), col, values, shape, parts[0].operations)
