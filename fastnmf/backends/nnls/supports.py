"""Supports of many rows, padded to the largest, with the Gram matrices of their concepts, in plain
torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """The supports of some rows, padded to q concepts: index, real (r, q): the concepts at the
    start, and which are no padding; used: which are left. gram (r, q, q): the identity where not
    used; x, c, added (r, q): as those of ActiveSets, 0 where not used."""

    index: Tensor
    real: Tensor
    used: Tensor
    gram: Tensor
    x: Tensor
    c: Tensor
    added: Tensor

    def __getitem__(self, rows: Tensor) -> Support:
        """The supports of some of the rows, copied."""
        return Support(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def with_added(self) -> Tensor:
        """The Gram matrices with what counts as added to their diagonals."""
        if not bool(self.added.any()):
            return self.gram
        return self.gram + torch.diag_embed(self.added)

    def leave_(self, rows: Tensor, places: Tensor) -> None:
        """The concept at one place (s,) of each of these rows (s,) leaves."""
        self.used[rows, places] = False
        for vector in (self.x, self.c, self.added):
            vector[rows, places] = 0
        self.gram[rows, places] = 0
        self.gram[rows, :, places] = 0
        self.gram[rows, places, places] = 1


def first_true(chosen: Tensor, most: int) -> Tensor:
    """The indices of the first `most` columns that are true in each row, −1 behind the last."""
    K = chosen.shape[1]
    index = torch.where(chosen, torch.arange(K, device=chosen.device), K).sort(1).values[:, :most]
    return torch.where(index < K, index, -1)


def towards(x: Tensor, s: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From x (r, q) ≥ 0 towards the minimiser s as far as x ≥ 0 allows, on the places in use: where
    that is, 0 elsewhere; whether it is s (r,); and the place that stops it (r,)."""
    falls = used & ~(s > 0)
    ratio = torch.where(x > 0, x / (x - s), 0).masked_fill_(~falls, torch.inf)
    step, stops = ratio.min(1, keepdim=True)
    arrived = ~falls.any(1)
    moved = torch.where(arrived[:, None], s, (x + step * (s - x)).clamp(min=0))
    return torch.where(used, moved, 0), arrived, stops[:, 0]


def padded_support(passive: Tensor, q: int | None = None) -> tuple[Tensor, Tensor]:
    """The concepts that each row uses, padded to q: their indices (r, q), and which entries are no
    padding (r, q). q: at least the largest number, which it is by default; then it is waited for.
    """
    counts = passive.sum(1)
    if q is None:
        q = max(1, int(counts.max())) if len(counts) else 1
    used = torch.arange(q, device=passive.device) < counts[:, None]
    index = torch.zeros(used.shape, dtype=torch.long, device=passive.device)
    # both list their true entries row by row
    index[used] = passive.nonzero()[:, 1]
    return index, used


def gather_gram(G: Tensor, rows: Tensor, index: Tensor, used: Tensor) -> Tensor:
    """G, of all rows or for each its own, on the support of each row (r, q, q), the identity where
    it is padded."""
    i, j = index[:, :, None], index[:, None]
    gathered = G[i, j] if G.dim() == 2 else G[rows[:, None, None], i, j]
    if not bool(used.all()):
        gathered *= used[:, :, None]
        gathered *= used[:, None]
        gathered.diagonal(dim1=1, dim2=2).add_(~used)
    return gathered
