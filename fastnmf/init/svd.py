"""The leading singular triplets of the data; and what walks the data in pieces of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Generator, Tensor

from ..numerics import compute_dtype, product, tiny, wide, wide_pieces
from ..planning.memory import OVERSAMPLES, WORKSPACE_BYTES

# what makes a sum over the pieces here that of all; nothing where all are here
Sum = Callable[[Tensor], None]


@torch.no_grad()
def leading_svd(A: Tensor, K: int, generator: Generator | None = None) -> tuple[Tensor, ...]:
    """A ≈ U diag(S) Vt: the K ≤ min(n, d) leading singular triplets; U (n, K), S (K,), Vt (K, d).

    Randomised subspace iteration on the smaller side, then the eigenvectors of a float64 Gram
    matrix in that space. A space of over a quarter of the side is all of it, and nothing random.
    The largest entry of each row of Vt (if n < d, column of U) is positive. A singular value of 0
    has a zero vector on the longer side.
    Workspace: (min(n, d), K) and a few MB. Source: Halko, Martinsson & Tropp, 2011.
    """
    X = A if A.shape[0] >= A.shape[1] else A.T
    like = A.new_empty(0, dtype=compute_dtype(A))
    by_rows = ByRows(
        lambda rows, every: chain.from_iterable(map(wide_pieces, X[::every].split(rows)))
    )
    V, inverse = right_vectors(by_rows, X.shape, K, like, X.amax().to(like), generator)
    U = product(X, V * inverse)  # (m, K)
    norms = torch.linalg.vector_norm(U, dim=0)
    U /= norms.clamp(min=tiny(U))
    S = norms / inverse
    return (U, S, V.T) if X is A else (V, S, U.T)


@dataclass(frozen=True)
class ByRows:
    """Products with X (m, p) by its rows: pieces(rows, every) gives so many at a time, in order,
    every so manieth of all. sum_: where they are a part of X."""

    pieces: Callable[[int, int], Iterator[Tensor]]
    sum_: Sum = lambda _: None

    def normal_product(self, Q: Tensor, every: int) -> Tensor:
        """XᵀX Q, of these rows."""
        Y = torch.zeros_like(Q)
        for Xi in self.pieces(piece_rows(Q.shape[1], Q.itemsize), every):
            Y.addmm_(Xi.T, Xi @ Q)
        self.sum_(Y)
        return Y

    def add_gram_(self, G: Tensor, Q: Tensor | None) -> None:
        """G += (X Q)ᵀ X Q, or XᵀX; zeros before."""
        for Xi in self.pieces(piece_rows(len(G), 8), 1):
            Yi = (Xi if Q is None else Xi @ Q).to(G.dtype)
            G.addmm_(Yi.T, Yi)
        self.sum_(G)


@dataclass(frozen=True)
class ByColumns:
    """The same by its columns: pieces() gives (which, Xᵀ of these), in order. X Q is in memory, and
    X where all of it is asked for."""

    pieces: Callable[[], Iterator[tuple[slice, Tensor]]]
    m: int
    dtype: torch.dtype
    sum_: Sum

    def normal_product(self, Q: Tensor, every: int) -> Tensor:
        """XᵀX Q, of these rows."""
        Y, Q = self.product(Q, every), torch.zeros_like(Q)
        for columns, Xi in self.pieces():
            Q[columns] = Xi[:, ::every] @ Y
        self.sum_(Q)
        return Q

    def add_gram_(self, G: Tensor, Q: Tensor | None) -> None:
        """G += (X Q)ᵀ X Q, or XᵀX; zeros before."""
        if Q is None:
            Q = torch.eye(len(G), dtype=self.dtype, device=G.device)
        for Yi in self.product(Q).split(piece_rows(len(G), 8)):
            Yi = Yi.to(G.dtype)
            G.addmm_(Yi.T, Yi)

    def product(self, Q: Tensor, every: int = 1) -> Tensor:
        """X Q (m, ·), of these rows."""
        Y = Q.new_zeros(len(range(0, self.m, every)), Q.shape[1])
        for columns, Xi in self.pieces():
            Y.addmm_(Xi[:, ::every].T, Q[columns])
        self.sum_(Y)
        return Y


def right_vectors(
    X: ByRows | ByColumns,
    shape: tuple[int, int],
    K: int,
    like: Tensor,
    largest: Tensor,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """V (p, K), the K leading right singular vectors of X (m, p), the largest entry of each > 0;
    and a number by which X V is kept in range.

    Only products X Q and Xᵀ Q are taken, so X need not be in memory. like: a tensor of its dtype
    and device. largest: its largest entry.
    """
    m, p = shape
    size = K + OVERSAMPLES
    # whole: 2 m p² flops in float64; iterated: 20 m p · size or more
    whole = p <= 4 * size
    # keeps XᵀX Q and the norms in range for data near the limits of the dtype, and Q times itself,
    # where a draw may be 5, for data of zeros
    inverse = 2**-4 / largest.clamp(min=tiny(like))
    # one more than scikit-learn, whose 7 or 4 end with half a pass
    passes = 8 if K < 0.1 * p else 5
    # a quarter of the rows does for all but the last three passes: at 0.6 of the time, the energy
    # that scikit-learn captures to 4e-4 on activations, to 2e-3 on a flat spectrum
    every = 4 if m >= 7 * p else 1
    Q = None if whole else normal((p, size), like, generator)
    for following in () if whole else reversed(range(passes)):
        Y = X.normal_product(Q * inverse, 1 if following < 3 else every)
        # orthonormal, and ever nearer to the leading right singular space of X
        Q = torch.linalg.qr(Y).Q
    G = torch.zeros(2 * [p if whole else size], dtype=wide(like.device), device=like.device)
    X.add_gram_(G, Q)
    W = torch.linalg.eigh(G).eigenvectors[:, -K:].flip(1).to(like.dtype)  # largest first
    V = W if whole else Q @ W  # (p, K)
    V *= V.gather(0, V.abs().argmax(dim=0, keepdim=True)).sign()
    return V, inverse


def normal(shape: tuple[int, int], A: Tensor, generator: Generator | None) -> Tensor:
    """Draw where the generator lives, then move to A's device: a CPU seed serves every device."""
    place = A.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=A.dtype, device=place).to(A.device)


def piece_rows(width: int, itemsize: int) -> int:
    return max(1, WORKSPACE_BYTES // (width * itemsize))
