"""Products with the data and measures of their rows, for dense and sparse data alike: what other
modules do with rows of the data goes through here, or through tiles of rows made dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ..numerics import largest_entry, product, squared_norm, times_power, wide, widened
from .sparse import SparseMatrix

Matrix = Tensor | SparseMatrix

# bytes of rows that are made dense at a time
DENSE_BYTES = 8 << 20
# pairs of entries that are multiplied at a time
_PAIRS = 1 << 19
# units of rounding of ‖X‖² down to which ‖X − Z D‖² is computed as a difference, where X is sparse
_COARSE = 1e5


def stored_share(X: Matrix) -> float | None:
    """The share of the entries of X that is stored where it is sparse, else None."""
    return None if isinstance(X, Tensor) else X.nnz / max(1, X.shape[0] * X.shape[1])


def operand(X: Matrix, B: Tensor) -> Tensor:
    """B (K, p) transposed, as `dot` reads it fastest; computed once for all tiles of X."""
    # on a CPU the product copies what it needs of it; a copy of all may be larger than the codes
    return B.T if isinstance(X, Tensor) or X.device.type == "cpu" else B.T.contiguous()


def dot(X: Matrix, Bt: Tensor, out: Tensor | None = None, every: int = 1) -> Tensor:
    """X Bt (m, K), in `out` if given, for X (m, p), of every `every`-th column of X, and Bt (p, K)
    or a vector."""
    if isinstance(X, Tensor):
        X = X if every == 1 else X[:, ::every]
        return product(X, Bt) if out is None else torch.mm(X, Bt, out=out)
    if Bt.ndim == 1:
        return X.dot(Bt[:, None])[:, 0]
    if every > 1:
        some, Bt = Bt, Bt.new_zeros(X.shape[1], Bt.shape[1])
        Bt[::every] = some
    return X.dot(Bt, out)


def tdot(X: Matrix, w: Tensor) -> Tensor:
    """Xᵀ w (p,) for X (m, p) and a vector w (m,)."""
    return X.T @ w if isinstance(X, Tensor) else X.tdot(w[:, None])[:, 0]


def largest(X: Matrix) -> Tensor:
    """The largest absolute value of X, a scalar on its device."""
    if isinstance(X, Tensor):
        return largest_entry(X)
    return largest_entry(X.values) if X.nnz else X.values.new_zeros(())


def add_tdot_(out: Tensor, X: Matrix, Z: Tensor, every: int = 1) -> None:
    """out (p, K) += Xᵀ Z for X (m, p), of every `every`-th column of X, and Z (m, K)."""
    if isinstance(X, Tensor):
        out.addmm_(X[:, ::every].T, Z)
    elif every == 1 and out.is_contiguous():
        X.tdot(Z, out, adds=True)
    else:
        out += X.tdot(Z)[::every]


def cross_(cross: Tensor, X: Matrix, Z: Tensor, moments_: Callable, *, adds: bool) -> None:
    """cross (K, p) ← Zᵀ X, or cross + Zᵀ X if adds; for dense data by the operation moments_."""
    if isinstance(X, Tensor):
        moments_(Z.T, X, cross, adds=adds)
    elif cross.stride(0) == 1:
        X.tdot(Z, cross.T, adds=adds)
    else:
        found = X.tdot(Z).T
        cross.add_(found) if adds else cross.copy_(found)


def add_gram_(gram: Tensor, Z: SparseMatrix) -> None:
    """gram (K, K) += Zᵀ Z for Z (m, K), from the pairs of entries of each row."""
    flat, K = gram.view(-1), Z.shape[1]
    pairs = Z.crow.diff().long().square().cumsum(0)
    first = 0
    while first < len(Z):
        # at least a row
        before = pairs[first - 1] if first else 0
        last = max(first + 1, int(torch.searchsorted(pairs, before + _PAIRS, right=True)))
        some = Z[first:last]
        count = some.crow.diff().long()
        of_entry = count[some.row_of_entries().long()]
        left = torch.repeat_interleave(of_entry)
        place = torch.arange(len(left), device=Z.device)
        place -= (of_entry.cumsum(0) - of_entry)[left]
        right = some.crow[some.row_of_entries().long()].long()[left] + place
        col, values = some.col.long(), some.values.to(gram.dtype)
        flat.index_add_(0, col[left] * K + col[right], values[left] * values[right])
        first = last


def dense(X: Matrix) -> Tensor:
    """X widened, and dense."""
    return widened(X) if isinstance(X, Tensor) else X.to_dense()


def dense_rows(d: int, itemsize: int) -> int:
    """How many rows of d features are made dense at a time."""
    return max(1, DENSE_BYTES // (d * itemsize))


def dense_tiles(X: Matrix, most: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """(part, rows of X, widened and dense) in order: of sparse data a few at a time, of dense data
    up to `most`, by default all."""
    m, p = X.shape
    step = max(1, most or m)
    if not isinstance(X, Tensor):
        step = min(step, dense_rows(p, X.dtype.itemsize))
    for i in range(0, m, step):
        part = slice(i, min(i + step, m))
        yield part, dense(X[part])


def dense_copy(X: SparseMatrix) -> Tensor:
    """X with its zeros, without more memory than that."""
    out = X.values.new_empty(X.shape)
    for part, rows in dense_tiles(X):
        out[part] = rows
    return out


def strided_tiles(X: Matrix, first: int, every: int, rows: int) -> Iterator[Matrix]:
    """Every `every`-th row of X from `first` on, up to `rows` at a time."""
    if isinstance(X, Tensor):
        yield from X[first::every].split(rows)
    elif every == 1:
        yield from (X[i : i + rows] for i in range(first, len(X), rows))
    else:
        # a copy of some of the entries
        rows = min(rows, max(1, DENSE_BYTES * len(X) // (16 * max(1, X.nnz))))
        for some in torch.arange(first, len(X), every, device=X.device).split(rows):
            yield X.take(some)


def take(X: Matrix, numbers: Tensor) -> Tensor:
    """These rows of X, in this order, dense: a copy."""
    return X[numbers] if isinstance(X, Tensor) else X.take(numbers).to_dense()


def row_maxima(X: Matrix) -> Tensor:
    """The largest absolute value of each row (m,) of X."""
    if isinstance(X, Tensor):
        # abs would be a copy
        return torch.maximum(X.amax(1), -X.amin(1))
    return X.values.new_zeros(len(X)).scatter_reduce_(
        0, X.row_of_entries().long(), X.values.abs(), "amax"
    )


def sum_of_sizes(X: Matrix) -> Tensor:
    """Σ |x| of the entries of X, in float64."""
    values = X if isinstance(X, Tensor) else X.values
    return values.abs().sum(dtype=wide(X.device))


def row_norms(X: Matrix, dtype: torch.dtype) -> Tensor:
    """The norm of each row (m,), in this dtype."""
    if isinstance(X, Tensor):
        return torch.linalg.vector_norm(X, dim=1, dtype=dtype)
    squares = torch.zeros(len(X), dtype=dtype, device=X.device)
    return squares.index_add_(0, X.row_of_entries(), X.values.to(dtype).square()).sqrt_()


def times_powers(X: Matrix, power: Tensor) -> Matrix:
    """X (m, p) times two to the power: one for all, or one for each row (m, 1); in its dtype."""
    if isinstance(X, Tensor):
        return times_power(X, power).to(X.dtype)
    of_each = power[X.row_of_entries().long(), 0] if power.ndim else power
    return replace(X, values=times_power(X.values, of_each).to(X.dtype))


def rows_gram(X: SparseMatrix) -> Tensor:
    """X Xᵀ (m, m), in float64."""
    wide = X.to(torch.float64)
    return torch.cat([wide.dot(rows.T.contiguous()).T for _, rows in dense_tiles(wide)])


def _wide_gram(F: Tensor) -> Tensor:
    """F Fᵀ (K, K) in float64 for F (K, m), a few columns at a time."""
    step = max(1, DENSE_BYTES // (8 * max(1, len(F))))
    G = torch.zeros(2 * [len(F)], dtype=torch.float64, device=F.device)
    for some in F.split(step, dim=1):
        some = some.double()
        G.addmm_(some, some.T)
    return G


class Rebuilt:
    """Z D for rows of the data, beside these. D (K, p) must not change meanwhile."""

    def __init__(self, D: Tensor) -> None:
        self.D = D

    @cached_property
    def _G(self) -> Tensor:
        return _wide_gram(self.D)

    def inner_and_square(self, X: Matrix, Z: Tensor) -> tuple[Tensor, Tensor]:
        """⟨X, Z D⟩ and ‖Z D‖² for X (m, p), Z (m, K). 2 m p K flops."""
        if isinstance(X, Tensor):
            P = (Z @ self.D).flatten()
            return P @ widened(X).flatten(), P @ P
        inner = (X.dot(operand(X, self.D)) * Z).sum(dtype=torch.float64)
        return inner, (_wide_gram(Z.T) * self._G).sum()

    def squared_error(self, X: Matrix, Z: Tensor) -> Tensor:
        """‖X − Z D‖² for X (m, p), Z (m, K), a float64 scalar: from the residual, of sparse X in
        tiles that are made dense; but ‖X‖² − 2 ⟨X, Z D⟩ + ‖Z D‖² where X is sparse and rounding
        allows it. 2 m p K flops."""
        if isinstance(X, Tensor):
            return squared_norm(torch.addmm(widened(X), Z, self.D, alpha=-1))
        total = squared_norm(X)
        inner, square = self.inner_and_square(X, Z)
        error = total - 2 * inner + square
        if error > _COARSE * torch.finfo(X.dtype).eps * total:
            return error
        error = torch.zeros_like(error)
        for part, rows in dense_tiles(X):
            error += squared_norm(rows.addmm_(Z[part], self.D, alpha=-1))
        return error
