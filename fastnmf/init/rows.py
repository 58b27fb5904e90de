"""Rows of the data to take as first concepts: any, or such as differ from each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..numerics import product, widened

# draws between which the distances are brought up to date; k-means‖ finds that few suffice
ROUNDS = 8
# of ‖a_i‖²: the weight of a row that points as one does that was taken already
_LEAST_WEIGHT = 1e-12
# products of rows with rows in hand
_IN_HAND = 1 << 22


def any_rows(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """The numbers (≤ K,) of rows of A (n, d) drawn without replacement, all alike; none of zeros.

    Fewer than K only where A has fewer rows that are not zero.
    """
    return draw_any(A.any(1).nonzero()[:, 0], K, generator)


def draw_any(candidates: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """K of these row numbers, all alike."""
    place = candidates.device if generator is None else generator.device
    order = torch.randperm(len(candidates), generator=generator, device=place)
    return candidates[order[:K].to(candidates.device)]


def spread_rows(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """The same, each drawn with a probability in proportion to its squared distance from the rays
    of those drawn in rounds before.

    2 n d K flops. Sources: Arthur & Vassilvitskii, 2007 (k-means++); in rounds: Bahmani et al.,
    2012 (k-means‖); without replacement: Efraimidis & Spirakis, 2006.
    """
    candidates = A.any(1).nonzero()[:, 0]
    norms = torch.linalg.vector_norm(A[candidates], dim=1, dtype=torch.float64)

    def cosine(drawn: Tensor) -> Tensor:
        return _cosine(A, candidates, norms, drawn)

    return candidates[draw_spread(norms, cosine, K, generator)]


def draw_spread(
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


def _cosine(A: Tensor, candidates: Tensor, norms: Tensor, drawn: Tensor) -> Tensor:
    """That of each candidate with the nearest row drawn."""
    rays = widened(A[candidates[drawn]])
    rays /= norms[drawn, None].to(rays.dtype)
    pieces = candidates.split(max(1, _IN_HAND // len(drawn)))
    nearest = torch.cat([product(A[piece], rays.T).amax(1) for piece in pieces])
    return (nearest.double() / norms).clamp(max=1)


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    place = like.device if generator is None else generator.device
    drawn = torch.rand(like.shape, dtype=torch.float64, generator=generator, device=place)
    return drawn.clamp(min=1e-300).to(like.device)
