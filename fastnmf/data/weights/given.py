"""Weights of entries as a caller gives them, checked: of rows, of features, or of each entry."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidInput, warn
from ..arrays import as_matrix, tensor_of
from ..shards import Shards, open_paths, paths_of
from ..sparse.arrays import is_sparse

# entries that are checked at a time
_PART = 1 << 22
# the weights of what a sparse A stores
STORED = "stored"
KINDS = "(n, 1) for rows, (1, d) for features, or (n, d) for entries, bool or numbers ≥ 0"


@dataclass(frozen=True)
class Weights:
    """Weights w ≥ 0 of ½ Σ w (A − Z D)². rows (n,), features (d,): their weights, float64 on the
    CPU, or None for ones; entries (n, d): a weight for each entry, as it was given, Shards of what
    is in files, or None.
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
    def ignores(self) -> bool:
        """Whether some rows or features have the weight 0."""
        return any(w is not None and bool((w == 0).any()) for w in (self.rows, self.features))

    def identity(self) -> str:
        """By which weights of the same kind are compared."""
        checksum = 0
        for given in (self.rows, self.features, self.entries):
            for part in () if given is None else parts_of(given):
                numbers = part.detach().cpu().contiguous().view(torch.uint8).numpy()
                checksum = zlib.crc32(numbers, checksum)
        return f"{self.kind}, checksum {checksum:x}"

    def warn_of_unobserved(self) -> None:
        """Warn of rows and features without any weight."""
        warn_of_unobserved(self.rows, self.features)


def warn_of_unobserved(rows: Tensor | None, features: Tensor | None) -> None:
    """Warn of rows and features without any weight, given the weight of each, or the sum of its
    entries' weights; None: all have one."""
    for what, w, then in (
        ("rows", rows, "their codes are zero"),
        ("features", features, "the concepts keep there what they started with"),
    ):
        count = 0 if w is None else int((w == 0).sum())
        if count:
            warn(f"{count:,} {what} of A have no entry with a weight above 0: {then}")


def read_weights(given: Any, d: int | None = None) -> Weights:
    """The weights that a caller gives: a matrix of one row, of one column, or of the shape of A, as
    a tensor, an array, a data frame, lists, or the path of a file. d: the features of A, which
    tells weights of rows from those of features where both have one entry.

    Raises InvalidInput for other shapes and for entries that are negative, not finite or all zero,
    and TypeError for what is no matrix.
    """
    if isinstance(given, Weights):
        return given
    if isinstance(given, str) and given == STORED:
        return Weights(stored=True)
    source = given
    if (paths := paths_of(given)) is not None:
        shards = Shards(open_paths(paths), "weights", paths=paths)
        if shards.stored is not None:
            raise InvalidInput("weights are sparse; give dense files, such as .npy")
        if min(shards.shape) > 1:
            _check(shards)
            return Weights(entries=shards, source=source)
        given = whole(shards)
    if isinstance(given, str):
        raise InvalidInput(f"weights={given!r} is no matrix of weights; give {KINDS}")
    if is_sparse(given):
        raise InvalidInput(f"weights are sparse; give {KINDS}")
    matrix = as_matrix(given, "weights")
    if matrix is None:
        raise TypeError(f"weights are a {type(given).__name__}; give {KINDS}")
    if matrix.ndim == 1:
        m = len(matrix)
        raise InvalidInput(
            f"weights have shape ({m},): give weights.reshape({m}, 1) for rows, or "
            f"weights.reshape(1, {m}) for features"
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidInput(f"weights have shape {tuple(matrix.shape)}; give {KINDS}")
    _check(matrix)
    n, width = matrix.shape
    if width == 1 and (n > 1 or d not in (None, 1)) and d != 1:
        return Weights(rows=_column(matrix), source=source)
    if n == 1:
        return Weights(features=_column(matrix), source=source)
    if width == 1:
        return Weights(rows=_column(matrix), source=source)
    return Weights(entries=matrix, source=source)


def parts_of(given: Any) -> Iterator[Tensor]:
    """The weights in a matrix or in Shards, as they are stored, some rows at a time."""
    if isinstance(given, Shards):
        yield from (tensor_of(values) for values, _, _ in given.parts())
        return
    rows = max(1, _PART // max(1, math.prod(given.shape[1:])))
    for first in range(0, len(given), rows):
        part = given[first : first + rows]
        yield tensor_of(np.array(part) if isinstance(part, np.memmap) else part)


def whole(given: Any) -> Tensor:
    """The weights in a matrix or in Shards, as they are stored, in memory."""
    return torch.cat([*parts_of(given)]) if isinstance(given, Shards) else tensor_of(given)


def _column(matrix: Any) -> Tensor:
    return tensor_of(matrix).detach().to("cpu", torch.float64).reshape(-1).clone()


def _check(matrix: Any) -> None:
    """Raise InvalidInput for entries that are no weights."""
    first, positive = 0, False
    for part in parts_of(matrix):
        if part.dtype == torch.bool:
            positive |= bool(part.any())
            first += len(part)
            continue
        bad = ~(part >= 0) | torch.isinf(part) if part.is_floating_point() else part < 0
        if bool(bad.any()):
            i, j = divmod(int(bad.flatten().byte().argmax()), part.shape[1])
            number = f"{float(part[i, j]):g}".replace("-", "−")
            raise InvalidInput(
                f"weights have an entry that is negative, nan or inf, at row {first + i}, column "
                f"{j}: {number}; weights are finite and ≥ 0, 0 for what is missing"
            )
        positive |= bool((part > 0).any())
        first += len(part)
    if not positive:
        raise InvalidInput(
            "all weights are 0, so that no entry of A is observed; give some above 0"
        )
