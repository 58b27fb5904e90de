"""What a reader wants to know of codes and concepts: how sparse, how strong, which are dead or
alike. Read-only, in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import ALONE, Ranks

# bars of the histogram of active concepts per row, at most
_BARS = 32
# cosine from which two concepts are near-duplicates
ALIKE = 0.99
# entries in hand
_IN_HAND = 1 << 20


@dataclass(frozen=True)
class CodesInfo:
    """mean_l0: mean number of non-zero codes a row. l0_most: the largest. l0_histogram: rows by
    that number, from 0, in bars of ⌈(l0_most + 1) / bars⌉ numbers each. hoyer: mean Hoyer sparsity
    of the rows that have codes, 0 (all codes alike) to 1 (one code). energy: ‖Z_k‖² ‖D_k‖² of every
    concept, as a share of their sum. dead_concepts: concepts whose codes or dictionary row are all
    zero. near_duplicates: concepts that point as an earlier one does (cosine ≥ 0.99).
    """

    mean_l0: float
    l0_histogram: tuple[int, ...]
    l0_most: int
    hoyer: float
    energy: tuple[float, ...]
    dead_concepts: int
    near_duplicates: int


def describe(Z: Tensor, D: Tensor) -> CodesInfo:
    """The CodesInfo of Z (n, K) and D (K, d). 2 K² d flops for the near-duplicates."""
    return describe_pieces([Z], D)


def describe_pieces(pieces: Iterable[Tensor], D: Tensor, ranks: Ranks = ALONE) -> CodesInfo:
    """The same of codes that come a few rows at a time, with those of the other ranks."""
    K = D.shape[0]
    used = torch.zeros(K, dtype=torch.int64, device=D.device)
    squares = torch.zeros(K, dtype=torch.float64, device=D.device)
    # rows by their number of active concepts; Hoyer sparsities, and rows that have one
    rows = torch.zeros(K + 1, dtype=torch.int64, device=D.device)
    hoyer = torch.zeros(2, dtype=torch.float64, device=D.device)
    split = (part for Z in pieces for part in Z.split(max(1, _IN_HAND // K)))
    # Z ≥ 0: its signs are counted, in a small copy; count_nonzero takes 8 bytes an entry
    for piece in split:
        signs = piece.sign()
        used += signs.sum(0).long()
        rows += torch.bincount(signs.sum(1).long(), minlength=K + 1)
        squares += torch.linalg.vector_norm(piece, dim=0, dtype=torch.float64).square()
        sparsity = _hoyer(piece)
        hoyer += torch.stack([sparsity.nansum(), (~sparsity.isnan()).sum()])
    ranks.sum_(used, squares, rows, hoyer)
    n = int(rows.sum())
    lengths = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    energy = squares * lengths.square()
    most = int(rows.nonzero().max())
    width = -(-(most + 1) // _BARS)
    histogram = [0] * -(-(most + 1) // width)
    for l0, count in enumerate(rows[: most + 1].tolist()):
        histogram[l0 // width] += count
    return CodesInfo(
        mean_l0=float(used.sum()) / n,
        l0_histogram=tuple(histogram),
        l0_most=most,
        hoyer=float(hoyer[0] / hoyer[1].clamp(min=1)),
        energy=tuple((energy / energy.sum().clamp(min=1e-300)).tolist()),
        dead_concepts=int(((used == 0) | (lengths == 0)).sum()),
        near_duplicates=int((alike(D) >= 0).sum()),
    )


def r_squared(A: Tensor, squared_error: float, squared_data: float) -> float:
    """1 − ‖A − Z D‖² / ‖A − its mean row‖²; where all rows of A are alike 1 for no error, else 0.

    squared_data: ‖A‖², good to 1e-6 or better.
    """
    # torch takes sums of all of A in float64 from a copy
    pieces = A.split(max(1, _IN_HAND // A.shape[1]))
    mean = sum(piece.sum(0, dtype=torch.float64) for piece in pieces) / len(A)
    spread = squared_data - len(A) * float(mean.square().sum())
    if spread < 1e-3 * squared_data:
        # a difference of nearly equal numbers
        spread = sum(float((piece - mean).square().sum()) for piece in pieces)
    return r_squared_about(spread, squared_error, squared_data)


def r_squared_about(spread: float, squared_error: float, squared_data: float) -> float:
    """The same from the spread ‖A − its mean row‖²."""
    # rows that are alike still differ by the rounding of their mean
    if spread <= 1e-24 * squared_data:
        return 1.0 if squared_error == 0 else 0.0
    return 1 - squared_error / spread


def _hoyer(Z: Tensor) -> Tensor:
    """(√K − ‖z‖₁ / ‖z‖₂) / (√K − 1) of every row; NaN for rows of zeros. Source: Hoyer, 2004."""
    root = Z.shape[1] ** 0.5
    if root == 1:
        return torch.where(Z[:, 0] > 0, 1.0, torch.nan).double()
    # by the largest entry: squares of small codes would vanish
    Z = Z / Z.amax(1, keepdim=True)
    return ((root - Z.sum(1) / torch.linalg.vector_norm(Z, dim=1)) / (root - 1)).double()


def alike(D: Tensor) -> Tensor:
    """(K,): for every concept the first that is earlier and points as it does (cosine ≥ ALIKE), or
    −1; no concept of zeros does. K² d flops, in pieces."""
    lengths = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    rays = D / lengths.clamp(min=1e-300)[:, None].to(D.dtype)
    rays[lengths == 0] = 0
    first_alike = torch.full((len(D),), -1, device=D.device)
    step = max(1, _IN_HAND // max(1, len(D)))
    for first in range(0, len(D), step):
        cosine = rays[first : first + step] @ rays[: first + step].T
        near = cosine.tril_(first - 1) >= ALIKE
        found = near.any(1)
        first_alike[first : first + step][found] = near[found].to(torch.uint8).argmax(1)
    return first_alike
