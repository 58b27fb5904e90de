"""Weights of single entries, beside the data: what half-steps and measures read of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...backends.products import Matrix, tdot
from ...backends.sparse import SparseMatrix
from ...backends.weighted import Weighted
from ..storage import row_blocks
from .given import Summed

# entries that are computed with at a time
_ENTRIES = 1 << 22


@dataclass(frozen=True)
class EntryWeights(Summed):
    """Weights W (n, d) of the entries of X (n, d): both dense, X with any finite numbers where W is
    0, W bool or of any dtype; or both sparse, with the same places of what they store."""

    X: Matrix
    W: Matrix

    def tile(self, part: slice) -> tuple[Matrix, Matrix]:
        """W ∘ X and W of these rows, in the dtype of X."""
        X, W = self.X[part], self.W[part]
        if isinstance(X, SparseMatrix):
            return replace(X, values=X.values * W.values), W
        W = W.to(X.dtype)
        return W * X, W

    def beside(self, part: slice, X: Matrix) -> EntryWeights:
        """The same weights of these rows, which are X (m, d); of sparse ones with the zeros that
        are stored."""
        return EntryWeights(self.X[part] if _is_sparse(self.X) else X, self.W[part])

    def minus(self, row: Tensor) -> EntryWeights:
        """Those of X minus a row (d,)."""
        X = self.X
        if isinstance(X, SparseMatrix):
            return replace(self, X=replace(X, values=X.values - row.to(X.values)[X.col.long()]))
        return replace(self, X=X - row.to(X))

    def both_ways(self) -> tuple[Weighted, Weighted]:
        """The rows, and the features, as the operation hals_weighted_ takes them: of sparse X the
        latter is a copy."""
        X, W = self.X, self.W
        if isinstance(X, Tensor):
            assert isinstance(W, Tensor)
            rows = X, W = self.dense()
            return rows, (X.T, W.T)
        assert isinstance(W, SparseMatrix)
        Y, order = X.transposed()
        parts = ((M.crow, M.col, M.values) for M in (X, Y))
        rows, columns = parts
        ones = bool((W.values == 1).all())
        return (rows, None if ones else W.values), (columns, None if ones else W.values[order])

    def dense(self) -> tuple[Tensor, Tensor]:
        """Rows that are not sparse, as the operation takes them."""
        X, W = self.X, self.W
        assert isinstance(X, Tensor)
        assert isinstance(W, Tensor)
        return X, W if W.dtype == torch.bool else W.to(X.dtype)

    @property
    def step(self) -> int:
        """How many rows are computed with at a time."""
        n, d = self.X.shape
        return max(1, _ENTRIES // (self.X.nnz // n + 1 if _is_sparse(self.X) else d))

    def tiles(self) -> Iterator[tuple[Matrix, Matrix]]:
        """(W ∘ X, W) of all rows, `step` at a time."""
        return (self.tile(part) for part in row_blocks(len(self.X), self.step))

    @cached_property
    def of_rows(self) -> Tensor:
        """Σ w of each row (n,), in float64."""
        return torch.cat([_row_sums(W) for _, W in self.tiles()]).double()

    @cached_property
    def of_features(self) -> Tensor:
        """Σ w of each feature (d,), in float64."""
        return sum(_column_sums(W) for _, W in self.tiles())

    @cached_property
    def largest(self) -> float:
        """The largest weight."""
        W = self.W.values if isinstance(self.W, SparseMatrix) else self.W
        return float(W.max())

    @property
    def least_share(self) -> float:
        """The least mean weight of a row or a feature, as a share of the largest weight."""
        n, d = self.X.shape
        least = torch.stack((self.of_rows.amin() / d, self.of_features.amin() / n))
        return float(least.amin()) / self.largest

    @cached_property
    def squared_norm(self) -> float:
        """Σ w x²."""
        return self._squares_about(torch.zeros_like(self.of_features))

    @cached_property
    def mean_row(self) -> Tensor:
        """The weighted mean of each feature (d,)."""
        return self.mean_of(sum(_column_sums(V) for V, _ in self.tiles()))

    @cached_property
    def squared_spread(self) -> float:
        """Σ w (x − the mean of its feature)²."""
        return self._squares_about(self.mean_row)

    def _squares_about(self, row: Tensor) -> float:
        total = 0.0
        for part in row_blocks(len(self.X), self.step):
            X, W = self.X[part], self.W[part]
            if isinstance(X, SparseMatrix):
                error, w = X.values - row.to(X.values)[X.col.long()], W.values
            else:
                error, w = X - row.to(X), W.to(X.dtype)
            total += float((w * error.square()).sum(dtype=torch.float64))
        return total

    def squared_error(self, Z: Tensor, D: Tensor) -> float:
        """Σ w (x − z D)², from the residual, for the codes Z of these rows."""
        total = 0.0
        for x, w, found in self._rebuilt(Z, D):
            squares = found.sub_(x).square_().mul_(w)
            # sums of rows in the dtype take a quarter of the time of a sum in float64
            squares = squares if squares.ndim == 1 else squares.sum(1)
            total += float(squares.sum(dtype=torch.float64))
        return total

    def products(self, Z: Tensor, D: Tensor) -> tuple[float, float]:
        """Σ w x (z D) and Σ w (z D)², for the codes Z of these rows."""
        inner = square = 0.0
        for x, w, found in self._rebuilt(Z, D):
            inner += float((w * x * found).sum(dtype=torch.float64))
            square += float((w * found.square()).sum(dtype=torch.float64))
        return inner, square

    def _rebuilt(self, Z: Tensor, D: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(x, w, z D) of some rows, or of what they store, at a time."""
        Dt: Tensor | None = None
        for part in row_blocks(len(self.X), self.step):
            X, W = self.X[part], self.W[part]
            if not (isinstance(X, SparseMatrix) and isinstance(W, SparseMatrix)):
                X, W = EntryWeights(X, W).dense()
                yield X, W.to(X.dtype), Z[part] @ D
                continue
            Dt = D.T.contiguous() if Dt is None else Dt
            rows, columns = X.row_of_entries().long() + part.start, X.col.long()
            for some in row_blocks(X.nnz, max(1, _ENTRIES // len(D))):
                found = (Z[rows[some]] * Dt[columns[some]]).sum(1)
                yield X.values[some], W.values[some], found


def _is_sparse(X: Matrix) -> bool:
    return isinstance(X, SparseMatrix)


def _row_sums(W: Matrix) -> Tensor:
    if not isinstance(W, SparseMatrix):
        return W.sum(1)
    sums = W.values.new_zeros(len(W))
    return sums.index_add_(0, W.row_of_entries().long(), W.values)


def _column_sums(W: Matrix) -> Tensor:
    like = W.values if isinstance(W, SparseMatrix) else W
    return tdot(W, like.new_ones(len(W))).double()
