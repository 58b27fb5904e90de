"""Summary: statistics of the data, of one process or of all."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.products import Matrix, dense_tiles, largest
from ..backends.sparse import SparseMatrix
from ..errors import InvalidInput
from ..numerics import squared_norm
from ..planning.memory import refuse_too_large
from .sparse.rows import one_kind


@dataclass(frozen=True)
class Summary:
    """Statistics of A (n, d): the dtype to compute in, ‖A‖², the largest absolute value, the column
    sums (d,) in float64, and of a sparse A how many entries it stores, else None."""

    n: int
    d: int
    dtype: torch.dtype
    squares: float
    largest: float
    columns: Tensor
    stored: int | None = None

    @property
    def mean(self) -> float:
        return float(self.columns.sum()) / (self.n * self.d)

    @classmethod
    def of_nothing(cls) -> Summary:
        """That of no rows."""
        return cls(0, 0, torch.float32, 0.0, 0.0, torch.zeros(0, dtype=torch.float64, device="cpu"))

    @classmethod
    def of_sparse(cls, X: SparseMatrix) -> Summary:
        """That of the rows of a sparse matrix."""
        (n, d), squares = X.shape, float(X.squared_norm())
        # a sparse matrix may have so many columns that not even one number for each fits
        sums = {"sums of the columns": 8 * d}
        refuse_too_large(sums, X.device, "leave out features that are zero in all rows")
        return cls(n, d, X.dtype, squares, float(largest(X)), X.column_sums().cpu(), X.nnz)

    @property
    def share(self) -> float | None:
        """The share of the entries that a sparse A stores, else None."""
        return None if self.stored is None else self.stored / max(1, self.n * self.d)

    def with_rows(self, X: Matrix, largest: float, dtype: torch.dtype) -> Summary:
        """That of these rows and X (m, d), whose largest entry is given. Writes into columns."""
        stored = None if isinstance(X, Tensor) else X.nnz + (self.stored or 0)
        columns = (
            self.columns if self.n else torch.zeros(X.shape[1], dtype=torch.float64, device="cpu")
        )
        columns += X.sum(0) if isinstance(X, Tensor) else X.column_sums()
        squares = self.squares + float(squared_norm(X))
        n, largest = self.n + len(X), max(self.largest, largest)
        return Summary(n, X.shape[1], dtype, squares, largest, columns, stored)


def joined(summaries: Sequence[Summary]) -> Summary:
    """The Summary of all rows from those of the processes, of which some may have none. Raises
    InvalidInput if their widths differ, some are sparse and some dense, or none has rows."""
    some = [summary for summary in summaries if summary.n]
    if not some:
        raise InvalidInput("A has no rows in any process; give rows to one of them at least")
    widths = {summary.d for summary in some}
    if len(widths) > 1:
        given = ", ".join(f"{summary.d}" for summary in summaries)
        raise InvalidInput(f"the processes have rows of {given} features; give all the same")
    one_kind((summary.stored is not None for summary in some), "A")
    dtype = functools.reduce(torch.promote_types, (summary.dtype for summary in some))
    return Summary(
        sum(summary.n for summary in some),
        widths.pop(),
        dtype,
        sum(summary.squares for summary in some),
        max(summary.largest for summary in some),
        sum(summary.columns for summary in some),
        None if some[0].stored is None else sum(summary.stored for summary in some),
    )


def spread_about(mean: Tensor, n: int, squares: Tensor | float) -> tuple[float, float]:
    """‖A − its mean row‖² (of n rows, with ‖A‖² = `squares`), as a difference, and ‖A‖².
    Synchronises once."""
    total, common = torch.stack((mean.new_zeros(()) + squares, mean @ mean)).tolist()
    return total - n * common, total


def squares_about(mean: Tensor, A: Matrix, rows: int) -> float:
    """The squared distance of A (n, d) to a row, some rows at a time."""
    tiles = dense_tiles(A, max(1, rows))
    return float(sum(squared_norm(tile - mean) for _, tile in tiles))
