"""NNDSVD: non-negative parts of the leading singular pairs of the data; with its zeros filled.

Source: Boutsidis & Gallopoulos, 2008.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..backends.products import dot
from ..data.dataset import Data
from ..data.storage import Kept, row_blocks
from ..numerics import tiny, wide
from .svd import ByColumns, products, right_vectors, tile_rows

# entries below this count as zero; scikit-learn's number
EPS = 1e-6

# norms of the positive and of the negative parts of every column
PartNorms = tuple[Tensor, Tensor]


@torch.no_grad()
def nndsvd(
    data: Data,
    codes: Kept | None,
    K: int,
    generator: Generator | None = None,
    unit: Tensor | float = 1,
    *,
    fills: bool = True,
) -> Tensor:
    """Return D (K, d) from the K ≤ min(n, d) leading right singular vectors of A, and write Z from
    the left ones into `codes`, unless that is None; zeros filled with mean(A) if `fills` (NNDSVDa).

    The factors are those of A / unit: what counts as zero, and the fill, depend on A's scale. The
    scale is the paper's, not the best one: see start.scale_to_data_. Zero data give exactly zero
    factors.
    """
    X = products(data)
    V, inverse = right_vectors(X, K, generator)
    # X V of the longer side: the dictionary, which is in memory, or codes, a chunk at a time
    U = X.product(V * inverse) if isinstance(X, ByColumns) else None
    squares = write_left_(data, codes, V * inverse) if U is None else part_squares(U)
    mean = data.mean if fills else torch.zeros_like(data.mean)
    norms = squares.sum(0).sqrt()
    S = (norms / inverse / unit).to(V.dtype)
    norms = norms.clamp(min=tiny(V))
    of_u = tuple((squares.sqrt() / norms).to(V.dtype))
    parts_of_u, parts_of_v = non_negative_parts(S, of_u, part_norms(V))
    take_parts_(V, *parts_of_v, mean / unit)

    def finish_(U: Tensor) -> None:
        U /= norms.to(U)
        take_parts_(U, *(given.to(U) for given in parts_of_u), (mean / unit).to(U))

    if U is None:
        for rows in () if codes is None else codes.blocks_():
            finish_(rows)
        return V.T.contiguous()
    finish_(U)
    for part in () if codes is None else row_blocks(data.n_here, data.chunk_rows):
        codes.save(part, V[data.first + part.start : data.first + part.stop])
    return U.T.contiguous()


def unit_of(data: Data) -> Tensor:
    """What to divide A by for the same start whatever its unit: its mean, or more than 0."""
    mean = data.mean
    return mean.clamp(min=tiny(mean))


def non_negative_parts(
    S: Tensor, u: PartNorms, v: PartNorms
) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """(sign and factor of every column, factor of the first) with which take_parts_ makes U, and V,
    of singular values S (K,), the factors of NNDSVD; u, v: their part_norms."""
    (up, un), (vp, vn) = u, v
    positive = up * vp > un * vn
    root = (S * torch.where(positive, up * vp, un * vn)).sqrt()
    sign = torch.where(positive, 1.0, -1.0).to(S.dtype)
    norms = torch.where(positive, up, un), torch.where(positive, vp, vn)
    return tuple((sign, root / norm.clamp(min=tiny(norm)), S[0].sqrt()) for norm in norms)


def take_parts_(F: Tensor, sign: Tensor, factors: Tensor, leading: Tensor, mean: Tensor) -> None:
    """F (m, K) ← max(0, sign F) · factors, small entries ← mean, in place."""
    # the leading pair of A ≥ 0 has one sign, so it is used whole
    first = F[:, 0].abs() * leading
    F.mul_(sign).clamp_(min=0).mul_(factors)
    F[:, 0] = first
    for Fi in F.split(tile_rows(F.shape[1], F.itemsize)):
        Fi.masked_fill_(Fi < EPS, mean)


def part_norms(F: Tensor) -> PartNorms:
    """(‖max(0, F_k)‖, ‖max(0, −F_k)‖) for every column k of F (m, K)."""
    return tuple(part_squares(F).sqrt().to(F.dtype))


def part_squares(F: Tensor) -> Tensor:
    """Their squares (2, K), summed in float64."""
    squares = torch.zeros(2, F.shape[1], dtype=wide(F.device), device=F.device)
    for Fi in F.split(tile_rows(F.shape[1], 2 * F.itemsize)):
        squares[0] += Fi.clamp(min=0).square_().sum(dim=0, dtype=squares.dtype)
        squares[1] += Fi.clamp(max=0).square_().sum(dim=0, dtype=squares.dtype)
    return squares


def write_left_(data: Data, codes: Kept | None, V: Tensor) -> Tensor:
    """Write A V, V (d, K), into codes if there are any; its part_squares over all rows."""
    squares = torch.zeros(2, V.shape[1], dtype=wide(data.device), device=data.device)
    for _, X, U in data.chunks(codes):
        U = dot(X, V, out=U)
        squares += part_squares(U)
    data.processes.sum_(squares)
    return squares
