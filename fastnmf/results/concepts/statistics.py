"""Numbers about each concept, from codes Z (n, K), dense or compressed rows, and the dictionary
D (K, d): energy, activity, top rows, histograms, the most similar other concept."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# entries of scratch arrays
_ENTRIES = 1 << 22
# bars of a histogram
BARS = 24


@dataclass(frozen=True)
class Numbers:
    """Of each concept, (K,): energy: ‖Z_k‖² ‖D_k‖² as a share of their sum; active: the share of
    the rows with a code; largest, mean: of the codes that are not zero; twin: the other concept of
    the largest cosine, which is `cosine`."""

    energy: Tensor
    active: Tensor
    largest: Tensor
    mean: Tensor
    twin: Tensor
    cosine: Tensor


def tiles(Z: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Dense rows of codes, with the number of the first."""
    n, K = Z.shape
    rows = max(1, _ENTRIES // K)
    if not Z.is_sparse_csr:
        for first in range(0, n, rows):
            yield first, Z[first : first + rows].cpu()
        return
    crow, col, values = Z.crow_indices().cpu(), Z.col_indices().cpu(), Z.values().cpu()
    for first in range(0, n, rows):
        last = min(first + rows, n)
        inside = slice(int(crow[first]), int(crow[last]))
        tile = values.new_zeros(last - first, K)
        row = torch.repeat_interleave(crow[first : last + 1].diff().long())
        tile[row, col[inside].long()] = values[inside]
        yield first, tile


def numbers_of(Z: Tensor, D: Tensor) -> Numbers:
    """2 K² d flops for the cosines, and two passes over Z."""
    n, K = Z.shape
    squares = torch.zeros(K, dtype=torch.float64, device="cpu")
    sums, used, largest = squares.clone(), squares.clone(), squares.clone()
    for _, tile in tiles(Z):
        squares += torch.linalg.vector_norm(tile, dim=0, dtype=torch.float64).square()
        sums += tile.sum(0, dtype=torch.float64)
        used += (tile > 0).sum(0)
        largest = torch.maximum(largest, tile.amax(0).double())
    energy = squares * torch.linalg.vector_norm(D, dim=1, dtype=torch.float64).square()
    twin, cosine = twins(D)
    return Numbers(
        energy=energy / energy.sum().clamp(min=1e-300),
        active=used / max(1, n),
        largest=largest,
        mean=sums / used.clamp(min=1),
        twin=twin,
        cosine=cosine,
    )


def twins(D: Tensor) -> tuple[Tensor, Tensor]:
    """For each concept the other of the largest cosine, and the cosine; −1 and 0 of one concept."""
    K = len(D)
    twin = torch.full((K,), -1, dtype=torch.int64, device="cpu")
    cosine = torch.zeros(K, device="cpu")
    if K == 1:
        return twin, cosine
    units = torch.nn.functional.normalize(D.float(), dim=1)
    rows = max(1, _ENTRIES // K)
    for first in range(0, K, rows):
        likeness = units[first : first + rows] @ units.T
        likeness.diagonal(first).fill_(-2)
        cosine[first : first + rows], twin[first : first + rows] = likeness.max(1)
    return twin, cosine


def top_rows(Z: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers and codes, (chosen, count), of the rows with the largest codes of each chosen
    concept; a code of 0 is no row."""
    codes = torch.zeros(len(chosen), 0, device="cpu")
    rows = torch.zeros(len(chosen), 0, dtype=torch.int64, device="cpu")
    for first, tile in tiles(Z):
        own = tile[:, chosen].T.float()
        best, place = own.topk(min(count, own.shape[1]), dim=1)
        codes, rows = torch.cat((codes, best), 1), torch.cat((rows, place + first), 1)
        codes, order = codes.topk(min(count, codes.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return rows, codes


def largest_of_groups(Z: Tensor, chosen: Tensor, count: int) -> Tensor:
    """The largest code (chosen, groups) of each chosen concept in each group of `count` rows."""
    largest = torch.zeros(len(chosen), len(Z) // count, device="cpu")
    for first, tile in tiles(Z):
        own = tile[:, chosen].T.float()
        group = torch.arange(first, first + own.shape[1], device="cpu") // count
        largest.scatter_reduce_(1, group.expand_as(own), own, "amax")
    return largest


def histograms(Z: Tensor, chosen: Tensor, largest: Tensor) -> Tensor:
    """Rows (chosen, BARS) by their code of each chosen concept, in equal steps from 0 to the
    largest; codes of 0 are not counted."""
    counts = torch.zeros(len(chosen), BARS, dtype=torch.int64, device="cpu")
    top = largest[chosen].clamp(min=1e-300)
    for _, tile in tiles(Z):
        own = tile[:, chosen].T.double()
        bar = (own / top[:, None] * BARS).long().clamp(max=BARS - 1)
        counts.scatter_add_(1, bar, (own > 0).long())
    return counts
