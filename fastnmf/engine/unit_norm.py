"""Concepts of norm 1: their norms go into the codes, when the codes are gone through next."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.storage import NotKept, Storage
from .statistics import Statistics


class UnitNorm:
    """D_k ← D_k / ‖D_k‖ after every dictionary half-step, and Z_k ← Z_k ‖D_k‖ before the next one
    of the codes, so that no pass over them is added. The product Z D stays as it is.

    Neither raises the objective: the half-step has the penalty of Statistics.penalty_of_norms.
    """

    def __init__(self) -> None:
        # what the codes are still to be multiplied by (K,), from the start on: always in one place
        self._scale: Tensor | None = None

    def normalise_(self, D: Tensor, before: Tensor, statistics: Statistics) -> None:
        """Concepts D (K, d) get norm 1, and the statistics are those of codes that are multiplied
        already. One that has become zero is as in `before` (K, d), without codes, so that it may
        return; one that was zero stays zero."""
        norms, norms_before = (
            torch.linalg.vector_norm(M, dim=1, dtype=torch.float64) for M in (D, before)
        )
        gone = (norms == 0) & (norms_before > 0)
        divisor = torch.where(norms > 0, norms, 1).to(D.dtype)
        D.copy_(torch.where(gone[:, None], before, D / divisor[:, None]))
        scale = torch.where(gone, 0, divisor)
        self._scale = scale if self._scale is None else self._scale.copy_(scale)
        statistics.scale_codes_(self._scale)

    def move_(self, Z: Tensor) -> None:
        """Multiply a piece of the codes (m, K)."""
        if self._scale is not None:
            Z.mul_(self._scale.to(Z.device))

    def settle_(self, Z: Storage) -> None:
        """Multiply all codes by what is left to be; codes that are not kept follow D anyway."""
        if self._scale is None:
            return
        for rows in () if isinstance(Z, NotKept) else Z.blocks_():
            self.move_(rows)
        self._scale.fill_(1)
