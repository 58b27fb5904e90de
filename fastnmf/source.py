"""Rows that are read in every pass and never held at once: shards, or batches that can be had
again. Read through and checked once, before anything is computed."""

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

from .ahead import Ahead
from .errors import InvalidInput
from .rows import (
    Part,
    Rows,
    as_matrix,
    batches_in,
    batches_of,
    check_shape,
    compute_dtype,
    gather,
    in_place,
    kept_dtype,
    read_rows,
    tensor_of,
)
from .shards import Shard, in_memory, open_paths, paths_of
from .solvers import squared_norm

# entries read from a shard at once; copied by one thread, as torch does with no more than these:
# with some of OpenMP's for the thread that reads there would be more than processors, and then all
# sleep after every operation (measured, libgomp: an iteration takes 1.11 times as long)
_READ_ENTRIES = 1 << 19
_COPIED = 1 << 15


class Piece(NamedTuple):
    """Rows as they are stored, and where: row `first` of `place` is the first."""

    values: Part
    place: str
    first: int


@dataclass(frozen=True)
class Summary:
    """What one pass tells of A (n, d): the dtype to compute in, ‖A‖², its largest entry, and the
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

    def pieces(self) -> Iterator[Piece]:
        step = max(1, _READ_ENTRIES // max(1, self.shape[1]))
        for shard in self._shards:
            for first in range(0, shard.shape[0], step):
                stop = min(first + step, shard.shape[0])
                yield Piece(shard.read(first, stop), shard.name, first)


class Batches:
    """The rows of a DataLoader, a dataset or an iterable of batches, the same in every pass.

    once: whether they can be had only once. empty: none will do. pieces raises InvalidInput where a
    later pass gives other numbers than the first.
    """

    shape = None

    def __init__(self, A: Any, name: str, *, empty: bool = False) -> None:
        self.name, self._A, self._empty = name, A, empty
        self._prints: list[int] | None = None
        self.once = isinstance(A, Iterator)
        # so that what gives no batches is refused now
        batches_of(A, name)

    def pieces(self) -> Iterator[Piece]:
        prints, first = [], 0
        for part in batches_in(self._A, self.name, empty=self._empty):
            prints.append(_print(part))
            self._compare(prints, len(prints))
            step = max(1, _READ_ENTRIES // max(1, part.shape[1]))
            for i in range(0, part.shape[0], step):
                yield Piece(part[i : i + step], self.name, first + i)
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


def take(
    A: Any,
    ahead: Ahead,
    *,
    keep: Callable[[int, int, torch.dtype, int, bool], bool],
    device: str | torch.device,
    name: str = "A",
    features: int | None = None,
    columns: str = "features",
    dtype: torch.dtype | None = None,
    signed: bool = False,
    empty: bool = False,
    narrow: bool = False,
) -> Rows | tuple[Source, Summary]:
    """A, checked: as Rows where keep(n, d, dtype, copied, given) lets all of it be held, else what
    gives its rows again, with its Summary.

    A: what read_rows takes, or the path of a .npy or .safetensors file or of a folder of them, or a
    list of paths, or Shards. empty: no rows will do. narrow: on a GPU 16-bit numbers, but for those
    of batches, may stay as they are. copied: the bytes that holding an entry takes, or 0; given:
    whether it is held already, in any dtype. The rest as for read_rows, and the same errors;
    places in files are told by file and row. Batches that can be had only once must fit.
    """
    paths = paths_of(A)
    known = paths is not None or isinstance(A, Shards)
    matrix = None if known else as_matrix(A, name)
    wanted = {"name": name, "features": features, "columns": columns}
    whole = matrix is not None and matrix.ndim == 2 and not isinstance(matrix, np.memmap)
    if whole and not (empty and len(matrix) == 0):
        found = torch.promote_types(dtype or torch.float32, compute_dtype(matrix))
        kept = kept_dtype([matrix], found, device) if narrow else found
        copied = kept.itemsize if in_place(matrix, kept, device) is None else 0
        if keep(*matrix.shape, found, copied, True):
            asked = {"dtype": dtype, "signed": signed, "narrow": narrow}
            return read_rows(A, device=device, **asked, **wanted)
    if isinstance(A, Shards):
        source = A
    elif paths is not None:
        source = Shards(open_paths(paths, empty=empty), name)
    elif matrix is not None:
        source = Shards((in_memory(matrix, name),), name, matrix)
    else:
        source = Batches(A, name, empty=empty)
    return _inspect(source, ahead, keep, device, dtype, signed, wanted, empty, narrow)


def part_of(A: Any, number: int, of: int) -> Shards:
    """Part `number` of so many of the rows of A, paths or a matrix: what take takes."""
    paths, name = paths_of(A) or (), "A"
    shards = open_paths(paths) if paths else (in_memory(as_matrix(A, name), name),)
    return Shards(shards, name, paths=paths).part(number, of)


def summarise(rows: Rows) -> tuple[Source, Summary]:
    """Rows in memory, which are checked, as what gives them again, with their Summary."""
    largest, columns = 0.0, torch.zeros(rows.d, dtype=torch.float64)
    for _, X in rows.chunks(max(1, _READ_ENTRIES // rows.d)):
        largest = max(largest, float(X.max()))
        columns += X.sum(0).cpu()
    squares = float(squared_norm(rows.A))
    source = Shards((in_memory(rows.A, "A"),), "A", rows.A)
    return source, Summary(rows.n, rows.d, rows.dtype, squares, largest, columns)


def chunks_of(
    source: Source, rows: int, room: Callable[[], Tensor]
) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, these rows) in order, so many at a time and fewer at the end, widened into the
    memory (rows, d) that room() gives, wherever shards and batches end."""
    first, filled, X = 0, 0, None
    for values, _, _ in source.pieces():
        taken = 0
        while taken < len(values):
            X = room() if X is None else X
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
    source, ahead: Ahead, keep, device, dtype, signed: bool, wanted: dict, empty=False, narrow=False
):
    """One pass: every check, the sums, and all rows together if they may be."""
    name, n, matrix, parts = source.name, 0, None, deque()
    check = _Check(name, signed)
    if empty and source.shape is not None and source.shape[0] == 0:
        return source, Summary.of_nothing()
    if source.shape is not None:
        check_shape(source.shape, **wanted)
        dtype = torch.promote_types(dtype or torch.float32, source.dtype)
        parts = None
        kept = kept_dtype(source.samples(), dtype, device) if narrow else dtype
        if keep(*source.shape, dtype, kept.itemsize, False):
            matrix = torch.empty(source.shape, dtype=kept, device=device)
    squares, largest, columns = 0.0, 0.0, None
    for X, place, first in ahead(_widened(source)):
        if n == 0:
            check_shape(X.shape, **wanted)
            columns = torch.zeros(X.shape[1], dtype=torch.float64)
        largest = max(largest, check.largest(X, place, first))
        squares += float(squared_norm(X))
        columns += X.sum(0)
        if matrix is not None:
            matrix[n : n + len(X)] = X
        n += len(X)
        if source.shape is None:
            dtype = torch.promote_types(dtype or torch.float32, X.dtype)
            if parts is not None and keep(n, X.shape[1], dtype, dtype.itemsize, False):
                parts.append(X)
            elif source.once:
                raise InvalidInput(
                    f"{name} is a {type(source._A).__name__} that can be read only once, and what "
                    f"it gave, {n:,} rows so far, does not fit in memory (max_memory); give what "
                    f"can be read again: an object with __iter__, a DataLoader, or a file"
                )
            else:
                parts = None
    if n == 0:
        if empty:
            return source, Summary.of_nothing()
        check_shape((0, 1), **wanted)
    check.report()
    if parts:
        matrix = gather(parts, dtype, device)
    if matrix is not None:
        return Rows(matrix)
    return source, Summary(n, len(columns), dtype, squares, largest, columns)


def _widened(source: Source) -> Iterator[Piece]:
    """The pieces in what they are computed in, small ones together; as copies: a generator may fill
    one buffer again and again."""
    held, entries = [], 0
    for values, place, first in source.pieces():
        X = torch.empty(tuple(values.shape), dtype=compute_dtype(values))
        _copy(values, X)
        if held and (held[0].place != place or held[0].values.dtype != X.dtype):
            yield _joined(held)
            held, entries = [], 0
        held.append(Piece(X, place, first))
        entries += X.numel()
        if entries > _READ_ENTRIES // 2:
            yield _joined(held)
            held, entries = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[Piece]) -> Piece:
    if len(held) == 1:
        return held[0]
    (X, place, first), rows = held[0], [len(values) for values, _, _ in held]
    joined = torch.empty(sum(rows), X.shape[1], dtype=X.dtype)
    for (values, _, _), part in zip(held, joined.split(rows), strict=True):
        _copy(values, part)
    return Piece(joined, place, first)


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


class _Check:
    """Finds entries that cannot be used: the first, and how many there are of its kind."""

    def __init__(self, name: str, signed: bool) -> None:
        self._name, self._signed = name, signed
        self._kind, self._first, self._count = "", "", 0

    def largest(self, X: Tensor, place: str, first: int) -> float:
        """The largest entry of X."""
        low, high = torch.stack(torch.aminmax(X)).tolist()
        if high < float("inf") and (low >= 0 or (self._signed and low > -float("inf"))):
            return high
        if not self._kind:
            self._kind = "negative" if X.isfinite().all() else "nan or inf"
        bad = X < 0 if self._kind == "negative" else ~X.isfinite()
        if not self._first:
            i, j = divmod(int(bad.flatten().byte().argmax()), X.shape[1])
            number = f"{float(X[i, j]):g}".replace("-", "−")
            inside = "" if place == self._name else f"in {place} "
            self._first = f"{inside}at row {first + i}, column {j}: {number}"
        self._count += int(bad.sum())
        return high

    def report(self) -> None:
        """Raise InvalidInput if any was found."""
        if not self._count:
            return
        needed = "finite numbers"
        if self._kind == "negative":
            needed = f"{self._name} ≥ 0 (clip at 0?)"
        entries = f"{self._kind} entry" if self._count == 1 else f"{self._kind} entries"
        found = f"{self._count} {entries}, the first {self._first}"
        raise InvalidInput(f"{self._name} has {found}; NMF needs {needed}")


def _print(part: Part) -> int:
    """What tells batches apart."""
    if isinstance(part, Tensor):
        part = part.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(np.ascontiguousarray(part))
