"""Entries that are observed because they are stored: of a sparse A, or those of sparse weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backends.sparse import SparseMatrix
from ...errors import InvalidInput
from ...numerics import compute_dtype
from ...planning.memory import refuse_too_large
from ..arrays import Expected, ValueCheck
from ..shards import Shards, open_paths, paths_of
from ..sparse.arrays import is_sparse, sparse_matrix
from ..sparse.files import loaded
from ..sparse.whole import read_h5ad, read_sparse
from ..tables import Wanted, imported
from .entries import EntryWeights
from .given import KINDS, Weights
from .observed import whole_of

# what reads the sparse matrix in a file, by its suffix; copies of it meanwhile, and bytes of an
# index
_READERS = {".npz": read_sparse, ".h5ad": read_h5ad}
_WANTED = Wanted("auto", None, sparse=True)
_COPIES, _INDEX = 3, 8


def stored_entries(
    A: Any, weights: Weights, expected: Expected, device: torch.device
) -> EntryWeights:
    """The entries of A (n, d) that are observed with weights that are `sparse`: those that a sparse
    A stores, zeros too, with the weight 1, or those that the weights store; A is then sparse or
    dense. Raises InvalidInput where A and the weights do not suit each other."""
    if not weights.stored:
        return _at_places(A, weights.entries, expected, device)
    A, name = _loaded(A), expected.name
    if not is_sparse(A):
        raise InvalidInput(
            f"weights='stored' are those of the entries that a sparse {name} stores, and {name} is "
            f"dense; give a mask (n, d), such as weights=~torch.isnan({name})"
        )
    X = sparse_matrix(A, expected, device, zeros=True)
    if not X.nnz:
        raise InvalidInput(f"{name} stores no entry, so that none is observed; give some")
    return EntryWeights(X, replace(X, values=torch.ones_like(X.values)))


def _at_places(A: Any, W: SparseMatrix, expected: Expected, device: torch.device) -> EntryWeights:
    """The entries of A where W stores a weight; what a sparse A does not store is 0 there."""
    A = _loaded(A)
    rows, columns = W.row_of_entries().long(), W.col.long()
    if is_sparse(A):
        A = sparse_matrix(A, expected, checks=False)
        _check_shape(W, A.shape)
        d = W.shape[1]
        places, wanted = A.row_of_entries().long() * d + A.col, rows * d + columns
        at = torch.searchsorted(places, wanted).clamp(max=max(0, A.nnz - 1))
        found = places[at] == wanted if A.nnz else torch.zeros_like(wanted, dtype=torch.bool)
        values = torch.where(found, A.values[at], 0) if A.nnz else A.values.new_zeros(W.nnz)
    else:
        X = whole_of(A, expected)
        expected.check_shape(tuple(X.shape))
        _check_shape(W, X.shape)
        values = X[rows.to(X.device), columns.to(X.device)]
    dtype = torch.promote_types(expected.dtype or torch.float32, compute_dtype(values))
    X = replace(W, values=values.to(device, dtype)).to(device=device)
    _check(X, rows, expected)
    return EntryWeights(X, W.to(dtype, device))


def _check_shape(W: SparseMatrix, shape: tuple[int, ...]) -> None:
    if tuple(W.shape) != tuple(shape):
        raise InvalidInput(f"weights have shape {W.shape}, A has {tuple(shape)}; give {KINDS}")


def _check(X: SparseMatrix, rows: Tensor, expected: Expected) -> None:
    """Raise InvalidInput for entries that cannot be used, by their places in A."""
    values = X.values
    check = ValueCheck(expected)
    if check.usable(*(bound.item() for bound in torch.aminmax(values))):
        return
    check.count(values, lambda entry: f"at row {int(rows[entry])}, column {int(X.col[entry])}")
    check.report()


def _loaded(A: Any) -> Any:
    """A in memory, of sparse files with the zeros that they store; dense files stay as they are."""
    paths = paths_of(A)
    if paths is None:
        return loaded(A)
    shards = Shards(open_paths(paths), "A", paths=paths)
    if shards.stored is None:
        return A
    (n, d), entry = shards.shape, shards.dtype.itemsize + _INDEX
    sizes = {"the entries that A stores": int(_COPIES * shards.stored * n * d * entry)}
    refuse_too_large(sizes, torch.device("cpu"), "give fewer rows")
    parts = [_READERS[Path(path).suffix](Path(path), _WANTED) for path in paths]
    return parts[0] if len(parts) == 1 else imported("scipy.sparse", "A").vstack(parts)
