"""Weights of entries as a caller gives them, checked: of rows, of features, or of each entry."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidInput, warn
from ..arrays import as_matrix, tensor_of
from ..shards import open_paths, paths_of
from ..sparse.arrays import is_sparse

# entries that are checked at a time
_PART = 1 << 22
# the weights of what a sparse A stores
STORED = "stored"
KINDS = "(n, 1) for rows, (1, d) for features, or (n, d) for entries, bool or numbers ≥ 0"


@dataclass(frozen=True)
class Weights:
    """Weights w ≥ 0 of ½ Σ w (A − Z D)². rows (n,), features (d,): their weights, float64 on the
    CPU, or None for ones; entries (n, d): a weight for each entry, as it was given, or None.
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
        parts = [self.rows, self.features, self.entries]
        checksum = 0
        for part in (tensor_of(w) for w in parts if w is not None):
            checksum = zlib.crc32(
                part.detach().cpu().contiguous().view(torch.uint8).numpy(), checksum
            )
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
    if paths_of(given) is not None:
        shards = open_paths(paths_of(given))
        if len(shards) != 1 or shards[0].stored is not None:
            raise InvalidInput("weights are several files, or sparse; give one dense .npy file")
        given = shards[0].read(0, shards[0].shape[0])
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


def _column(matrix: Any) -> Tensor:
    return tensor_of(matrix).detach().to("cpu", torch.float64).reshape(-1).clone()


def _check(matrix: Any) -> None:
    """Raise InvalidInput for entries that are no weights."""
    rows, positive = max(1, _PART // matrix.shape[1]), False
    for first in range(0, matrix.shape[0], rows):
        part = matrix[first : first + rows]
        part = tensor_of(np.asarray(part) if isinstance(part, np.memmap) else part)
        if part.dtype == torch.bool:
            positive |= bool(part.any())
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
    if not positive:
        raise InvalidInput(
            "all weights are 0, so that no entry of A is observed; give some above 0"
        )
