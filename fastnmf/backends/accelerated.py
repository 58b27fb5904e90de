"""Whole accelerated iterations of HALS on a CPU in as few calls as possible, for data and factors
of which the calls take as long as the numbers. engine/iteration.py has the same by single
operations, with the same bits."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from .pointers import Sums, Watched, view


class Accelerated:
    """Iterations on codes Z (n, K) and a dictionary D (K, d) ≥ 0, in place, for X (n, d), all of
    float32 with contiguous rows. inner: half-steps of the codes and of the dictionary.

    An iteration takes 2 n K (2 d + inner K) flops.
    """

    def __init__(
        self,
        pair: tuple[Tensor, Tensor],
        X: Tensor,
        before: Watched,
        to: Sums,
        inner: tuple[int, int],
    ) -> None:
        Z, D = pair
        self._D, self._Dt = D, D.T
        self._G, self._now = torch.empty_like(to.gram), torch.empty_like(before.norms)
        # whose memory the extension reads and writes
        self._kept: Any = pair, X, before, to
        stored = before.swept.T, before.Z.T, before.D, before.norms
        products = self._G, to.cross, to.gram, self._now
        self._by = _C.Accelerated(
            (view(Z.T), view(D)),
            view(X),
            tuple(map(view, stored)),
            tuple(map(view, products)),
            view(to.sums),
            (before.least_share, before.most_growth, to.squared_norm, *inner),
        )

    def __call__(self, step: float) -> None:
        """Iterate once, with extrapolation by `step`."""
        by, D, threads = self._by, self._D, torch.get_num_threads()
        by.begin(step, threads)
        # products and norms by torch, as elsewhere
        torch.mm(D, self._Dt, out=self._G)
        by.update(step, threads)
        torch.mm(D, self._Dt, out=self._G)
        if by.end():
            torch.linalg.vector_norm(D, dim=1, out=self._now)
            by.balance(threads)
