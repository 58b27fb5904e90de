"""Rows of the data to take as first concepts: any, or such as differ from each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..backends.products import Matrix, dot, row_maxima, row_norms, take
from ..data.dataset import Data
from ..data.storage import row_blocks
from ..numerics import wide
from .svd import tile_rows, width

# draws between which the distances are brought up to date; k-means‖ finds that few suffice
ROUNDS = 8
# of ‖a_i‖²: the weight of a row that points as one does that was taken already
_LEAST_WEIGHT = 1e-12


@torch.no_grad()
def any_rows(data: Data, K: int, generator: Generator | None = None) -> Tensor:
    """The numbers (≤ K,) of rows of A drawn without replacement, all alike; none of zeros.

    Fewer than K only where A has fewer rows that are not zero.
    """
    candidates = _of_rows(data, row_maxima).nonzero()[:, 0]
    place = candidates.device if generator is None else generator.device
    order = torch.randperm(len(candidates), generator=generator, device=place)
    return candidates[order[:K].to(candidates.device)]


@torch.no_grad()
def spread_rows(data: Data, K: int, generator: Generator | None = None) -> Tensor:
    """The same, each drawn with a probability in proportion to its squared distance from the rays
    of those drawn in rounds before.

    2 n d K flops. Sources: Arthur & Vassilvitskii, 2007 (k-means++); in rounds: Bahmani et al.,
    2012 (k-means‖); without replacement: Efraimidis & Spirakis, 2006.
    """
    norms = _of_rows(data, lambda X: row_norms(X, wide(X.device)))
    candidates = norms.nonzero()[:, 0]
    norms = norms[candidates]

    def cosine(drawn: Tensor) -> Tensor:
        rays = take_rows(data, candidates[drawn])
        rays /= norms[drawn, None].to(rays)
        nearest = _of_rows(data, lambda X: dot(X, rays.T).amax(1))
        return (nearest[candidates] / norms).clamp(max=1)

    return candidates[_draw_spread(norms, cosine, K, generator)]


def take_rows(data: Data, numbers: Tensor) -> Tensor:
    """These rows of A, in this order, widened: a copy."""
    taken = data.like.new_zeros(len(numbers), data.d)
    for part, X, _ in data.chunks():
        first = data.first + part.start
        here = ((numbers >= first) & (numbers < first + len(X))).nonzero()[:, 0]
        taken[here] = take(X, numbers[here] - first)
    data.processes.sum_(taken)
    return taken


def _draw_spread(
    norms: Tensor, cosine_with: Callable[[Tensor], Tensor], K: int, generator: Generator | None
) -> Tensor:
    """Which K of the candidates with these norms are drawn; cosine_with(drawn) is that of each
    candidate with the nearest of those."""
    K = min(K, len(norms))
    weight = (norms / norms.amax().clamp(min=1e-300)).square() if K else norms
    cosine = torch.zeros_like(weight)
    left = torch.ones_like(weight, dtype=torch.bool)
    taken: list[Tensor] = []
    for following in reversed(range(ROUNDS)):
        count = (K - sum(map(len, taken))) // (following + 1)
        if count == 0:
            continue
        distance = weight * (1 - cosine.square()).clamp(min=_LEAST_WEIGHT)
        key = torch.where(left, _uniform(weight, generator).log() / distance, -torch.inf)
        drawn = key.topk(count).indices
        left[drawn] = False
        taken.append(drawn)
        if following:
            torch.maximum(cosine, cosine_with(drawn), out=cosine)
    return torch.cat(taken) if taken else torch.arange(len(norms), device=norms.device)


def _of_rows(data: Data, measure: Callable[[Matrix], Tensor]) -> Tensor:
    """measure(X) (m,) of all rows, in float64. Small results of chunks, kept one by one, would lie
    between what each chunk takes and gives back, and keep it from being used again."""
    measured = torch.zeros(data.n, dtype=wide(data.device), device=data.device)
    for part, X, _ in data.chunks():
        for some in row_blocks(len(X), tile_rows(width(data), 8)):
            tile, first = X[some], data.first + part.start + some.start
            measured[first : first + len(tile)] = measure(tile)
    data.processes.sum_(measured)
    return measured


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    place = like.device if generator is None else generator.device
    drawn = torch.rand(like.shape, dtype=torch.float64, generator=generator, device=place)
    return drawn.clamp(min=1e-300).to(like.device)
