"""Codes with at most k concepts a row for a fixed dictionary, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.nnls.result import UNSOLVED
from ..backends.products import Matrix, dense
from ..data.storage import row_blocks
from ..engine.codes import Ended, chunk_rows
from ..engine.state import Method
from ..precision import products_in
from ..solvers.supports.pursuit import pursue_
from ..solvers.supports.top_k import NAME, exchange_
from ..solvers.supports.working_set import prepare_concepts


@dataclass(frozen=True)
class PursuitEncoder:
    """Codes with at most top_k concepts for each row, exact on their support with the penalty of Z:
    solvers/supports/pursuit.py. D (K, d) ≥ 0; method: with operations of the solver anls.
    exchanges: whether concepts are then exchanged, without a penalty, as in a fit with top_k. done
    is called with the rows of every chunk, after it."""

    D: Tensor
    method: Method
    top_k: int
    exchanges: bool = False
    done: Callable[[int], object] | None = None

    @torch.no_grad()
    def __call__(self, A: Matrix, Z0: Tensor | None = None) -> tuple[Tensor, list[Ended]]:
        """Z (m, K) for A (m, d), on D's device, in its dtype or in 16 bits; and how each chunk
        ended. Z0 is None: a pursuit has no start."""
        D, penalty = self.D, self.method.penalties.of_codes(self.D.shape[1])
        Z, ended = D.new_zeros(len(A), len(D)), []
        with torch.cuda.device_of(D), products_in("highest"):
            concepts = prepare_concepts(D, 0, penalty)
            for part in row_blocks(len(A), chunk_rows(self.D, self.method)):
                X = dense(A[part]).contiguous()
                info = pursue_(Z[part].T, X, concepts, self.top_k, self.method.ops)
                if self.exchanges:
                    exchange_(Z[part], X, concepts, self.top_k, self.method.ops)
                unsolved = int((~(info.kkt <= UNSOLVED[D.dtype])).sum())
                most = int(info.iterations.max()) if len(X) else 0
                ended.append(Ended(most, unsolved == 0, (NAME,), unsolved))
                if self.done is not None:
                    self.done(len(X))
        return Z, ended
