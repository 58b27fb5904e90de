"""Mixtures of rows: which rows of the data each concept is made of, with which weights, and which
other rows would lower the error most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...numerics import tiny

# rows that may enter each mixture in one half-step: 3, 6 and 12 leave the same error after the same
# time (2,000 × 384, K = 50)
ENTERING = 6
# entries of the slopes of a tile of rows
_SLOPES = 1 << 22


class Rows(Protocol):
    """A (n, d), as data.dataset.Data has it."""

    def chunks(self) -> Iterator[tuple[slice, Any, Any]]:
        """(part, X, …) of each chunk of rows, widened."""
        ...

    def take(self, numbers: Tensor) -> Tensor:
        """These rows, widened: a copy."""
        ...


@dataclass
class Mixture:
    """W (K, n) ≥ 0 of D = W A, by the rows of A in each concept: their numbers (K, s), int64, and
    their weights (K, s), in float64 where the device has it. A place with weight 0 is empty."""

    numbers: Tensor
    weights: Tensor

    @classmethod
    def of_single(cls, numbers: Tensor, dtype: torch.dtype) -> Mixture:
        """Each concept is one of these rows (K,)."""
        weights = torch.ones(len(numbers), 1, dtype=dtype, device=numbers.device)
        return cls(numbers[:, None].clone(), weights)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return {"numbers": self.numbers, "weights": self.weights}

    def packed(self) -> tuple[Tensor, Tensor, list[int]]:
        """Numbers and weights without empty places between, and how many each concept has."""
        return packed(self.numbers, self.weights, self.weights > 0)

    def sparse(self, n: int, dtype: torch.dtype) -> Tensor:
        """W (K, n), sparse (COO), coalesced."""
        concept, place = (self.weights > 0).nonzero().unbind(1)
        index = torch.stack((concept, self.numbers[concept, place]))
        values = self.weights[concept, place].to(dtype)
        shape = len(self.weights), n
        return torch.sparse_coo_tensor(
            index, values, shape, device=values.device, check_invariants=True
        ).coalesce()


@dataclass
class Mixing:
    """The rows that concepts are mixtures of, and the present Mixture, which half-steps replace.

    convex: whether weights sum to 1.
    """

    data: Rows
    mixture: Mixture
    convex: bool = False
    entering: int = ENTERING

    @classmethod
    def of(cls, data: Rows, mixture: Mixture | None, *, convex: bool) -> Mixing | None:
        """None where concepts are no mixtures."""
        return None if mixture is None else cls(data, mixture, convex)

    def steepest(self, slopes: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers (K, e), e ≤ `entering`, of the rows outside each mixture along which the loss
        falls most, and whether it falls along each.

        slopes (K, d): minus the gradient of D, so that A slopes_k is that of the weights of concept
        k; least (K,): a row counts if its own is above. The slopes are in the unit of rows of norm
        1, unless weights sum to 1. 2 n d K flops; K × n is stored for a tile of rows at a time.
        """
        best = slopes.new_empty(len(slopes), 0)
        numbers = torch.empty(best.shape, dtype=torch.int64, device=best.device)
        concept, place = (self.mixture.weights > 0).nonzero().unbind(1)
        own = self.mixture.numbers[concept, place]
        step = max(1024, _SLOPES // len(slopes))
        for part, X, _ in self.data.chunks():
            for first in range(0, len(X), step):
                tile, begins = X[first : first + step], part.start + first
                S = slopes @ tile.T
                S -= least[:, None]
                if not self.convex:
                    S /= torch.linalg.vector_norm(tile, dim=1).clamp(min=tiny(tile))
                inside = ((own >= begins) & (own < begins + len(tile))).nonzero()[:, 0]
                S[concept[inside], own[inside] - begins] = -torch.inf
                found = S.topk(min(self.entering, len(tile)), dim=1)
                best = torch.cat((best, found.values), 1)
                numbers = torch.cat((numbers, found.indices + begins), 1)
                if best.shape[1] > self.entering:
                    best, kept = best.topk(self.entering, dim=1)
                    numbers = numbers.gather(1, kept)
        return numbers, best > 0


def packed(numbers: Tensor, weights: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The kept ones of numbers and weights (K, s), first in each row and in their order, the weight
    of the others 0; and how many there are in each row. Synchronises."""
    counts = kept.sum(1)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    counted = counts.tolist()
    order = order[:, : max(1, *counted)]
    weights = torch.where(kept, weights, 0)
    return numbers.gather(1, order), weights.gather(1, order), counted
