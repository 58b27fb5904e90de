"""Weights of single entries beside data that are read in passes: rows of both are read together,
and what is not observed is estimated as the rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...backends.products import Matrix
from ...errors import InvalidInput
from ...numerics import Part, compute_dtype
from ...planning.memory import Budget, return_memory
from ..arrays import Expected, ValueCheck, as_matrix, tensor_of, two_dimensional
from ..shards import Shards, in_memory, open_paths
from ..sources import Batches, Source, rows_of_files
from ..sparse.arrays import is_sparse
from ..sparse.files import matrix_of
from ..storage import row_blocks
from .entries import EntryWeights
from .given import KINDS, Summed, Weights
from .observed import Means, refuse_sparse, whole_of

# entries that are summed at a time; parts of the data after which freed memory is returned
_SUMMED, _RETURNED_AFTER = 1 << 16, 16
# bytes of an entry beside itself, where codes are computed: its weight, as stored and widened
_BESIDE = 16


class WeightRows:
    """The rows of weights, read when they are needed, in any order."""

    def __init__(self, weights: Weights) -> None:
        self._rows, self._features = weights.rows, weights.features
        self._entries: Shards | None = None
        if (entries := weights.entries) is not None:
            # of its own: a file may be read by the thread that reads ahead as well
            again = isinstance(entries, Shards)
            shards = open_paths(entries.paths) if again else (in_memory(_matrix(entries), "W"),)
            self._entries = Shards(shards, "weights")

    def check_shape(self, n: int | None, d: int) -> None:
        """Raise InvalidInput unless they suit A (n, d); n=None: its rows are not known."""
        if self._entries is not None:
            shape, allowed = self._entries.shape, (n or self._entries.shape[0], d)
        else:
            has = self._rows is not None, self._features is not None
            shape = len(self._rows) if has[0] else 1, len(self._features) if has[1] else 1
            allowed = n or shape[0] if has[0] else 1, d if has[1] else 1
        if shape != allowed:
            found = (allowed[0] if n is None else n, d)
            raise InvalidInput(f"weights have shape {shape}, A has {found}; give {KINDS}")

    @property
    def length(self) -> int | None:
        """How many rows A must have; None for any."""
        if self._entries is not None:
            return self._entries.shape[0]
        return None if self._rows is None else len(self._rows)

    def read(self, start: int, X: Tensor) -> Tensor:
        """The weights of the rows X (m, d), of which `start` is the first: bool or in their dtype,
        on their device."""
        stop = start + len(X)
        # more rows, or other features, than there are weights
        more = self.length is not None and stop > self.length
        self.check_shape(stop if more else None, X.shape[1])
        if self._entries is not None:
            parts = [tensor_of(part) for part in self._entries.read(start, stop)]
            W = parts[0] if len(parts) == 1 else torch.cat(parts)
            return W.to(X.device, W.dtype if W.dtype == torch.bool else X.dtype)
        rows = X.new_ones(1) if self._rows is None else self._rows[start:stop].to(X)
        features = X.new_ones(1) if self._features is None else self._features.to(X)
        return (rows[:, None] * features).expand(len(X), X.shape[1])

    def beside(self, part: slice, X: Matrix) -> EntryWeights:
        """The weights of these rows, which are X (m, d)."""
        assert isinstance(X, Tensor)
        return EntryWeights(X, self.read(part.start, X))


def _matrix(entries: Any) -> Any:
    return as_matrix(entries, "weights")


@dataclass(frozen=True)
class EntriesRead(Summed):
    """Weights W (n, d) of data that are read in passes, and the statistics of a pass over both.
    rows: reads W. dtype: of the data. of_rows (n,), of_features (d,): Σ w, float64. sums (d,): Σ w
    x of each feature. squared_norm: Σ w x². means: of what is observed. features: of how many the
    Gram matrices of a dictionary are in memory at a time."""

    rows: WeightRows
    dtype: torch.dtype
    of_rows: Tensor
    of_features: Tensor
    sums: Tensor
    squared_norm: float
    means: Means
    features: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.of_rows), len(self.of_features)

    def beside(self, part: slice, X: Matrix) -> EntryWeights:
        """The weights of these rows, which are X (m, d)."""
        return self.rows.beside(part, X)

    @property
    def mean_row(self) -> Tensor:
        """The weighted mean of each feature (d,)."""
        return self.mean_of(self.sums)

    @property
    def squared_spread(self) -> float:
        """Σ w (x − the mean of its feature)², as a difference."""
        return max(0.0, self.squared_norm - float((self.sums * self.mean_row).sum()))


def read_entries(source: Source, weights: Weights, expected: Expected) -> EntriesRead:
    """The weights of what a source has, by a pass over both, in which what is observed is checked.

    Raises InvalidInput where the weights do not suit the rows, and for entries with a weight above
    0 that cannot be used.
    """
    W, check, n = WeightRows(weights), ValueCheck(expected), None
    dtype = expected.dtype or torch.float32
    if isinstance(source, Shards):
        expected.check_shape(source.shape)
        (n, d), dtype = source.shape, torch.promote_types(dtype, source.dtype)
        W.check_shape(n, d)
    sums: _Sums | None = None
    for number, (values, place, at) in enumerate(source.parts()):
        if is_sparse(values):
            refuse_sparse(expected.name)
        X = tensor_of(values)
        dtype = torch.promote_types(dtype, compute_dtype(X))
        if sums is None:
            expected.check_shape((n or len(X), X.shape[1]))
            sums = _Sums(X.shape[1])
        W.check_shape(n, X.shape[1])
        if W.length is not None and sums.rows + len(X) > W.length:
            W.check_shape(sums.rows + len(X), X.shape[1])
        for part in row_blocks(len(X), max(1, _SUMMED // X.shape[1])):
            rows = X[part].to("cpu", compute_dtype(X))
            w = W.read(sums.rows, rows)
            rows = torch.where(_seen(w), rows, 0)
            check.largest(rows, place, at + part.start)
            sums.add_(rows.double(), w.double())
        if number % _RETURNED_AFTER == 0:
            return_memory()
    if sums is None:
        expected.check_shape((0, expected.features or 1))
        sums = _Sums(expected.features or 1)
    check.report()
    W.check_shape(sums.rows, len(sums.columns[0]))
    return sums.of(W, dtype)


class _Sums:
    """What `read_entries` sums over rows, in float64."""

    def __init__(self, d: int) -> None:
        # Σ w and Σ w x, and the same of what is observed without weights
        self.columns = torch.zeros(4, d, dtype=torch.float64, device="cpu")
        self.squares, self.rows, self._of_rows = 0.0, 0, []

    def add_(self, X: Tensor, w: Tensor) -> None:
        """Add rows X (m, d), zero where w is."""
        weighted = w * X
        for total, M in zip(self.columns, (w, weighted, w > 0, X), strict=True):
            total += M.sum(0)
        self.squares += float((weighted * X).sum())
        self._of_rows.append(w.sum(1))
        self.rows += len(X)

    def of(self, rows: WeightRows, dtype: torch.dtype) -> EntriesRead:
        """The weights that had these sums."""
        of_features, sums, counts, plain = self.columns
        found = torch.cat(self._of_rows), of_features, sums, self.squares
        return EntriesRead(rows, dtype, *found, Means.of(plain, counts))


def _seen(w: Tensor) -> Tensor:
    return w if w.dtype == torch.bool else w > 0


class _Filled:
    """Rows as they are read, of which what is not observed is estimated, or without means zero."""

    def __init__(self, weights: Weights, means: Means | None, signed: bool) -> None:
        self._rows, self._means, self._signed = WeightRows(weights), means, signed

    def of(self, X: Part, first: int) -> Tensor:
        """Rows X (m, d) from `first` on, in the dtype to compute in."""
        if is_sparse(X):
            refuse_sparse("A")
        X = tensor_of(X)
        X = X.to("cpu", compute_dtype(X))
        seen = _seen(self._rows.read(first, X))
        if bool(seen.all()):
            return X
        X = torch.where(seen, X, 0)
        return X if self._means is None else self._means.filled(X, seen, signed=self._signed)


class _Batches:
    """Batches that are filled in every pass."""

    def __init__(self, source: Batches, filled: _Filled) -> None:
        self._source, self._filled = source, filled

    def __iter__(self) -> Iterator[Tensor]:
        first = 0
        for values, _, _ in self._source.parts():
            yield self._filled.of(values, first)
            first += len(values)


def source_of(A: Any, expected: Expected) -> Shards | Batches | None:
    """A that is read in passes unless it fits in memory; None for another input."""
    A = matrix_of(A)
    if is_sparse(A):
        return None
    if (rows := rows_of_files(A, expected)) is not None:
        if rows.stored is not None:
            refuse_sparse(expected.name)
        return rows
    if isinstance(A, Iterator) or as_matrix(A, expected.name) is not None:
        return None
    return Batches(A, expected.name)


def filled(
    source: Source, weights: Weights, expected: Expected, read: EntriesRead | None = None
) -> Any:
    """The rows of a source, as `opened` takes them, with estimates of what is not observed, or
    zeros for it where nothing of them was read before."""
    fill = _Filled(weights, None if read is None else read.means, expected.signed)
    return source.changed(fill.of) if isinstance(source, Shards) else _Batches(source, fill)


def observed_rows(
    A: Any, weights: Weights, expected: Expected, budget: Budget
) -> tuple[Any, WeightRows, Budget]:
    """A (n, d), dense, as `opened` takes it, with zeros for what is not observed, the weights, and
    the memory beside these. What is in files or in batches stays there."""
    source, rows = source_of(A, expected), WeightRows(weights)
    if source is None:
        A = two_dimensional(whole_of(A, expected), expected.name)
        rows.check_shape(*A.shape)
        dtype = torch.promote_types(expected.dtype or torch.float32, compute_dtype(A))
        if budget.holds(*A.shape, dtype, 2 * dtype.itemsize, given=True):
            X = A.to(budget.device, dtype)
            seen = _seen(rows.read(0, X))
            return X if bool(seen.all()) else torch.where(seen, X, 0), rows, budget
        source = Shards((in_memory(A, expected.name),), expected.name)
    if isinstance(source, Shards):
        rows.check_shape(*source.shape)
    return filled(source, weights, expected), rows, replace(budget, beside=_BESIDE)
