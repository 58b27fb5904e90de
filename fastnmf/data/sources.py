"""Data that are read in every pass: the rows of files, or batches that can be had again. They are
read through and checked once before anything is computed."""

from __future__ import annotations

import functools
import itertools
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidInput
from ..numerics import Part, compute_dtype, squared_norm, widened
from ..planning.memory import Budget
from .arrays import (
    Expected,
    ValueCheck,
    as_matrix,
    batches_in,
    batches_of,
    gather,
    in_place,
    kept_dtype,
    read_matrix,
    tensor_of,
)
from .prefetch import Prefetcher
from .shards import Shard, in_memory, open_paths, paths_of

# entries read from a shard at once; copied by one thread, as torch does with no more than these:
# with some of OpenMP's for the thread that reads there would be more than processors, and then all
# sleep after every operation (measured, libgomp: an iteration takes 1.11 times as long)
_READ_ENTRIES = 1 << 19
_COPIED = 1 << 15


class StoredRows(NamedTuple):
    """Rows as they are stored, and where: row `first` of `place` is the first."""

    values: Part
    place: str
    first: int


@dataclass(frozen=True)
class Summary:
    """Statistics of A (n, d): the dtype to compute in, ‖A‖², its largest entry, and the
    sums of its columns (d,) in float64."""

    n: int
    d: int
    dtype: torch.dtype
    squares: float
    largest: float
    columns: Tensor

    @property
    def mean(self) -> float:
        return float(self.columns.sum()) / (self.n * self.d)

    @classmethod
    def of_nothing(cls) -> Summary:
        return cls(0, 0, torch.float32, 0.0, 0.0, torch.zeros(0, dtype=torch.float64))

    def with_rows(self, X: Tensor, largest: float, dtype: torch.dtype) -> Summary:
        """That of these rows and X (m, d), with this largest entry, below them."""
        columns = self.columns if self.n else torch.zeros(X.shape[1], dtype=torch.float64)
        columns += X.sum(0)
        squares = self.squares + float(squared_norm(X))
        n, largest = self.n + len(X), max(self.largest, largest)
        return Summary(n, X.shape[1], dtype, squares, largest, columns)


class Shards:
    """The rows of shards, one below the other. Raises InvalidInput where their widths differ."""

    once = False

    def __init__(
        self,
        shards: tuple[Shard, ...],
        name: str,
        matrix: Part | None = None,
        paths: Sequence[str | os.PathLike] = (),
    ) -> None:
        """matrix: the rows, where they are in memory. paths: the files and folders they are of."""
        self.name, self._shards, self.matrix, self.paths = name, shards, matrix, paths
        for before, shard in itertools.pairwise(shards):
            if shard.shape[1] != before.shape[1]:
                raise InvalidInput(
                    f"{shard.name} has {shard.shape[1]} columns, the shards of {name} before it "
                    f"{before.shape[1]}; give all the same features"
                )
        self.shape = sum(shard.shape[0] for shard in shards), shards[0].shape[1]
        self.dtype = torch.float32
        for shard in shards:
            self.dtype = torch.promote_types(self.dtype, shard.dtype)

    def part(self, number: int, of: int) -> Shards:
        """Part `number` of so many, as even as can be."""
        n, parts, before = self.shape[0], [], 0
        first, stop = n * number // of, n * (number + 1) // of
        for shard in self._shards:
            rows = shard.shape[0]
            start, end = (min(max(at - before, 0), rows) for at in (first, stop))
            if end > start or not parts:
                parts.append(shard.part(start, end))
            before += rows
        return Shards(tuple(parts), self.name, paths=self.paths)

    def samples(self) -> Iterator[Part]:
        """The first row of each shard, as it is stored."""
        return (shard.read(0, min(1, shard.shape[0])) for shard in self._shards)

    def parts(self) -> Iterator[StoredRows]:
        step = max(1, _READ_ENTRIES // max(1, self.shape[1]))
        for shard in self._shards:
            for first in range(0, shard.shape[0], step):
                stop = min(first + step, shard.shape[0])
                yield StoredRows(shard.read(first, stop), shard.name, first)


class Batches:
    """The rows of a DataLoader, a dataset or an iterable of batches, the same in every pass.

    once: whether they can be had only once. empty: none will do. pieces raises InvalidInput where a
    later pass gives other numbers than the first.
    """

    shape = None

    def __init__(self, A: Any, name: str, *, empty: bool = False) -> None:
        self.name, self._A, self._empty = name, A, empty
        self._prints: list[int] | None = None
        self.once, self.kind = isinstance(A, Iterator), type(A).__name__
        # so that what gives no batches is refused now
        batches_of(A, name)

    def parts(self) -> Iterator[StoredRows]:
        prints, first = [], 0
        for part in batches_in(self._A, self.name, empty=self._empty):
            prints.append(_print(part))
            self._compare(prints, len(prints))
            step = max(1, _READ_ENTRIES // max(1, part.shape[1]))
            for i in range(0, part.shape[0], step):
                yield StoredRows(part[i : i + step], self.name, first + i)
            first += part.shape[0]
        self._compare(prints, None)
        self._prints = prints

    def _compare(self, prints: list[int], seen: int | None) -> None:
        if self._prints is not None and prints != self._prints[:seen]:
            raise InvalidInput(
                f"batch {len(prints) - 1} of {self.name} is not what it was in the pass before; "
                f"give batches in the same order every time (DataLoader: shuffle=False)"
            )


Source = Shards | Batches


def open_source(
    A: Any, expected: Expected, budget: Budget, prefetch: Prefetcher
) -> Tensor | tuple[Source, Summary]:
    """A, checked: as a matrix where the budget holds all of it, else what gives its rows again, with
    its Summary.

    A: what read_matrix takes, or the path of a .npy or .safetensors file or of a folder of them, or
    a list of paths, or Shards. Raises the errors of read_matrix; places in files are given by file
    and row. Batches that can be had only once must fit.
    """
    name, device = expected.name, budget.device
    paths = paths_of(A)
    known = paths is not None or isinstance(A, Shards)
    matrix = None if known else as_matrix(A, name)
    whole = matrix is not None and matrix.ndim == 2 and not isinstance(matrix, np.memmap)
    if whole and not (expected.empty and len(matrix) == 0):
        found = torch.promote_types(expected.dtype or torch.float32, compute_dtype(matrix))
        kept = kept_dtype([matrix], found, device) if expected.narrow else found
        copied = kept.itemsize if in_place(matrix, kept, device) is None else 0
        if budget.holds(*matrix.shape, found, copied, given=True):
            return read_matrix(A, device, expected)
    if isinstance(A, Shards):
        source = A
    elif paths is not None:
        source = Shards(open_paths(paths, empty=expected.empty), name)
    elif matrix is not None:
        source = Shards((in_memory(matrix, name),), name, matrix)
    else:
        source = Batches(A, name, empty=expected.empty)
    return _inspect(source, expected, budget, prefetch)


def part_of(A: Any, number: int, of: int) -> Shards:
    """Part `number` of so many of the rows of A, paths or a matrix: what take takes."""
    paths, name = paths_of(A) or (), "A"
    shards = open_paths(paths) if paths else (in_memory(as_matrix(A, name), name),)
    return Shards(shards, name, paths=paths).part(number, of)


def summarise(A: Tensor) -> tuple[Source, Summary]:
    """A matrix in memory, which is checked, as what gives its rows again, with its Summary."""
    largest, columns = 0.0, torch.zeros(A.shape[1], dtype=torch.float64)
    for X in A.split(max(1, _READ_ENTRIES // A.shape[1])):
        X = widened(X)
        largest = max(largest, float(X.max()))
        columns += X.sum(0).cpu()
    source = Shards((in_memory(A, "A"),), "A", A)
    n, d = A.shape
    return source, Summary(n, d, compute_dtype(A), float(squared_norm(A)), largest, columns)


def chunks_of(
    source: Source, rows: int, buffer: Callable[[], Tensor]
) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, these rows) in order, `rows` at a time and fewer at the end, widened into the
    memory (rows, d) that buffer() gives, wherever shards and batches end."""
    first, filled, X = 0, 0, None
    for values, _, _ in source.parts():
        taken = 0
        while taken < len(values):
            X = buffer() if X is None else X
            count = min(rows - filled, len(values) - taken)
            _copy(values[taken : taken + count], X[filled : filled + count])
            taken, filled = taken + count, filled + count
            if filled == rows:
                yield slice(first, first + rows), X
                first, filled, X = first + rows, 0, None
    if filled:
        yield slice(first, first + filled), X[:filled]


def held_by(source: Source, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """All rows, where they lie on the device already and in this dtype."""
    matrix = source.matrix if isinstance(source, Shards) else None
    return None if matrix is None else in_place(matrix, dtype, device)


def joined(summaries: list[Summary]) -> Summary:
    """The Summary of all rows from those of parts, of which some may have none. Raises InvalidInput
    where their widths differ, or none has rows."""
    some = [summary for summary in summaries if summary.n]
    if not some:
        raise InvalidInput("A has no rows in any process; give rows to one of them at least")
    widths = {summary.d for summary in some}
    if len(widths) > 1:
        told = ", ".join(f"{summary.d}" for summary in summaries)
        raise InvalidInput(f"the processes have rows of {told} features; give all the same")
    dtype = functools.reduce(torch.promote_types, (summary.dtype for summary in some))
    return Summary(
        sum(summary.n for summary in some),
        widths.pop(),
        dtype,
        sum(summary.squares for summary in some),
        max(summary.largest for summary in some),
        sum(summary.columns for summary in some),
    )


def _inspect(
    source: Source, expected: Expected, budget: Budget, prefetch: Prefetcher
) -> Tensor | tuple[Source, Summary]:
    """One pass: every check, the sums, and all rows together if they may be."""
    if source.shape is not None:
        if expected.empty and source.shape[0] == 0:
            return source, Summary.of_nothing()
        expected.check_shape(source.shape)
        dtype = torch.promote_types(expected.dtype or torch.float32, source.dtype)
        gathered = _Matrix(source, dtype, expected.narrow, budget)
    else:
        gathered = _Batches(source, budget)
        dtype = expected.dtype or torch.float32
    summary, check = Summary.of_nothing(), ValueCheck(expected)
    for X, place, first in prefetch(_widened(source)):
        if summary.n == 0:
            expected.check_shape(X.shape)
        if source.shape is None:
            dtype = torch.promote_types(dtype, X.dtype)
        summary = summary.with_rows(X, check.largest(X, place, first), dtype)
        gathered.add(X, summary)
    if summary.n == 0:
        if expected.empty:
            return source, summary
        expected.check_shape((0, 1))
    check.report()
    matrix = gathered.matrix(dtype)
    return (source, summary) if matrix is None else matrix


class _Matrix:
    """The rows of a source of known size in one matrix, where the budget holds it."""

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
    """The batches of a source together, as long as the budget holds them."""

    def __init__(self, source: Batches, budget: Budget) -> None:
        self._source, self._budget = source, budget
        self._parts: deque[Tensor] | None = deque()

    def add(self, X: Tensor, summary: Summary) -> None:
        size = summary.n, summary.d, summary.dtype, summary.dtype.itemsize
        if self._parts is not None and self._budget.holds(*size, given=False):
            self._parts.append(X)
            return
        self._parts = None
        if self._source.once:
            raise InvalidInput(
                f"{self._source.name} is a {self._source.kind} that can be read only once, and what "
                f"it gave, {summary.n:,} rows so far, does not fit in memory (max_memory); give "
                "what can be read again: an object with __iter__, a DataLoader, or a file"
            )

    def matrix(self, dtype: torch.dtype) -> Tensor | None:
        return gather(self._parts, dtype, self._budget.device) if self._parts else None


def _widened(source: Source) -> Iterator[StoredRows]:
    """The pieces in what they are computed in, small ones together; as copies: a generator may fill
    one buffer again and again."""
    held, entries = [], 0
    for values, place, first in source.parts():
        X = torch.empty(tuple(values.shape), dtype=compute_dtype(values))
        _copy(values, X)
        if held and (held[0].place != place or held[0].values.dtype != X.dtype):
            yield _joined(held)
            held, entries = [], 0
        held.append(StoredRows(X, place, first))
        entries += X.numel()
        if entries > _READ_ENTRIES // 2:
            yield _joined(held)
            held, entries = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[StoredRows]) -> StoredRows:
    if len(held) == 1:
        return held[0]
    (X, place, first), rows = held[0], [len(values) for values, _, _ in held]
    joined = torch.empty(sum(rows), X.shape[1], dtype=X.dtype)
    for (values, _, _), part in zip(held, joined.split(rows), strict=True):
        _copy(values, part)
    return StoredRows(joined, place, first)


def _copy(values: Part, X: Tensor) -> None:
    """X ← values, widened."""
    values = tensor_of(values)
    if values.device.type != "cpu":
        X.copy_(values)
        return
    step = max(1, _COPIED // max(1, X.shape[1]))
    for i in range(0, len(X), step):
        for j in range(0, X.shape[1], _COPIED):
            X[i : i + step, j : j + _COPIED].copy_(values[i : i + step, j : j + _COPIED])


def _print(part: Part) -> int:
    """What tells batches apart."""
    if isinstance(part, Tensor):
        part = part.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(np.ascontiguousarray(part))
