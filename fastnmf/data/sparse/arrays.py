"""Sparse inputs in memory, of scipy and torch, become one checked SparseMatrix."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix
from ...errors import InvalidInput
from ...frames import refuse_transformed
from ...numerics import compute_dtype
from ..arrays import NON_NEGATIVE, Expected, ValueCheck, tensor_of

# entries that are checked or copied at a time
PART_ENTRIES = 1 << 22
# what is sparse, by the layout of torch
_LAYOUTS = (
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
)


def is_sparse(A: Any) -> bool:
    """Whether A is a sparse matrix: of torch, scipy, or one of ours."""
    if isinstance(A, SparseMatrix):
        return True
    if isinstance(A, Tensor):
        return A.layout in _LAYOUTS
    return hasattr(A, "tocsr") and hasattr(A, "toarray")


def sparse_matrix(
    A: Any,
    expected: Expected = NON_NEGATIVE,
    device: str | torch.device = "cpu",
    *,
    checks: bool = True,
    zeros: bool = False,
) -> SparseMatrix:
    """A sparse matrix (n, d) of scipy, of torch or of ours, checked, on the device, in float32 or
    float64.

    Duplicates are summed and columns sorted; zeros that are stored are left out. Compressed rows in
    which there is nothing to change, in a dtype to compute in, are not copied. Raises InvalidInput
    for a shape, an index or a value that cannot be used, and TypeError for what holds no real
    numbers. checks: whether values are checked. zeros: whether those that are stored stay.
    """
    name = expected.name
    A = _two_dimensional(A, name)
    if isinstance(A, SparseMatrix):
        crow, col, values = A.crow, A.col, A.values
    else:
        crow, col, values = _of_torch(A, name) if isinstance(A, Tensor) else _of_scipy(A, name)
    shape = int(A.shape[0]), int(A.shape[1])
    if not (expected.empty and shape[0] == 0):
        expected.check_shape(shape)
    dtype = torch.promote_types(expected.dtype or torch.float32, compute_dtype(values))
    matrix = _sorted(SparseMatrix(crow, col, values.to(dtype), shape))
    if checks:
        check = ValueCheck(expected, "torch.sparse" if isinstance(A, Tensor) else "scipy.sparse")
        _check_values(matrix, check)
    return (matrix if zeros else _without_zeros(matrix)).to(device=device)


def canonical(
    parts: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int], name: str
) -> SparseMatrix:
    """Compressed rows (crow, col, values) as a SparseMatrix in the dtype to compute in: indices
    checked, duplicates summed, columns sorted and zeros left out. Values are not checked."""
    values = parts[2]
    crow, col = map(_signed, parts[:2])
    _check_index(crow, col, values, shape, name)
    crow, col = _one_dtype(crow, col)
    values = values.to(compute_dtype(values))
    return _without_zeros(_sorted(SparseMatrix(crow, col, values, shape)))


def _two_dimensional(A: Any, name: str) -> Any:
    dimensions = len(A.shape)
    if isinstance(A, Tensor) and A.layout == torch.sparse_coo and A.dense_dim():
        raise InvalidInput(f"{name} has dense dimensions; give a sparse matrix of scalars")
    if dimensions != 2:
        hint = f"a single row is {name}.reshape(1, -1)" if dimensions == 1 else "give a matrix"
        raise InvalidInput(f"{name} has shape {tuple(A.shape)}; it must be (n, d): {hint}")
    return A


def _of_torch(A: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    refuse_transformed(A, name)
    if A.is_complex() or A.is_quantized:
        raise TypeError(f"{name} has dtype {A.dtype}; it must hold real numbers")
    if A.is_meta:
        raise InvalidInput(f"{name} is on the meta device and holds no values; give real ones")
    A, (n, d) = A.detach(), A.shape
    if A.layout == torch.sparse_coo:
        return _of_places(A._indices(), A._values(), (n, d), name)
    if A.layout == torch.sparse_csr:
        crow, col, values = A.crow_indices(), A.col_indices(), A.values()
        _check_index(crow, col, values, (n, d), name)
        return crow, col, values
    if A.layout == torch.sparse_csc:
        ccol, row, values = A.ccol_indices(), A.row_indices(), A.values()
        _check_index(ccol, row, values, (d, n), name, "columns")
        columns = torch.repeat_interleave(torch.arange(d, device=A.device), ccol.diff())
        return _of_places(torch.stack([row.long(), columns]), values, (n, d), name)
    raise TypeError(f"{name} has layout {A.layout}; give {name}.to_sparse_csr()")


def _of_scipy(A: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    n, d = A.shape
    kind = np.dtype(A.dtype).kind
    if kind not in "fiub":
        raise TypeError(f"{name} has dtype {A.dtype}; it must hold real numbers")
    # scipy does not check indices, and writes to memory outside its arrays
    form = getattr(A, "format", "")
    if form in ("csr", "csc", "bsr") and "u" in (A.indptr.dtype.kind, A.indices.dtype.kind):
        # not by its constructor, whose errors do not name A
        A = copy.copy(A)
        A.indptr, A.indices = A.indptr.astype(np.int64), A.indices.astype(np.int64)
    if form == "coo":
        # not A.row and A.col, which arrays of other dimensions lack
        places = torch.stack([tensor_of(np.asarray(index)).long() for index in (A.row, A.col)])
        return _of_places(places, tensor_of(np.asarray(A.data)), (n, d), name)
    if form in ("csc", "bsr"):
        sizes = (d, n)
        if form == "bsr":
            sizes = n // A.blocksize[0], d // A.blocksize[1]
        index = (tensor_of(np.asarray(part)) for part in (A.indptr, A.indices))
        _check_index(*index, A.data, sizes, name, "columns" if form == "csc" else "rows of blocks")
    if form != "csr":
        A = A.tocsr()
    crow, col, values = (tensor_of(np.asarray(part)) for part in (A.indptr, A.indices, A.data))
    _check_index(crow, col, values, (n, d), name)
    if not A.has_sorted_indices:
        # in a quarter of the time of _sorted; 10,000 texts
        A = A.sorted_indices()
        crow, col, values = (tensor_of(np.asarray(part)) for part in (A.indptr, A.indices, A.data))
    crow, col = _one_dtype(crow, col)
    # scipy's arrays may be longer than what they hold
    nnz = int(crow[-1])
    return crow, col[:nnz], values[:nnz]


def _signed(index: Tensor) -> Tensor:
    """Unsigned indices, for which torch lacks operations, as int64; others as they are."""
    unsigned = torch.uint16, torch.uint32, torch.uint64
    return index.long() if index.dtype in unsigned else index


def _one_dtype(crow: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Both as int32, or as int64 where one of them is not int32."""
    dtype = torch.int32 if crow.dtype == col.dtype == torch.int32 else torch.int64
    return crow.to(dtype), col.to(dtype)


def _check_index(
    crow: Tensor,
    col: Tensor,
    values: Any,
    shape: tuple[int, int],
    name: str,
    lines: str = "rows",
) -> None:
    """Raise InvalidInput for indices that do not describe a matrix, and TypeError for such as are
    no whole numbers. lines: what is compressed."""
    for index in (crow, col):
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(f"{name} has indices of dtype {index.dtype}; give whole numbers")
    n, d = shape
    if crow.ndim != 1 or col.ndim != 1 or len(crow) != n + 1 or len(col) != len(values):
        sizes = f"{len(crow)} bounds, {len(col)} indices and {len(values)} values"
        raise InvalidInput(
            f"{name} has {sizes}; {n} {lines} need {n + 1} bounds, and every value one index"
        )
    if int(crow[0]) != 0 or int(crow[-1]) > len(col):
        ends = f"{int(crow[0])} to {int(crow[-1])}"
        raise InvalidInput(
            f"the bounds of {name}'s {lines} are {ends}; they must be 0 to {len(col)}"
        )
    falls = crow.diff() < 0
    if falls.any():
        i = int(falls.byte().argmax())
        raise InvalidInput(
            f"the bounds of {name}'s {lines} fall from {int(crow[i])} to {int(crow[i + 1])} at "
            f"{i}; they must not"
        )
    _check_bounds(col[: int(crow[-1])], d, name)


def _check_bounds(index: Tensor, size: int, name: str) -> None:
    """Raise InvalidInput if an index is outside of 0 … size − 1."""
    if not len(index):
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        raise InvalidInput(
            f"{name} has an index {wrong}; indices must be from 0 to {size - 1} in its shape"
        )


def _of_places(
    places: Tensor, values: Tensor, shape: tuple[int, int], name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows of entries at places (2, nnz), in any order; equal places stay neighbours."""
    for index, size in zip(places, shape, strict=True):
        _check_bounds(index, size, name)
    rows, columns = places
    order = torch.argsort(rows, stable=True)
    crow = torch.zeros(shape[0] + 1, dtype=torch.int64, device=places.device)
    torch.cumsum(torch.bincount(rows, minlength=shape[0]), 0, out=crow[1:])
    # half of the memory
    small = max(*shape, len(values)) < 2**31
    dtype = torch.int32 if small else torch.int64
    return crow.to(dtype), columns[order].to(dtype), values[order]


def _check_values(matrix: SparseMatrix, check: ValueCheck) -> None:
    """Raise InvalidInput if stored entries cannot be used. Synchronises once if none is."""
    values = matrix.values
    if not len(values):
        return
    low, high = torch.stack(torch.aminmax(values)).tolist()
    if check.usable(low, high):
        return

    def where(entry: int) -> str:
        bound = torch.tensor(entry, dtype=matrix.crow.dtype, device=matrix.device)
        row = int(torch.searchsorted(matrix.crow, bound, right=True)) - 1
        return f"at row {row}, column {int(matrix.col[entry])}"

    check.count(values, where)
    check.report()


def _sorted(matrix: SparseMatrix) -> SparseMatrix:
    """The matrix with ascending columns in each row, of equal ones the sum; itself where they
    are."""
    if all(_ascends(part) for _, part in _parts(matrix)):
        return matrix
    d, counts, columns, values = matrix.shape[1], [], [], []
    for _, part in _parts(matrix):
        key = part.row_of_entries().long() * d + part.col
        key, order = torch.sort(key, stable=True)
        key, group = torch.unique_consecutive(key, return_inverse=True)
        summed = part.values.new_zeros(len(key)).index_add_(0, group, part.values[order])
        counts.append(torch.bincount(key // d, minlength=len(part)))
        columns.append((key % d).to(matrix.col.dtype))
        values.append(summed)
    return _joined(counts, columns, values, matrix)


def _ascends(part: SparseMatrix) -> bool:
    rises = part.col[1:] > part.col[:-1]
    # from the last entry of a row to the first of the next
    between = part.crow[1:-1].long() - 1
    between = between[(between >= 0) & (between < len(rises))]
    rises[between] = True
    return bool(rises.all())


def _without_zeros(matrix: SparseMatrix) -> SparseMatrix:
    """The matrix without stored zeros; itself where there are none."""
    if int(torch.count_nonzero(matrix.values)) == matrix.nnz:
        return matrix
    counts, columns, values = [], [], []
    for _, part in _parts(matrix):
        kept = part.values != 0
        counts.append(torch.bincount(part.row_of_entries()[kept], minlength=len(part)))
        columns.append(part.col[kept])
        values.append(part.values[kept])
    return _joined(counts, columns, values, matrix)


def _parts(matrix: SparseMatrix) -> Iterator[tuple[int, SparseMatrix]]:
    """Adjacent rows, of PART_ENTRIES entries on average, with the first row."""
    rows = max(1, PART_ENTRIES * len(matrix) // max(1, matrix.nnz))
    for first in range(0, len(matrix), rows):
        yield first, matrix.rows(slice(first, first + rows))


def _joined(
    counts: list[Tensor], columns: list[Tensor], values: list[Tensor], like: SparseMatrix
) -> SparseMatrix:
    """Parts one below the other. counts: how many entries each row has."""
    crow = torch.zeros_like(like.crow)
    crow[1:] = torch.cumsum(torch.cat(counts), 0)
    return SparseMatrix(crow, torch.cat(columns), torch.cat(values), like.shape)
