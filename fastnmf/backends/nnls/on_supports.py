"""Linear systems on the supports of rows, groups of similar size at a time, in plain torch: the
reference, and the way for matrices that are not formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .result import RANK_TOLERANCE
from .supports import gather_gram, padded_support

# entries of the largest scratch array
_SCRATCH = 1 << 22
# how much larger the largest support of rows that are solved together may be than the smallest
_ALIKE, _MORE = 1.2, 4


def solve_supports_(X: Tensor, R: Tensor, G: Tensor, used: Tensor) -> None:
    """X (n, K) ← the solutions of G_SS x_S = R_S on the support S of each row, zero elsewhere.

    R (n, K) in the dtype of X; G (K, K) float64, symmetric and positive semidefinite; used (n, K)
    bool: the supports. Computed in float64. Where concepts of S depend on each other x_S is the
    solution of least norm. About q³ / 3 flops a row, for q concepts. Synchronises.
    """
    solve_groups_(X, R, used, lambda index, real: gather_gram(G, index, index, real))


def solve_groups_(
    X: Tensor,
    R: Tensor,
    used: Tensor,
    gram_of: Callable[[Tensor, Tensor], Tensor],
    features: int = 1,
) -> None:
    """solve_supports_ by gram_of(index, real): G (r, q, q) on the supports of some rows, padded to
    q as by `padded_support`, and there the identity. features: entries that this takes for each
    concept of a support."""
    counts, order = used.sum(1).sort()
    sizes = counts.tolist()
    X.zero_()
    for part in _groups(sizes, features):
        rows, q = order[part], sizes[part.stop - 1]
        if q == 0:
            continue
        index, real = padded_support(used[rows], q)
        solved = _least(gram_of(index, real), R[rows].double().gather(1, index) * real)
        X[rows] = torch.zeros_like(R[rows]).scatter_add_(1, index, (solved * real).to(R.dtype))


def fits(K: int, n: int, most: int) -> bool:
    """Whether G of K concepts is no larger than what the supports of n rows, of at most `most`
    concepts, need."""
    return K * K <= max(n * most**2, _SCRATCH)


def _groups(sizes: list[int], features: int) -> Iterator[slice]:
    """Slices of rows with supports of similar sizes, which are in order, that fit in the scratch
    array with so many entries for each of their concepts."""
    first = 0
    while first < len(sizes):
        stop, limit = first, _ALIKE * sizes[first] + _MORE
        while stop < len(sizes) and sizes[stop] <= limit:
            entries = (stop + 1 - first) * sizes[stop] * max(sizes[stop], features)
            if stop > first and entries > _SCRATCH:
                break
            stop += 1
        yield slice(first, stop)
        first = stop


def _least(gram: Tensor, R: Tensor) -> Tensor:
    """The solutions (r, q) of gram (r, q, q) X = R (r, q), of least norm where gram is singular."""
    factor, info = torch.linalg.cholesky_ex(gram)
    # squared distance of a concept to those before it, relative to its squared norm
    apart = factor.diagonal(dim1=1, dim2=2).square() / gram.diagonal(dim1=1, dim2=2)
    dependent = (info > 0) | ~(apart.amin(1) > RANK_TOLERANCE[torch.float64])
    if dependent.any():
        factor = torch.where(
            dependent[:, None, None],
            torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device),
            factor,
        )
    solved = torch.cholesky_solve(R[:, :, None], factor)[:, :, 0]
    if dependent.any():
        tolerance = RANK_TOLERANCE[torch.float64]
        inverse = torch.linalg.pinv(gram[dependent], rtol=tolerance, hermitian=True)
        solved[dependent] = (inverse @ R[dependent, :, None])[:, :, 0]
    return solved
