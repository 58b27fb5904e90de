"""The leading singular triplets of the data; and what walks the data in pieces of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Generator, Tensor

from .rows import compute_dtype, product, wide_pieces

# (rows in a piece, which: every so many) → the pieces of X, in order
Pieces = Callable[[int, int], Iterator[Tensor]]
# what makes a sum over the pieces here that of all; nothing where all are here
Sum = Callable[[Tensor], None]
# of a piece of rows in hand; 1 to 32 MB cost the same on two cores with AVX-512
WORKSPACE_BYTES = 8 * 2**20
# columns of the random basis beyond K; scikit-learn's number
OVERSAMPLES = 10
# the least normal float32, to divide by in place of 0
TINY = 2.0**-126


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
    V, inverse = right_vectors(
        lambda rows, every: chain.from_iterable(map(wide_pieces, X[::every].split(rows))),
        X.shape,
        K,
        like,
        X.amax().to(like),
        generator,
    )
    U = product(X, V * inverse)  # (m, K)
    norms = torch.linalg.vector_norm(U, dim=0)
    U /= norms.clamp(min=TINY)
    S = norms / inverse
    return (U, S, V.T) if X is A else (V, S, U.T)


def right_vectors(
    pieces: Pieces,
    shape: tuple[int, int],
    K: int,
    like: Tensor,
    largest: Tensor,
    generator: Generator | None = None,
    sum_: Sum = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """V (p, K), the K leading right singular vectors of X (m, p), the largest entry of each > 0;
    and a number by which X V is kept in range.

    Only products X Q and Xᵀ Q of pieces are taken, so X need not be in memory. like: a tensor of
    its dtype and device. largest: its largest entry. sum_: where pieces are a part of X.
    """
    m, p = shape
    size = K + OVERSAMPLES
    # whole: 2 m p² flops in float64; iterated: 20 m p · size or more
    whole = p <= 4 * size
    # keeps XᵀX Q and the norms in range for data near the limits of the dtype, and Q times itself,
    # where a draw may be 5, for data of zeros
    inverse = 2**-4 / largest.clamp(min=TINY)
    # one more than scikit-learn, whose 7 or 4 end with half a pass
    passes = 8 if K < 0.1 * p else 5
    # a quarter of the rows does for all but the last three passes: at 0.6 of the time, the energy
    # that scikit-learn captures to 4e-4 on activations, to 2e-3 on a flat spectrum
    every = 4 if m >= 7 * p else 1
    if not whole:
        Q = normal((p, size), like, generator)
        Q = _range_basis(pieces, every, inverse, Q, passes, sum_)
    G = torch.zeros(2 * [p if whole else size], dtype=wide(like.device), device=like.device)
    for Xi in pieces(piece_rows(p, 8), 1):
        Yi = (Xi if whole else Xi @ Q).to(G.dtype)
        G.addmm_(Yi.T, Yi)
    sum_(G)
    W = torch.linalg.eigh(G).eigenvectors[:, -K:].flip(1).to(like.dtype)  # largest first
    V = W if whole else Q @ W  # (p, K)
    V *= V.gather(0, V.abs().argmax(dim=0, keepdim=True)).sign()
    return V, inverse


def _range_basis(
    pieces: Pieces, every: int, inverse: Tensor, Q: Tensor, passes: int, sum_: Sum
) -> Tensor:
    """Orthonormal Q (p, size) ≈ the leading right singular space of X (m, p): Q ← orth(XᵀX Q); all
    but the last three passes take so few rows."""
    for following in reversed(range(passes)):
        scaled, Y = Q * inverse, torch.zeros_like(Q)
        rows = piece_rows(Q.shape[1], Q.itemsize)
        for Xi in pieces(rows, 1 if following < 3 else every):
            Y.addmm_(Xi.T, Xi @ scaled)
        sum_(Y)
        Q = torch.linalg.qr(Y).Q
    return Q


def normal(shape: tuple[int, int], A: Tensor, generator: Generator | None) -> Tensor:
    """Draw where the generator lives, then move to A's device: a CPU seed serves every device."""
    place = A.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=A.dtype, device=place).to(A.device)


def piece_rows(width: int, itemsize: int) -> int:
    return max(1, WORKSPACE_BYTES // (width * itemsize))


def wide(device: torch.device) -> torch.dtype:
    # MPS has no float64
    return torch.float32 if device.type == "mps" else torch.float64
