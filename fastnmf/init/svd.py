"""The leading singular vectors of the data, from products with tiles of their rows.

Source: Halko, Martinsson & Tropp, 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..backends.products import Matrix, add_tdot_, dense, dot, rows_gram, strided_tiles
from ..backends.sparse import SparseMatrix, concat
from ..data.dataset import Data
from ..numerics import tiny, wide
from ..planning.memory import OVERSAMPLES, WORKSPACE_BYTES, return_memory
from ..waits import look

# bytes of a workspace from which on freed ones are returned
_RETURNED = 4 << 20


def right_vectors(
    X: ByRows | ByColumns, K: int, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """V (p, K), the K ≤ p leading right singular vectors of X (m, p), m ≥ p, the largest entry of
    each > 0; and a scalar: X V times it stays in the range of the dtype.

    Randomized subspace iteration, then the eigenvectors of a float64 Gram matrix in that space. A
    space of over a quarter of p is all of it, and nothing random. The same in all processes.
    Workspace: (p, K) and a few MB.
    """
    (m, p), like, processes = X.shape, X.data.like, X.data.processes
    size = K + OVERSAMPLES
    # whole: 2 m p² flops in float64; iterated: 20 m p · size or more
    whole = p <= 4 * size
    # keeps XᵀX Q and the norms in range for data near the limits of the dtype, and Q times itself,
    # where a draw may be 5, for data of zeros
    inverse = 2**-4 / like.new_tensor(X.data.largest).clamp(min=tiny(like))
    # one more than scikit-learn, whose 7 or 4 end with half a pass
    passes = 8 if K < 0.1 * p else 5
    # a quarter of the rows does for all but the last three passes: at 0.6 of the time, the energy
    # that scikit-learn captures to 4e-4 on activations, to 2e-3 on a flat spectrum
    every = 4 if m >= 7 * p else 1
    Q = None if whole else normal((p, size), like, generator)
    for following in () if whole else reversed(range(passes)):
        look()
        Y = X.normal_product(Q.mul_(inverse), 1 if following < 3 else every)
        # orthonormal, and ever nearer to the leading right singular space of X
        Q = torch.linalg.qr(Y).Q
        _return_memory(X, Q)
    G = torch.zeros(2 * [p if whole else size], dtype=wide(like.device), device=like.device)
    X.add_gram_(G, Q)
    # largest first
    W = torch.linalg.eigh(G).eigenvectors[:, -K:].flip(1).to(like.dtype)
    V = W if whole else Q @ W
    V *= V.gather(0, V.abs().argmax(dim=0, keepdim=True)).sign()
    # by rounding, machines might have another basis
    processes.broadcast_(V, inverse)
    _return_memory(X, V)
    return V, inverse


def _return_memory(X: ByRows | ByColumns, workspace: Tensor) -> None:
    """Return freed workspaces of sparse data, which may be larger than these."""
    if X.data.stored is not None and workspace.nbytes >= _RETURNED:
        return_memory()


def products(data: Data) -> ByRows | ByColumns:
    """Products with A, or Aᵀ where that is taller."""
    return ByRows(data) if data.n >= data.d else ByColumns(data)


@dataclass(frozen=True)
class ByRows:
    """Products with X = A (n, d) by its rows."""

    data: Data

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.n, self.data.d

    def normal_product(self, Q: Tensor, every: int) -> Tensor:
        """XᵀX Q, of every `every`-th row of X."""
        Y = torch.zeros_like(Q)
        for Xi in self._tiles(tile_rows(Q.shape[1], Q.itemsize), every):
            add_tdot_(Y, Xi, dot(Xi, Q))
        self.data.processes.sum_(Y)
        return Y

    def add_gram_(self, G: Tensor, Q: Tensor | None) -> None:
        """G += (X Q)ᵀ X Q, or XᵀX for None; G is zero before."""
        for Xi in self._tiles(tile_rows(len(G), 8), 1):
            Yi = (dense(Xi) if Q is None else dot(Xi, Q)).to(G.dtype)
            G.addmm_(Yi.T, Yi)
        self.data.processes.sum_(G)

    def _tiles(self, rows: int, every: int) -> Iterator[Matrix]:
        """Every `every`-th row of A that is here, in order, up to `rows` at a time."""
        for part, X, _ in self.data.chunks():
            yield from strided_tiles(X, -(self.data.first + part.start) % every, every, rows)


@dataclass(frozen=True)
class ByColumns:
    """Products with X = Aᵀ (d, n) by its columns, the rows of A. X Q is in memory, and all of X
    where its Gram matrix is required."""

    data: Data

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.d, self.data.n

    def normal_product(self, Q: Tensor, every: int) -> Tensor:
        """XᵀX Q, of every `every`-th row of X."""
        Y, Q = self.product(Q, every), torch.zeros_like(Q)
        for columns, Xi in self._chunks():
            Q[columns] = dot(Xi, Y, every=every)
        self.data.processes.sum_(Q)
        return Q

    def add_gram_(self, G: Tensor, Q: Tensor | None) -> None:
        """G += (X Q)ᵀ X Q, or XᵀX for None; G is zero before."""
        if Q is None and self.data.stored is not None:
            G += rows_gram(self._all_rows())
            return
        Y = self._gathered(len(G)) if Q is None else self.product(Q)
        for Yi in Y.split(tile_rows(len(G), 8)):
            Yi = Yi.to(G.dtype)
            G.addmm_(Yi.T, Yi)

    def product(self, Q: Tensor, every: int = 1) -> Tensor:
        """X Q (m, ·), of every `every`-th row of X."""
        Y = Q.new_zeros(len(range(0, self.data.d, every)), Q.shape[1])
        for columns, Xi in self._chunks():
            add_tdot_(Y, Xi, Q[columns], every)
        self.data.processes.sum_(Y)
        return Y

    def _gathered(self, p: int) -> Tensor:
        """X (m, p) itself."""
        Y = self.data.like.new_zeros(self.data.d, p)
        for columns, Xi in self._chunks():
            Y[:, columns] = Xi.T
        self.data.processes.sum_(Y)
        return Y

    def _all_rows(self) -> SparseMatrix:
        """A itself, sparse, of all processes: few rows."""
        here = [X for _, X, _ in self.data.chunks()]
        return concat([X for some in self.data.processes.gather(here) for X in some])

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(Which columns, Xᵀ of these) of what is here, in order."""
        for part, X, _ in self.data.chunks():
            first = self.data.first + part.start
            yield slice(first, first + len(X)), X


def normal(shape: tuple[int, int], like: Tensor, generator: Generator | None) -> Tensor:
    """Draw where the generator lives, then move to the device of `like`: a seed of the CPU serves
    every device."""
    place = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=place).to(like.device)


def width(data: Data, K: int = 0) -> int:
    """Numbers that products of a row with K concepts work on: those that are stored of it, and of a
    sparse one their columns and the K results."""
    return data.d if data.stored is None else 1 + int(2 * data.stored * data.d) + K


def tile_rows(width: int, itemsize: int) -> int:
    """Rows that are worked on at a time."""
    return max(1, WORKSPACE_BYTES // (width * itemsize))
