"""Starts of a factorization with a free dictionary: random, from singular vectors, or rows of the
data; and codes to encode from."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor

from ..backends.products import Matrix, add_tdot_, dot, operand, row_maxima, sum_of_sizes
from ..data.dataset import Data
from ..data.storage import Compressed, InMemory, Kept, row_blocks
from ..numerics import tiny, wide
from ..solvers.least_squares import solution
from .drawn import codes_by_rows_, draw_codes_, drawn
from .nndsvd import part_squares, write_left_
from .rows import any_rows, spread_rows, take_rows
from .svd import ByColumns, products, right_vectors

STARTS = ("auto", "random", "svd", "rows", "spread")
# the share of the mean, or of the root mean square, of codes that one has at least: zeros would
# stay zero in multiplicative updates
_LEAST_CODE = 0.1
# singular values that rounding may leave, relative to the first, times eps √max(n, d)
_ROUNDINGS = 4


def resolve(init: str, n: int, d: int, K: int) -> str:
    """Name the start that `init` means, one of STARTS but not 'auto'."""
    if init == "auto":
        return "svd" if min(n, d) >= K else "random"
    return init


@torch.no_grad()
def start(data: Data, codes: Kept | None, K: int, kind: str, generator: Generator | None) -> Tensor:
    """Return D (K, d) to start from, and write its codes into `codes`, unless that is None.

    'random' is Overcomplete's: codes |normal| · sqrt(mean |A| / K), and the least squares solution
    for them; a random dictionary where codes are not kept. 'svd': see from_singular_vectors, and
    rows for concepts beyond min(n, d). 'rows' and 'spread' take rows of A, and random concepts
    where there are too few.
    """
    few = min(data.n, data.d) >= K
    if kind == "svd" and few:
        return from_singular_vectors(data, codes, K, generator)
    if kind == "random":
        return _random(data, codes, K, generator)
    D = data.like.new_empty(0, data.d)
    if kind == "svd":
        D = from_singular_vectors(data, None, min(data.n, data.d), generator)
        norms = torch.linalg.vector_norm(D, dim=1, keepdim=True).clamp(min=tiny(D))
        # as long as rows are
        D *= float(data.squares_read / data.n) ** 0.5 / norms
    draw = spread_rows if kind == "spread" else any_rows
    D = torch.cat((D, take_rows(data, draw(data, K - len(D), generator))))
    if len(D) < K:
        more = drawn((K - len(D), data.d), data, generator)
        D = torch.cat((D, more.mul_(mean_size(data))))
    if codes is not None:
        codes_by_rows_(codes, data, functools.partial(cold_start, D=D.clone()))
    return D


@torch.no_grad()
def random_codes(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """Z (n, K) = |normal| · sqrt(mean |A| / K), Overcomplete's random start."""
    data = Data(A)
    codes = InMemory(data.like.new_empty(data.n, K))
    draw_codes_(codes, data, (mean_size(data) / K).sqrt(), generator)
    return codes.Z


def mean_size(data: Data) -> Tensor:
    """The mean of |A|."""
    total = torch.zeros((), dtype=wide(data.device), device=data.device)
    for _, X, _ in data.chunks():
        total += sum_of_sizes(X)
    data.processes.sum_(total)
    return (total / (data.n * data.d)).to(data.dtype)


def _random(data: Data, codes: Kept | None, K: int, generator: Generator | None) -> Tensor:
    scale = (mean_size(data) / K).sqrt()
    if codes is None:
        return drawn((K, data.d), data, generator).mul_(scale)
    draw_codes_(codes, data, scale, generator)
    if K >= data.n and isinstance(codes, InMemory) and (A := data.as_it_is) is not None:
        _clear_(codes.Z, A)
        # the same by the Gram matrix of the rows, which is smaller
        return codes.Z.T @ solution(A, codes.Z @ codes.Z.T)
    cross, gram = data.like.new_zeros(data.d, K), data.like.new_zeros(K, K)
    # rows that are made whenever they are read are cleared then
    made, all_used = codes.start if isinstance(codes, Compressed) else None, []
    for _, X, Z in data.chunks(codes, save=made is None):
        all_used.append(_clear_(Z, X))
        add_tdot_(cross, X, Z)
        gram.addmm_(Z.T, Z)
    if made is not None:
        made.used = torch.cat(all_used)
    data.processes.sum_(cross)
    data.processes.sum_(gram)
    return solution(cross.T, gram)


def _clear_(Z: Tensor, X: Matrix) -> Tensor:
    """Codes of zero rows ← 0, which half-steps only approach; return which rows are not zero."""
    used = row_maxima(X) > 0
    Z *= used[:, None]
    return used


def from_singular_vectors(
    data: Data, codes: Kept | None, K: int, generator: Generator | None = None
) -> Tensor:
    """Return D (K, d), K ≤ min(n, d), the leading right singular vectors of A, each with the sign
    for which the positive part of its codes is the larger one, and write these parts into `codes`,
    zeros filled: multiplicative updates would leave them.

    Beyond the rank of A come the same vectors with the other sign, those of the largest parts
    first: vectors of no energy, with codes of nothing, are a saddle that pgd does not leave. Zero
    data give zero factors. Source: Gillis & Kumar (2015).
    """
    X = products(data)
    V, _ = right_vectors(X, K, generator)
    V = V * (data.largest > 0)
    by_columns = isinstance(X, ByColumns)
    positive, negative = part_squares(V) if by_columns else write_left_(data, codes, V)
    D = X.product(V) if by_columns else V
    squares = D.square().sum(0, dtype=positive.dtype) if by_columns else positive + negative
    unused, other = _opposites(squares, (positive, negative), data)
    positive[unused], negative[unused] = negative[other], positive[other]
    V[:, unused] = -V[:, other]
    sign = torch.where(positive >= negative, 1.0, -1.0).to(V.dtype)
    # two of one sign would be the same
    sign[unused] = sign[other]
    part = torch.where(sign > 0, positive, negative)
    fill = _LEAST_CODE * (part / data.n).sqrt().to(V.dtype)
    V *= sign
    if not by_columns:
        for Z in () if codes is None else codes.blocks_():
            Z[:, unused] = -Z[:, other]
            torch.maximum(Z.mul_(sign.to(Z)), fill.to(Z), out=Z)
        return V.T.contiguous()
    D[:, unused] = -D[:, other]
    for part in () if codes is None else row_blocks(data.n_here, data.chunk_rows):
        codes.save(part, V[data.first + part.start : data.first + part.stop].maximum(fill))
    return (D * sign).T.contiguous()


def _opposites(squares: Tensor, parts: tuple[Tensor, Tensor], data: Data) -> tuple[Tensor, Tensor]:
    """Singular vectors beyond the rank of A, of squared singular values (K,), as many as there are
    others whose codes have both signs; and these, those of the largest smaller parts first. parts:
    squared norms of the positive and of the negative parts of their codes."""
    rounding = _ROUNDINGS * torch.finfo(data.dtype).eps * max(data.n, data.d) ** 0.5
    unused = squares <= rounding**2 * squares.max()
    share = torch.minimum(*parts) / (parts[0] + parts[1]).clamp(min=tiny(squares))
    smaller = torch.where(unused, 0, share * squares)
    other = smaller.argsort(descending=True)[: int((smaller > 0).sum())]
    unused = unused.nonzero()[:, 0][: len(other)]
    return unused, other[: len(unused)]


def cold_start(A: Matrix, D: Tensor, out: Tensor | None = None) -> Tensor:
    """Codes (n, K), in `out` if given, of the concepts that alone would lower the error of a row,
    scaled to it, and some of all others: deterministic, differentiable, row by row.

    z_i = c (w + _LEAST_CODE mean(w)), w_k = max(0, ⟨a_i, D_k⟩) / ‖D_k‖², with the best c for w.
    """
    squares = D.square().sum(1)
    alive = (squares > 0).to(D.dtype)
    C = dot(A, operand(A, D)).clamp(min=0)
    w = C * (alive / squares.clamp(min=tiny(D)))
    norms = (w @ D).square().sum(1, keepdim=True)
    scale = (w * C).sum(1, keepdim=True) / norms.clamp(min=tiny(D))
    return torch.mul(scale * (w + _LEAST_CODE * w.mean(1, keepdim=True)), alive, out=out)
