"""Half-steps on data whose entries have weights, in which each row, and each feature, is a problem
of its own; on data in memory, and on those of passes over rows."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ...backends.weighted import Grams, Weighted
from ...data.dataset import Data
from ...data.storage import Kept, row_blocks
from ...data.weights.read import EntriesRead
from ...solvers.half_step import Operations

# products of pairs of codes that are in memory at a time; rows of them, at least
_PAIRS, _LEAST_ROWS = 1 << 21, 64
# what a half-step takes beside the factors: penalty, sums, sweeps, whether entries are ≥ 0
How = tuple[tuple[float, Tensor] | None, Tensor, int, bool]


class HalfSteps(ABC):
    """Both half-steps of an iteration. In those of the codes each row is a problem of its own, and
    nothing is summed over rows, unless a class says otherwise."""

    def __init__(self, ops: Operations) -> None:
        self._ops = ops

    def codes_(self, rows: Weighted, Z: Tensor, D: Tensor, how: How) -> None:
        """The sweeps of hals_weighted_ on the codes Z (m, K) of these rows."""
        penalty, sums, sweeps, bounded = how
        self._ops["hals_weighted_"](Z.T, rows, D, penalty, sums, sweeps, bounded)

    def begin_(self) -> None:  # noqa: B027
        """Forget the sums of the iteration before."""

    def add_(self, rows: Weighted, Z: Tensor) -> None:  # noqa: B027
        """Add rows whose codes are Z (m, K) now."""

    @abstractmethod
    def sweep_(self, D: Tensor, Z: Kept, how: How) -> None:
        """The sweeps of hals_weighted_ on the dictionary D (K, d), after all rows were added."""


class InMemory(HalfSteps):
    """Of data in memory, of which nothing is summed over rows: columns, and their weights, are read
    as they are."""

    def __init__(self, features: Weighted, ops: Operations) -> None:
        super().__init__(ops)
        self._features = features

    def sweep_(self, D: Tensor, Z: Kept, how: How) -> None:
        penalty, sums, sweeps, bounded = how
        codes = Z.load(slice(0, Z.shape[0])).T
        given = D, self._features, codes, penalty, sums, sweeps, bounded
        self._ops["hals_weighted_"](*given)


class InPasses(HalfSteps):
    """Of data that are read in passes, by Gram matrices of as many features as are in memory at a
    time: those of the first are summed in the pass over the codes, of others in a pass of their
    own. n d K² flops by products of matrices."""

    def __init__(self, data: Data, weights: EntriesRead, D: Tensor, ops: Operations) -> None:
        super().__init__(ops)
        self._data, self._weights = data, weights
        self._blocks = [*row_blocks(D.shape[1], weights.features)]
        self._largest = Grams.empty(D[:, self._blocks[0]])

    def begin_(self) -> None:
        self._begin_block_(self._blocks[0])

    def _begin_block_(self, block: slice) -> None:
        self._block, self._empty = block, True
        self._grams = self._largest.first(block.stop - block.start)

    def add_(self, rows: Weighted, Z: Tensor) -> None:
        X, W = rows
        assert isinstance(X, Tensor)
        assert W is not None
        for part in row_blocks(len(X), max(_LEAST_ROWS, _PAIRS // len(self._grams.G))):
            columns = X[part, self._block].T, W[part, self._block].T.to(X.dtype)
            self._grams.take_(columns, Z[part].T.contiguous(), adds=not self._empty)
            self._empty = False

    def sweep_(self, D: Tensor, Z: Kept, how: How) -> None:
        for block in self._blocks:
            if block.start > 0:
                self._begin_block_(block)
                for part, X, codes in self._data.chunks(Z, save=False):
                    assert codes is not None
                    self.add_(self._weights.beside(part, X).dense(), codes)
            self._grams.sweep_(D[:, block], *how, self._ops["hals_each_"])
