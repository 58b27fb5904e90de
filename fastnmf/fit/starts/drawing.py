"""Rows that are drawn from all rows of the data, in the pass that checks them or from memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends.products import Matrix, dense_copy
from ...backends.sparse import SparseMatrix, concat
from ...data.dataset import Data
from ...distributed import Processes

# numbers of rows whose keys are computed at a time
_KEYS = 1 << 20
# of rows that wait in a pass until those of the least keys are chosen anew: their share of them
_WAITING = 4
# the number of the first row of a process, times its rank, where rows cannot be counted beforehand
_APART = 1 << 40


class RowsDrawn:
    """Rows of the data, each with the same chance: those of the least keys, in the order of their
    keys. A key is a random number of the seed and of the number of the row. So one seed means the
    same rows, wherever they are; and the first rows of a drawing are a smaller one.

    seed: of the fit. most(d): how many rows of d features, at most.
    """

    def __init__(self, seed: int, most: Callable[[int], int]) -> None:
        self.seed = seed
        self._most, self._first, self._passed = most, 0, 0
        self._keys, self._limit = np.empty(0, np.uint64), None
        self._parts: list[Matrix] = []

    def begin(self, rows: int | None, processes: Processes) -> None:
        """Take the number of rows here, None where it is not known, before a pass begins. A
        collective call."""
        counts = processes.gather(rows)
        known = None not in counts
        self._first = sum(counts[: processes.rank]) if known else processes.rank * _APART

    def add(self, X: Matrix) -> None:
        """Take the next rows of the pass, widened; those that are drawn are copied."""
        keys = keys_of(self.seed, self._first + self._passed, len(X))
        self._passed += len(X)
        most = self._most(X.shape[1])
        drawn = np.arange(len(X)) if self._limit is None else np.flatnonzero(keys < self._limit)
        if not most or not len(drawn):
            return
        self._parts.append(_rows(X, drawn))
        self._keys = np.concatenate((self._keys, keys[drawn]))
        if len(self._keys) > most + most // _WAITING:
            self._choose(most)

    def rows(self, data: Data) -> Matrix:
        """The rows of all processes, on the device of the data, in their dtype. A collective
        call."""
        if self._passed:
            if self._parts:
                self._choose(self._most(data.d))
            none = data.like.new_empty(0, data.d)
            keys, X = self._keys, self._parts.pop() if self._parts else none
        else:
            keys, X = self._of_memory(data)
        if isinstance(data.A, Tensor) and isinstance(X, SparseMatrix):
            X = dense_copy(X)
        if not data.processes.alone:
            X = _shared(X, keys, data, self._most(data.d))
        return X.to(dtype=data.dtype, device=data.device)

    def _choose(self, most: int) -> None:
        """Keep the rows of the least keys only, in their order."""
        order = np.argsort(self._keys)[:most]
        self._parts = [_rows(_joined(self._parts), order)]
        self._keys = self._keys[order]
        self._limit = self._keys[-1] if len(order) == most else None

    def _of_memory(self, data: Data) -> tuple[np.ndarray, Matrix]:
        """Keys and rows of data that were not read in a pass."""
        numbers, keys = least_keys(self.seed, self._first, data.n_here, self._most(data.d))
        if data.A is not None:
            return keys, _rows(data.A, numbers)
        return keys, data.take(torch.from_numpy(numbers).to(data.device))


def keys_of(seed: int, first: int, count: int) -> np.ndarray:
    """The keys (count,) of the rows from `first` on, all different: SplitMix64 of their numbers.
    Source: Steele, Lea & Flood (2014)."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return _mixed(numbers ^ _mixed(np.array([seed % 2**64], np.uint64)))


def least_keys(seed: int, first: int, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` rows from `first` on have the least keys, at most `most` of them, in the
    order of their keys; and these."""
    numbers, keys = np.empty(0, np.int64), np.empty(0, np.uint64)
    for begin in range(0, count, _KEYS):
        some = keys_of(seed, first + begin, min(_KEYS, count - begin))
        numbers = np.concatenate((numbers, np.arange(begin, begin + len(some))))
        keys = np.concatenate((keys, some))
        order = np.argsort(keys)[:most]
        numbers, keys = numbers[order], keys[order]
    return numbers, keys


def _mixed(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _rows(X: Matrix, numbers: np.ndarray) -> Matrix:
    """These rows, in this order: a copy."""
    at = torch.from_numpy(numbers).to(X.device)
    return X[at] if isinstance(X, Tensor) else X.take(at)


def _joined(parts: list[Matrix]) -> Matrix:
    if isinstance(parts[0], SparseMatrix):
        return concat([part for part in parts if isinstance(part, SparseMatrix)])
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


def _shared(X: Matrix, keys: np.ndarray, data: Data, most: int) -> Matrix:
    """The rows of the least keys of all processes, of those of each."""
    everywhere = np.sort(np.concatenate(data.processes.gather(keys)))[:most]
    here = keys <= everywhere[-1]
    place = np.searchsorted(everywhere, keys[here])
    mine = _rows(X, np.flatnonzero(here))
    if data.density is not None:
        return _gathered(mine, place, data)
    drawn = data.like.new_zeros(len(everywhere), data.d)
    drawn[torch.from_numpy(place).to(data.device)] = mine.to(drawn)
    data.processes.sum_(drawn)
    return drawn


def _gathered(mine: Matrix, place: np.ndarray, data: Data) -> SparseMatrix:
    """Sparse rows of all processes, each at its place; a process without rows has none."""
    sparse = isinstance(mine, SparseMatrix)
    given: Any = (mine.using(None).to(device="cpu"), place) if sparse else None
    found = [each for each in data.processes.gather(given) if each is not None]
    order = np.argsort(np.concatenate([places for _, places in found]))
    joined = concat([rows for rows, _ in found])
    return joined.take(torch.from_numpy(order).to(joined.device))
