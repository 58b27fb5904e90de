"""The first pass over data that are read in passes: every row is checked, and all are gathered if
they fit in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...backends.products import Matrix
from ...backends.sparse import SparseMatrix, concat
from ...distributed import Processes
from ...errors import InvalidInput
from ...numerics import Part, compute_dtype
from ...planning.memory import Budget
from ..arrays import Expected, ValueCheck, gather, kept_dtype
from ..prefetch import Prefetcher
from ..shards import READ_ENTRIES, Shards, StoredRows
from ..sources import Opened, Source, widen_
from ..sparse.rows import copied, largest_of
from ..summary import Summary


class Drawing(Protocol):
    """Rows that are drawn from all rows of the data, by a seed."""

    seed: int

    def begin(self, rows: int | None, processes: Processes) -> None: ...
    def add(self, X: Matrix) -> None: ...
    def rows(self, data: Any) -> Matrix: ...


def inspected(
    source: Source,
    expected: Expected,
    budget: Budget,
    prefetch: Prefetcher,
    drawing: Drawing | None = None,
) -> Matrix | Opened:
    """A matrix of all rows on the device if they fit the budget, else the source and its Summary,
    by one pass over the rows, in which they are checked. drawing: takes rows of the pass."""
    dtype, gathered = expected.dtype or torch.float32, _Batches(source, budget)
    if source.shape is not None:
        if expected.empty and source.shape[0] == 0:
            return source, Summary.of_nothing()
        expected.check_shape(source.shape)
        dtype = torch.promote_types(dtype, source.dtype)
        if source.stored is None:
            gathered = _Matrix(source, dtype, expected.narrow, budget)
    summary, check = Summary.of_nothing(), ValueCheck(expected)
    for X, place, first in prefetch(_widened(source)):
        if summary.n == 0:
            expected.check_shape(X.shape)
        if source.shape is None:
            dtype = torch.promote_types(dtype, X.dtype)
        largest = largest_of if isinstance(X, SparseMatrix) else ValueCheck.largest
        summary = summary.with_rows(X, largest(check, X, place, first), dtype)
        if drawing is not None:
            drawing.add(X)
        gathered.add(X, summary)
    if summary.n == 0:
        if expected.empty:
            return source, summary
        expected.check_shape((0, expected.features or 1))
    check.report()
    matrix = gathered.matrix(dtype)
    return (source, summary) if matrix is None else matrix


class _Matrix:
    """The rows of a source of known size, in one matrix if it fits the budget."""

    def __init__(self, source: Shards, dtype: torch.dtype, narrow: bool, budget: Budget) -> None:
        device, self._matrix = budget.device, None
        kept = kept_dtype(source.samples(), dtype, device) if narrow else dtype
        if budget.holds(*source.shape, dtype, kept.itemsize, given=False):
            self._matrix = torch.empty(source.shape, dtype=kept, device=device)

    def add(self, X: Tensor, summary: Summary) -> None:
        if self._matrix is not None:
            self._matrix[summary.n - len(X) : summary.n] = X

    def matrix(self, dtype: torch.dtype) -> Tensor | None:
        return self._matrix


class _Batches:
    """The batches of a source, or its sparse rows, gathered as long as they fit the budget."""

    def __init__(self, source: Source, budget: Budget) -> None:
        self._source, self._budget = source, budget
        self._parts: deque[Matrix] | None = deque()

    def add(self, X: Matrix, summary: Summary) -> None:
        budget, dtype = replace(self._budget, stored=summary.share), summary.dtype
        # a sparse entry has its column beside it
        copied = dtype.itemsize + (0 if isinstance(X, Tensor) else X.col.itemsize)
        size = summary.n, summary.d, dtype, copied
        if self._parts is not None and budget.holds(*size, given=False):
            self._parts.append(X)
            return
        self._parts = None
        if self._source.once:
            raise InvalidInput(
                f"{self._source.name} is a {self._source.kind} that can be read only once, and "
                f"{summary.n:,} rows of it do not fit in memory (max_memory); give what can be "
                "read again: an object with __iter__, a DataLoader, or a file"
            )

    def matrix(self, dtype: torch.dtype) -> Matrix | None:
        if self._parts and isinstance(self._parts[0], SparseMatrix):
            return concat(self._parts).to(dtype, self._budget.device)
        return gather(self._parts, dtype, self._budget.device) if self._parts else None


def _widened(source: Source) -> Iterator[StoredRows]:
    """The parts of one pass, widened, small ones of a place joined. They are copies: a generator
    may reuse one buffer for all batches."""
    parts, entries = [], 0
    for values, place, first in source.parts():
        X = _own(values)
        if parts and (parts[0].place != place or parts[0].values.dtype != X.dtype):
            yield _in_one(parts)
            parts, entries = [], 0
        parts.append(StoredRows(X, place, first))
        entries += X.nnz if isinstance(X, SparseMatrix) else X.numel()
        if entries > READ_ENTRIES // 2:
            yield _in_one(parts)
            parts, entries = [], 0
    if parts:
        yield _in_one(parts)


def _own(values: Part | SparseMatrix) -> Matrix:
    """The values widened, in memory of their own."""
    if isinstance(values, SparseMatrix):
        return copied(values)
    X = torch.empty(tuple(values.shape), dtype=compute_dtype(values), device="cpu")
    widen_(X, values)
    return X


def _in_one(parts: list[StoredRows]) -> StoredRows:
    """Parts that follow each other as one."""
    if len(parts) == 1:
        return parts[0]
    (X, place, first), rows = parts[0], [len(values) for values, _, _ in parts]
    if isinstance(X, SparseMatrix):
        return StoredRows(concat([values for values, _, _ in parts]), place, first)
    joined = torch.empty(sum(rows), X.shape[1], dtype=X.dtype, device="cpu")
    for (values, _, _), part in zip(parts, joined.split(rows), strict=True):
        widen_(part, values)
    return StoredRows(joined, place, first)
