"""Weights of rows and features by scaling: ½ Σ r_i c_j (A − Z D)² is ½ ‖A' − Z' D'‖² of
A' = √r A √c, Z' = √r Z and D' = D √c."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...backends.products import Matrix, dense_tiles, tdot
from ...backends.sparse import SparseMatrix
from ...errors import InvalidInput
from ...numerics import Part, compute_dtype, squared_norm
from ..arrays import (
    NON_NEGATIVE,
    Expected,
    ValueCheck,
    as_matrix,
    batches_in,
    check_values,
    tensor_of,
    two_dimensional,
)
from ..sources import rows_of_files
from ..sparse.arrays import is_sparse, sparse_matrix
from ..sparse.files import matrix_of
from ..sparse.rows import any_batch
from ..storage import NotKept, Storage
from .given import Weights

# entries that are summed at a time
_SUMMED = 1 << 20


@dataclass(frozen=True)
class Scale:
    """√r (n,) of the rows and √c (d,) of the features, float64 on the CPU; None for ones."""

    rows: Tensor | None = None
    features: Tensor | None = None

    @classmethod
    def of_weights(cls, weights: Weights) -> Scale:
        """That of weights of rows or of features."""
        rows, features = weights.rows, weights.features
        return cls(*(None if w is None else w.sqrt() for w in (rows, features)))

    @property
    def observed_rows(self) -> Tensor | None:
        """Which rows have a weight above 0 (n,); None for all."""
        return None if self.rows is None or bool((self.rows > 0).all()) else self.rows > 0

    def check_shape(self, n: int | None, d: int) -> None:
        """Raise InvalidInput unless it suits A (n, d); n=None: its rows are not known."""
        for what, w, length in (("rows", self.rows, n), ("features", self.features, d)):
            if w is not None and length is not None and len(w) != length:
                shape = f"({len(w)}, 1)" if what == "rows" else f"(1, {len(w)})"
                wide = (length, 1) if what == "rows" else (1, length)
                same = f", such as weights.expand{wide}" if len(w) == 1 else ""
                raise InvalidInput(
                    f"weights have shape {shape}, A has {length} {what}; give a weight for each"
                    f"{same}"
                )

    def observed(self, X: Part, first: int = 0) -> Tensor:
        """Rows X (m, d) from `first` on, in the dtype to compute in, with zeros for what has the
        weight 0, whatever it is."""
        X = X if isinstance(X, Tensor) else tensor_of(X)
        X = X.to(compute_dtype(X))
        for w in self._beside(X, first):
            X = torch.where(w > 0, X, 0) if bool((w == 0).any()) else X
        return X

    def of_rows(self, X: Part, first: int = 0) -> Tensor:
        """The same, scaled: a copy."""
        return self.of_observed(self.observed(X, first), first)

    def of_observed(self, X: Tensor, first: int = 0) -> Tensor:
        """The same of what `observed` returns."""
        for w in self._beside(X, first):
            X = X * w
        return X

    def of(self, X: Part | SparseMatrix, first: int = 0) -> Matrix:
        """The same of a matrix of either kind."""
        return self.of_sparse(X, first) if isinstance(X, SparseMatrix) else self.of_rows(X, first)

    def of_sparse(self, X: SparseMatrix, first: int = 0) -> SparseMatrix:
        """The same of a sparse matrix."""
        values = X.values
        if self.rows is not None:
            w = self.rows[first : first + len(X)].to(values)
            values = _masked(values, w[X.row_of_entries().long()])
        if self.features is not None:
            values = _masked(values, self.features.to(values)[X.col.long()])
        return replace(X, values=values)

    def of_pair(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """(Z0', D0') of a start (Z0, D0), which is checked later: what is no matrix of the right
        size stays as it is."""
        Z, D = pair
        if self.rows is not None and is_sparse(Z):
            Z = scaled(Z, Scale(self.rows))
        elif self.rows is not None and (codes := _sized(Z, "Z0", 0, self.rows)) is not None:
            Z = Scale(self.rows).of_rows(codes)
        if self.features is not None and (found := _sized(D, "D0", 1, self.features)) is not None:
            D = Scale(features=self.features).of_rows(found)
        return Z, D

    def of_dictionary(self, D: Tensor | None) -> Any:
        """D' (K, d), D itself without weights of features."""
        return D if D is None or self.features is None else D * self.features.to(D)

    def of_given(self, D: Any) -> Any:
        """D' of a dictionary as it is given, if it has as many features."""
        found = None if self.features is None else _sized(D, "D", 1, self.features)
        if found is None:
            return D
        found = D if isinstance(D, Tensor) else tensor_of(found)
        return self.of_dictionary(found.to(compute_dtype(found)))

    def of_codes(self, Z: Matrix) -> Matrix:
        """Z' (n, K), Z itself without weights of rows."""
        if self.rows is None:
            return Z
        if isinstance(Z, SparseMatrix):
            return Scale(self.rows).of_sparse(Z)
        return Z * self.rows.to(Z)[:, None]

    def dictionary_of(self, D: Tensor | None, unobserved: Tensor | None = None) -> Any:
        """D (K, d) from D'; features of weight 0 are those of `unobserved`, or zero."""
        if D is None or self.features is None:
            return D
        w = self.features.to(D)
        kept = torch.zeros_like(D) if unobserved is None else unobserved.to(D)
        return torch.where(w > 0, D / torch.where(w > 0, w, 1), kept)

    def take_from_codes_(self, Z: Storage) -> None:
        """Z ← Z from Z', in place; codes of rows of weight 0 become zero."""
        if self.rows is None or isinstance(Z, NotKept):
            return
        first = 0
        for rows in Z.blocks_():
            w = self.rows[first : first + len(rows)].to(rows)[:, None]
            rows.copy_(torch.where(w > 0, rows / torch.where(w > 0, w, 1), 0))
            first += len(rows)

    def _beside(self, X: Tensor, first: int) -> Iterator[Tensor]:
        if self.rows is not None:
            yield self.rows[first : first + len(X)].to(X)[:, None]
        if self.features is not None:
            yield self.features.to(X)


@dataclass(frozen=True)
class ScaledRows:
    """Statistics of rows X = √r A √c, given `chunks`, a function that passes over (part, X) of the
    rows here, and `sum_`, which sums over processes."""

    roots: Tensor
    d: int
    chunks: Callable[[], Iterable[tuple[slice, Matrix]]]
    sum_: Callable[[Tensor], None]

    @cached_property
    def mean_row(self) -> Tensor:
        """Σ √r X / Σ r (d,), in float64: the weighted mean of A √c."""
        sums: Tensor | None = None
        for part, X in self.chunks():
            found = tdot(X, self.roots[part].to(X.device, X.dtype)).double()
            sums = found if sums is None else sums + found
        assert sums is not None
        sums = torch.cat((sums, self.roots.square().sum()[None].to(sums)))
        self.sum_(sums)
        return sums[:-1] / sums[-1]

    @cached_property
    def squared_spread(self) -> float:
        """Σ ‖X − √r μ‖² for that mean μ."""
        mean = self.mean_row
        total = torch.zeros((), dtype=torch.float64, device=mean.device)
        for part, X in self.chunks():
            for some, rows in dense_tiles(X, max(1, _SUMMED // self.d)):
                r = self.roots[part][some].to(rows)
                total += squared_norm(rows - r[:, None] * mean.to(rows))
        self.sum_(total)
        return float(total)


def _sized(F: Any, name: str, axis: int, w: Tensor) -> Part | None:
    """F as a matrix if it has the length of w along an axis, else None."""
    matrix = None if F is None or is_sparse(F) else as_matrix(F, name)
    sized = matrix is not None and matrix.ndim == 2 and matrix.shape[axis] == len(w)
    return matrix if sized else None


def _masked(values: Tensor, w: Tensor) -> Tensor:
    # 0 · nan is nan
    return torch.where(w > 0, values * w, 0)


def scaled(A: Any, scale: Scale, expected: Expected = NON_NEGATIVE) -> Any:
    """A', of what a fit takes: rows that are in memory are copied, those of files, memory maps and
    batches are scaled whenever they are read. Raises InvalidInput where the weights do not suit A,
    and for values in memory that cannot be used."""
    A, name = matrix_of(A), expected.name
    if is_sparse(A):
        X = sparse_matrix(A, expected, A.device if isinstance(A, Tensor) else "cpu", checks=False)
        scale.check_shape(*X.shape)
        return scale.of_sparse(X)
    if (rows := rows_of_files(A, expected)) is not None:
        scale.check_shape(*rows.shape)
        return rows.changed(scale.of)
    matrix = as_matrix(A, name)
    if matrix is None:
        return _Batches(A, scale, name) if not isinstance(A, Iterator) else _scaled(A, scale, name)
    matrix = two_dimensional(A if isinstance(A, Tensor) else matrix, name)
    scale.check_shape(*matrix.shape)
    if isinstance(A, Tensor) and A.requires_grad:
        return scale.of_rows(A)
    kind = "torch" if isinstance(matrix, Tensor) else "numpy"
    # the numbers that are reported are those of A
    X = scale.observed(matrix)
    check_values(X, ValueCheck(expected, kind))
    return scale.of_observed(X)


def _scaled(A: Any, scale: Scale, name: str) -> Iterator[Matrix]:
    """The batches of A, scaled."""
    first = 0
    for part in batches_in(A, name, as_batch=any_batch):
        scale.check_shape(None, part.shape[1])
        after = first + part.shape[0]
        if scale.rows is not None and after > len(scale.rows):
            scale.check_shape(after, part.shape[1])
        yield scale.of(part, first)
        first = after
    if scale.rows is not None:
        scale.check_shape(first, part.shape[1])


class _Batches:
    """Batches that are scaled in every pass."""

    def __init__(self, A: Any, scale: Scale, name: str) -> None:
        self._given = A, scale, name

    def __iter__(self) -> Iterator[Matrix]:
        return _scaled(*self._given)
