"""Rows of sparse data that are read some at a time: batches, their checks and chunks of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix, concat
from ...errors import InvalidInput
from ...numerics import Part
from ..arrays import Expected, ValueCheck, dense_batch
from .arrays import is_sparse, sparse_matrix

# of a batch: its values are checked with all others, and it may have no rows
_BATCH = {"signed": True, "empty": True}


def any_batch(batch: Any, name: str, vector_is_row: bool) -> Part | SparseMatrix:
    """A batch, dense or sparse, or the first item of a tuple, as a matrix; values are not
    checked."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if is_sparse(first):
        return sparse_matrix(first, Expected(name, **_BATCH))
    return dense_batch(batch, name, vector_is_row)


def largest_of(check: ValueCheck, X: SparseMatrix, place: str, first: int) -> float:
    """The largest absolute value of X, the rows of `place` from `first` on. Counts what cannot be
    used."""
    if not X.nnz:
        return 0.0
    low, high = torch.stack(torch.aminmax(X.values)).tolist()
    if not check.usable(min(low, 0.0), high):
        inside = "" if place == check.name else f"in {place} "

        def where(entry: int) -> str:
            row = int(torch.searchsorted(X.crow.contiguous(), entry, right=True)) - 1
            return f"{inside}at row {first + row}, column {int(X.col[entry])}"

        check.count(X.values, where)
    return max(-low, high)


def chunks_of(
    parts: Iterable[SparseMatrix], rows: int, dtype: torch.dtype
) -> Iterator[tuple[slice, SparseMatrix]]:
    """(part, X) of `rows` rows in order, fewer at the end, across the bounds of the parts, in this
    dtype."""
    first, waiting, held = 0, [], 0
    for X in parts:
        X, taken = X.to(dtype), 0
        while taken < len(X):
            count = min(rows - held, len(X) - taken)
            waiting.append(X[taken : taken + count])
            taken, held = taken + count, held + count
            if held == rows:
                yield slice(first, first + rows), concat(waiting)
                first, waiting, held = first + rows, [], 0
    if held:
        yield slice(first, first + held), concat(waiting)


def one_kind(sparse: Iterable[bool], name: str) -> None:
    """Raise InvalidInput if some rows are sparse and some are not."""
    if len({*sparse}) > 1:
        raise InvalidInput(
            f"some rows of {name} are sparse and others dense; give all in the same form"
        )


def mean_share(shares: list[tuple[float | None, int]], name: str) -> float | None:
    """The share of the entries that is stored of parts, (share, rows) of each, or None where they
    are dense. Raises InvalidInput if some with rows are sparse and some dense."""
    filled = [part for part in shares if part[1]] or shares[:1]
    one_kind((share is not None for share, _ in filled), name)
    if filled[0][0] is None:
        return None
    return sum(share * rows for share, rows in filled) / max(1, sum(rows for _, rows in filled))


def copied(X: SparseMatrix) -> SparseMatrix:
    """X with memory of its own."""
    return SparseMatrix(X.crow.clone(), X.col.clone(), X.values.clone(), X.shape)


def stored_parts(A: Any) -> Iterator[Part]:
    """The arrays of entries and indices of a sparse matrix of scipy or torch."""
    if not isinstance(A, Tensor):
        names = ("data", "indices", "indptr", "row", "col")
        yield from (getattr(A, name) for name in names if hasattr(A, name))
        return
    names = {
        torch.sparse_coo: ("_indices", "_values"),
        torch.sparse_csr: ("crow_indices", "col_indices", "values"),
        torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    }
    yield from (getattr(A, name)() for name in names.get(A.layout, ()))
