"""Compressed: where the codes of a fit are in memory in compressed rows; and rows of a start, which
are made whenever they are read, and never stored dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix, concat
from .codes import SPARSE, compressed

# bytes of rows that are made dense at a time
_PART_BYTES = 16 << 20


class Made:
    """Rows (n, K) that are made when they are read. Reading them in order makes all of them once.

    blocks(): makes them anew, in order, some at a time. Each row is multiplied by its entry of
    `used` (n,), if there is one, and by `factor`.
    """

    def __init__(self, blocks: Callable[[], Iterator[Tensor]]) -> None:
        self._blocks = blocks
        self.used: Tensor | None = None
        self.factor = 1.0
        self._restart()

    def _restart(self) -> None:
        # the first row that was not read yet, and those from there on that were made
        self._next, self._waiting, self._source = 0, None, self._blocks()

    def load(self, part: slice) -> Tensor:
        """These rows, dense: memory of their own."""
        if part.start < self._next:
            self._restart()
        if part.start > self._next:
            self._take(part.start - self._next)
        Z = self._take(part.stop - part.start)
        if self.used is not None:
            Z.mul_(self.used[part, None])
        return Z.mul_(self.factor) if self.factor != 1 else Z

    def _take(self, count: int) -> Tensor:
        """The next rows."""
        parts, missing = [], count
        while missing:
            block = next(self._source) if self._waiting is None else self._waiting
            taken = block[:missing]
            self._waiting = block[missing:] if len(block) > missing else None
            parts.append(taken)
            missing -= len(taken)
        self._next += count
        if len(parts) > 1:
            return torch.cat(parts)
        # rows that wait must not change with these
        return parts[0] if self._waiting is None else parts[0].clone()


class Compressed:
    """Rows (n, K) in memory in compressed rows, for a fit: rows that were never
    saved are zero, or those of a start, and what is loaded is a dense copy."""

    place = SPARSE

    def __init__(self, n: int, K: int, like: Tensor) -> None:
        """like: a tensor of their dtype on their device."""
        self.shape, self.dtype, self.device = (n, K), like.dtype, like.device
        self._like, self.start = like, None
        self.fill_(self._zeros(n))

    def _zeros(self, n: int) -> SparseMatrix:
        none = compressed(self._like.new_empty(0, self.shape[1]))
        crow = none.crow.new_zeros(n + 1)
        return SparseMatrix(crow, none.col, none.values, (n, self.shape[1]))

    def fill_(self, Z: SparseMatrix) -> None:
        """Store Z as all rows."""
        # by the first row of each; they follow each other without gaps
        self._parts, self.start = {0: Z}, None

    def begin_(self, start: Made) -> None:
        """Begin with these rows, which are made when they are loaded, until others are saved in
        their place."""
        self._parts, self.start = {0: self._zeros(0)}, start

    @property
    def _stored(self) -> int:
        """The rows before the first one of a start."""
        last = max(self._parts)
        return last + len(self._parts[last])

    def load(self, part: slice) -> Tensor:
        """These rows, dense."""
        if self.start is not None and part.start >= self._stored:
            return self.start.load(part)
        return self.take(part).to_dense()

    def save(self, part: slice, Z: Tensor) -> None:
        """Store Z as these rows."""
        self.put(part, compressed(Z.to(self.device)))

    def take(self, part: slice) -> SparseMatrix:
        """These rows, as they are stored."""
        if self.start is not None and part.start >= self._stored:
            return compressed(self.start.load(part))
        self._store_start(part.stop)
        return concat([self._parts[first] for first in self._within(part)])

    def put(self, part: slice, Z: SparseMatrix) -> None:
        """Store these entries as these rows."""
        if self.start is not None and part.start > self._stored:
            self._store_start(part.start)
        for first in self._within(part):
            del self._parts[first]
        self._parts[part.start] = Z
        if self.start is not None and self._stored == self.shape[0]:
            self.start = None

    def scale_(self, factor: Tensor) -> None:
        """Multiply the rows by factor (K,)."""
        self._store_start(self.shape[0])
        for first, Z in self._parts.items():
            scaled = replace(Z, values=Z.values * factor[Z.col].to(Z.dtype))
            self._parts[first] = scaled.without_zeros()

    def blocks_(self) -> Iterator[Tensor]:
        """All rows in order, some at a time; what becomes of them in place is kept."""
        n, K = self.shape
        rows = max(1, _PART_BYTES // (K * self.dtype.itemsize))
        for first in range(0, n, rows):
            part = slice(first, min(n, first + rows))
            Z = self.load(part)
            yield Z
            self.save(part, Z)

    def parts(self) -> list[SparseMatrix]:
        """All rows in order, as they are stored."""
        self._store_start(self.shape[0])
        return [self._parts[first] for first in sorted(self._parts)]

    def matrix(self) -> SparseMatrix:
        """All rows."""
        return concat(self.parts())

    def _store_start(self, stop: int) -> None:
        """Store the rows before this one that are those of a start."""
        n, K = self.shape
        rows = max(1, _PART_BYTES // (K * self.dtype.itemsize))
        while self.start is not None and (first := self._stored) < stop:
            part = slice(first, min(n, first + rows))
            self.put(part, compressed(self.start.load(part)))

    def _within(self, part: slice) -> list[int]:
        """The first rows of the parts that these rows are, in order, after cuts at their ends."""
        for row in (part.start, part.stop):
            first = max((first for first in self._parts if first <= row), default=0)
            held = self._parts[first]
            if first < row < first + len(held):
                self._parts[first] = held[: row - first]
                self._parts[row] = held[row - first :]
        return sorted(first for first in self._parts if part.start <= first < part.stop)
