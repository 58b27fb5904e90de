"""Weights of entries as a caller gives them, checked: of rows, of features, or of each entry."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix
from ...errors import InvalidInput, warn
from ..arrays import Expected, as_matrix, tensor_of
from ..shards import Shards, open_paths, paths_of
from ..sparse.arrays import is_sparse, sparse_matrix

# entries that are checked at a time
_PART = 1 << 22
# the weights of what a sparse A stores
STORED = "stored"
KINDS = "(n, 1) for rows, (1, d) for features, or (n, d) for entries, bool or numbers ≥ 0"
# the largest weight may be as far from 1: products with squares stay in the range of float32
_LEAST, _MOST = 1e-30, 1e30
_ANY = Expected("weights", signed=True)


@dataclass(frozen=True)
class Weights:
    """Weights w ≥ 0 of ½ Σ w (A − Z D)². rows (n,), features (d,): their weights, float64 on the
    CPU, or None for ones; entries (n, d): a weight for each entry, as it was given, Shards of what
    is in files, a SparseMatrix on the CPU of sparse ones, or None.
    stored: whether the entries that a sparse A stores have the weight 1, and no others. source:
    what was given, such as the path of a file."""

    rows: Tensor | None = None
    features: Tensor | None = None
    entries: Any = None
    stored: bool = False
    source: Any = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """What has weights: 'rows', 'features', 'entries' or 'stored'."""
        if self.stored:
            return STORED
        if self.entries is not None:
            return "entries"
        return "features" if self.rows is None else "rows"

    @property
    def sparse(self) -> bool:
        """Whether the entries that are observed are stored, of A or of the weights."""
        return self.stored or isinstance(self.entries, SparseMatrix)

    @property
    def ignores(self) -> bool:
        """Whether some rows or features have the weight 0."""
        return any(w is not None and bool((w == 0).any()) for w in (self.rows, self.features))

    def identity(self) -> str:
        """By which weights of the same kind are compared."""
        checksum = 0
        given = (self.rows, self.features, self.entries)
        if isinstance(self.entries, SparseMatrix):
            given = (self.entries.crow, self.entries.col, self.entries.values)
        for each in given:
            for part in () if each is None else parts_of(each):
                numbers = part.detach().cpu().contiguous().view(torch.uint8).numpy()
                checksum = zlib.crc32(numbers, checksum)
        return f"{self.kind}, checksum {checksum:x}"

    def warn_of_unobserved(self) -> None:
        """Warn of rows and features without any weight."""
        _warn_of_unobserved(self.rows, self.features)


class Summed:
    """What follows from of_rows (n,) and of_features (d,), the sums of the weights of entries."""

    of_rows: Tensor
    of_features: Tensor

    @property
    def observed_rows(self) -> Tensor | None:
        """Which rows have a weight above 0 (n,); None for all."""
        seen = self.of_rows > 0
        return None if bool(seen.all()) else seen

    def warn_of_unobserved(self) -> None:
        """Warn of rows and features without any weight."""
        _warn_of_unobserved(self.of_rows, self.of_features)

    def mean_of(self, sums: Tensor) -> Tensor:
        """The weighted mean of each feature (d,), from Σ w x, in float64; 0 for features without
        weight."""
        weights = self.of_features
        return torch.where(weights > 0, sums / torch.where(weights > 0, weights, 1), 0)


def _warn_of_unobserved(rows: Tensor | None, features: Tensor | None) -> None:
    """Warn of rows and features without any weight, given the weight of each, or the sum of its
    entries' weights; None: all have one."""
    for what, w, then in (
        ("rows", rows, "codes there are zero"),
        ("features", features, "the concepts keep there what they started with"),
    ):
        count = 0 if w is None else int((w == 0).sum())
        if count == 1:
            warn(f"1 {what[:-1]} of A has no entry with a weight above 0: {then}")
        elif count:
            warn(f"{count:,} {what} of A have no entry with a weight above 0: {then}")


def read_weights(given: Any, d: int | None = None) -> Weights:
    """The weights that a caller gives: a matrix of one row, of one column, or of the shape of A, as
    a tensor, an array, a data frame, lists, a sparse matrix, or the path of a file. d: the features
    of A, which tells weights of rows from those of features where both have one entry.

    Raises InvalidInput for other shapes and for entries that are negative, not finite, all zero, or
    out of the range of float32 with all others, and TypeError for what is no matrix.
    """
    if isinstance(given, Weights):
        return given
    if isinstance(given, str) and given == STORED:
        return Weights(stored=True)
    source = given
    if (paths := paths_of(given)) is not None:
        shards = Shards(open_paths(paths), "weights", paths=paths)
        if shards.stored is None and min(shards.shape) > 1:
            _check(parts_of(shards))
            return Weights(entries=shards, source=source)
        given = whole(shards)
    if isinstance(given, str):
        raise InvalidInput(f"weights={given!r} is no matrix of weights; give {KINDS}")
    if is_sparse(given):
        return _of_sparse(given, source, d)
    matrix = as_matrix(given, "weights")
    if matrix is None:
        raise TypeError(f"weights are of type {type(given).__name__}; give {KINDS}")
    _refuse_derivatives(given)
    if matrix.ndim == 1:
        m = len(matrix)
        raise InvalidInput(
            f"weights have shape ({m},): give weights.reshape({m}, 1) for rows, or "
            f"weights.reshape(1, {m}) for features"
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidInput(f"weights have shape {tuple(matrix.shape)}; give {KINDS}")
    _check(parts_of(matrix))
    lines = _of_lines(matrix, source, d)
    return Weights(entries=matrix, source=source) if lines is None else lines


def _of_sparse(given: Any, source: Any, d: int | None) -> Weights:
    """Sparse weights, which are 0 where nothing is stored."""
    matrix = sparse_matrix(given, _ANY, checks=False)
    _check([matrix.values[:, None]], matrix)
    if min(matrix.shape) > 1:
        return Weights(entries=matrix, source=source)
    lines = _of_lines(matrix.to_dense(), source, d)
    assert lines is not None
    return lines


def _of_lines(matrix: Any, source: Any, d: int | None) -> Weights | None:
    """Weights of rows or of features; None where there is one for each entry."""
    n, width = matrix.shape
    if width == 1 and (n > 1 or d != 1):
        return Weights(rows=_column(matrix), source=source)
    return Weights(features=_column(matrix), source=source) if n == 1 else None


def _refuse_derivatives(given: Any) -> None:
    """Raise InvalidInput where a derivative would be dropped without a word."""
    if isinstance(given, Tensor) and given.requires_grad and torch.is_grad_enabled():
        raise InvalidInput(
            "weights require a gradient, and there is none with respect to them; give "
            "weights.detach()"
        )


def parts_of(given: Any) -> Iterator[Tensor]:
    """The weights in a matrix or in Shards, as they are stored, some rows at a time."""
    if isinstance(given, Shards):
        yield from (tensor_of(values) for values, _, _ in given.parts())
        return
    rows = max(1, _PART // max(1, math.prod(given.shape[1:])))
    for first in range(0, len(given), rows):
        part = given[first : first + rows]
        yield tensor_of(np.array(part) if isinstance(part, np.memmap) else part)


def whole(given: Any) -> Tensor | SparseMatrix:
    """The weights in a matrix or in Shards, as they are stored, in memory."""
    if not isinstance(given, Shards):
        return tensor_of(given)
    if given.stored is None:
        return torch.cat([*parts_of(given)])
    return joined([rows for rows, _, _ in given.parts()])


def joined(parts: list[Any]) -> SparseMatrix:
    """Sparse rows below each other."""
    counts = torch.cat([part.crow.diff() for part in parts]).long()
    crow = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    col, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("col", "values"))
    return SparseMatrix(crow, col.long(), values, (len(counts), parts[0].shape[1]))


def _column(matrix: Any) -> Tensor:
    return tensor_of(matrix).detach().to("cpu", torch.float64).reshape(-1).clone()


def _check(parts: Iterable[Tensor], sparse: SparseMatrix | None = None) -> None:
    """Raise InvalidInput for entries that are no weights. parts: their rows, or what is stored of a
    sparse matrix as a column."""
    first, largest = 0, 0.0
    for part in parts:
        # not of all whole numbers torch knows the largest
        numbers = part if part.is_floating_point() else part.double()
        most = float(numbers.max()) if part.numel() else 0.0
        if part.dtype != torch.bool:
            bad = ~(numbers >= 0) | torch.isinf(numbers)
            if bool(bad.any()):
                i, j = divmod(int(bad.flatten().byte().argmax()), part.shape[1])
                number = f"{float(part[i, j]):g}".replace("-", "−")
                if sparse is not None:
                    i, j = int(sparse.row_of_entries()[i]), int(sparse.col[i])
                raise InvalidInput(
                    f"weights have an entry that is negative, nan or inf, at row {first + i}, "
                    f"column {j}: {number}; weights are finite and ≥ 0, 0 for what is missing"
                )
        largest = max(largest, most)
        first += len(part)
    if largest == 0:
        raise InvalidInput(
            "all weights are 0, so that no entry of A is observed; give some above 0"
        )
    if not _LEAST <= largest <= _MOST:
        raise InvalidInput(
            f"the largest weight is {largest:.3g}, and squares times weights would be out of "
            "range; give weights / weights.max(), and divide penalties by as much"
        )
