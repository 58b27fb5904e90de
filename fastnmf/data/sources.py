"""Data that are read in every pass: rows of files, or batches that can be iterated over repeatedly.
They are read and checked once before anything is computed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backends.products import Matrix, stored_share
from ..backends.sparse import SparseMatrix
from ..errors import InvalidInput
from ..numerics import Part, compute_dtype, largest_entry, squared_norm, widened
from ..planning.memory import Budget
from .arrays import (
    Expected,
    as_matrix,
    batches_in,
    batches_of,
    checked_matrix,
    in_place,
    kept_dtype,
    tensor_of,
)
from .shards import READ_ENTRIES, Shard, Shards, StoredRows, in_memory, open_paths, paths_of
from .sparse.arrays import is_sparse, sparse_matrix
from .sparse.files import backed, matrix_of
from .sparse.rows import any_batch, one_kind
from .summary import Summary

# entries that are copied at a time, which torch does by one thread. If the thread that reads had
# OpenMP threads of its own, there would be more than processors, and all would be blocked after
# every operation (libgomp: an iteration takes 1.11 times as long)
_COPIED = 1 << 15


class Batches:
    """The rows of a DataLoader, a dataset or an iterable of batches, the same in every pass.

    once: whether they can be read only once. empty: whether no batches are allowed.
    """

    shape = None

    def __init__(self, A: Any, name: str, *, empty: bool = False) -> None:
        self.name, self._A, self._empty = name, A, empty
        self._checksums: list[int] | None = None
        self.once, self.kind = isinstance(A, Iterator), type(A).__name__
        # raises for an input that has no batches
        batches_of(A, name)

    def parts(self) -> Iterator[StoredRows]:
        """One pass over the rows, some at a time. Raises InvalidInput if they differ from those of
        the first pass."""
        checksums, first = [], 0
        kinds = set()
        for part in batches_in(self._A, self.name, empty=self._empty, as_batch=any_batch):
            checksums.append(_checksum(part))
            self._compare(checksums, len(checksums))
            sparse = isinstance(part, SparseMatrix)
            kinds.add(sparse)
            one_kind(kinds, self.name)
            entries = part.nnz // max(1, len(part)) if sparse else part.shape[1]
            step = max(1, READ_ENTRIES // max(1, entries))
            for i in range(0, part.shape[0], step):
                yield StoredRows(part[i : i + step], self.name, first + i)
            first += part.shape[0]
        self._compare(checksums, None)
        self._checksums = checksums

    def _compare(self, checksums: list[int], seen: int | None) -> None:
        if self._checksums is not None and checksums != self._checksums[:seen]:
            raise InvalidInput(
                f"batch {len(checksums) - 1} of {self.name} is not what it was in the pass before; "
                f"give batches in the same order every time (DataLoader: shuffle=False)"
            )


Source = Shards | Batches
Opened = tuple[Source, Summary]


class Whole(NamedTuple):
    """A dense matrix on its device, checked, and the largest absolute value of its entries."""

    matrix: Tensor
    largest: float


def open_source(A: Any, expected: Expected, budget: Budget) -> Whole | Matrix | Opened | Source:
    """A, checked: a matrix on the device if it is in memory and fits the budget, or its source and
    Summary; or only its source, which `inspected` is to read.

    A: an input of read_matrix, a sparse matrix, an AnnData, the path of a file of shards.READERS or
    of a folder of them, a list of paths, or Shards. Raises the errors of read_matrix, with places
    in files by file and row, and InvalidInput for batches that can be read only once and do not
    fit.
    """
    name, device, A = expected.name, budget.device, matrix_of(A)
    if is_sparse(A):
        return _open_sparse(sparse_matrix(A, expected, device), expected.name, budget)
    if rows := backed(A, name):
        A = Shards((Shard(name, *rows),), name)
    paths = paths_of(A)
    known = paths is not None or isinstance(A, Shards)
    matrix = None if known else as_matrix(A, name)
    whole = matrix is not None and matrix.ndim == 2 and not isinstance(matrix, np.memmap)
    if whole and not (expected.empty and len(matrix) == 0):
        found = torch.promote_types(expected.dtype or torch.float32, compute_dtype(matrix))
        kept = kept_dtype([matrix], found, device) if expected.narrow else found
        copied = kept.itemsize if in_place(matrix, kept, device) is None else 0
        if budget.holds(*matrix.shape, found, copied, given=True):
            return Whole(*checked_matrix(matrix, device, expected))
    if isinstance(A, Shards):
        source = A
    elif paths is not None:
        source = Shards(open_paths(paths, empty=expected.empty), name)
    elif matrix is not None:
        source = Shards((in_memory(matrix, name),), name, matrix)
    else:
        source = Batches(A, name, empty=expected.empty)
    return source


def rows_of_files(A: Any, expected: Expected) -> Shards | None:
    """A that is files, a memory map or what an AnnData has left in its file, as Shards; None for
    another input."""
    name = expected.name
    if isinstance(A, Shards):
        return A
    if rows := backed(A, name):
        return Shards((Shard(name, *rows),), name)
    if paths := paths_of(A):
        return Shards(open_paths(paths, empty=expected.empty), name, paths=paths)
    matrix = as_matrix(A, name)
    return Shards((in_memory(matrix, name),), name) if isinstance(matrix, np.memmap) else None


def _open_sparse(A: SparseMatrix, name: str, budget: Budget) -> SparseMatrix | Opened:
    """A itself, or where codes and their copies do not fit its source and Summary."""
    beside = replace(budget, stored=stored_share(A))
    if len(A) and beside.holds(*A.shape, A.dtype, 0, given=True):
        return A
    return Shards((in_memory(A, name),), name, A), Summary.of_sparse(A)


def part_of(A: Any, number: int, of: int) -> Shards:
    """Part `number` of `of` equal parts of the rows of A, which is paths or a matrix."""
    paths, name = paths_of(A) or (), "A"
    shards = open_paths(paths) if paths else (in_memory(as_matrix(A, name), name),)
    return Shards(shards, name, paths=paths).part(number, of)


def summarise(A: Matrix) -> Opened:
    """The source and Summary of a checked matrix in memory."""
    if isinstance(A, SparseMatrix):
        return Shards((in_memory(A, "A"),), "A", A), Summary.of_sparse(A)
    largest, columns = 0.0, torch.zeros(A.shape[1], dtype=torch.float64, device="cpu")
    for X in A.split(max(1, READ_ENTRIES // A.shape[1])):
        X = widened(X)
        largest = max(largest, float(largest_entry(X)))
        columns += X.sum(0).cpu()
    source = Shards((in_memory(A, "A"),), "A", A)
    n, d = A.shape
    return source, Summary(n, d, compute_dtype(A), float(squared_norm(A)), largest, columns)


def chunks_of(
    source: Source, rows: int, buffer: Callable[[], Tensor]
) -> Iterator[tuple[slice, Tensor]]:
    """(part, X) of `rows` rows in order, fewer at the end, across the bounds of shards and batches.
    X is a view of buffer() (rows, d), into which they are copied and widened."""
    first, filled, X = 0, 0, None
    for values, _, _ in source.parts():
        taken = 0
        while taken < len(values):
            X = buffer() if X is None else X
            count = min(rows - filled, len(values) - taken)
            widen_(X[filled : filled + count], values[taken : taken + count])
            taken, filled = taken + count, filled + count
            if filled == rows:
                yield slice(first, first + rows), X
                first, filled, X = first + rows, 0, None
    if filled:
        yield slice(first, first + filled), X[:filled]


def rows_of(source: Source, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """These rows (m,) of Shards of dense rows, in this order, on the device of the numbers."""
    assert isinstance(source, Shards)
    found, place = numbers.unique(return_inverse=True)
    rows = torch.empty(len(found), source.shape[1], dtype=dtype, device="cpu")
    source.take_(rows, found.tolist())
    return rows.to(numbers.device)[place]


def whole_matrix(source: Source, dtype: torch.dtype, device: torch.device) -> Matrix | None:
    """All rows, if they are on the device already and in this dtype, or sparse; else None."""
    matrix = source.matrix if isinstance(source, Shards) else None
    if isinstance(matrix, SparseMatrix):
        return matrix.to(dtype, device)
    return None if matrix is None else in_place(matrix, dtype, device)


def widen_(X: Tensor, values: Part) -> None:
    """X ← values, widened."""
    values = tensor_of(values)
    if values.device.type != "cpu":
        X.copy_(values)
        return
    step = max(1, _COPIED // max(1, X.shape[1]))
    for i in range(0, len(X), step):
        for j in range(0, X.shape[1], _COPIED):
            X[i : i + step, j : j + _COPIED].copy_(values[i : i + step, j : j + _COPIED])


def _checksum(part: Part | SparseMatrix) -> int:
    """By which passes are compared."""
    if isinstance(part, SparseMatrix):
        return hash(tuple(map(_checksum, (part.crow, part.col, part.values))))
    if isinstance(part, Tensor):
        part = part.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(np.ascontiguousarray(part))
