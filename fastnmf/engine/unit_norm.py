"""Concepts of norm 1: their norms move into the codes, in the next pass over these. The penalty
that this needs is in statistics.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..backends.sparse import SparseMatrix
from ..data.storage import Compressed, NotKept, Storage
from .statistics import Statistics


class UnitNorm:
    """D_k ← D_k / ‖D_k‖ after every dictionary half-step, and Z_k ← Z_k ‖D_k‖ before the next
    half-step of the codes, without an extra pass over them. The product Z D does not change.

    The objective does not rise, with Statistics.penalty_of_norms in the dictionary half-step.
    """

    def __init__(self) -> None:
        # the pending factor of the codes (K,), at one address
        self._scale: Tensor | None = None

    def normalise_(self, D: Tensor, before: Tensor, statistics: Statistics) -> None:
        """Give concepts D (K, d) norm 1, and the statistics the values of multiplied codes. A
        concept that became zero is restored from `before` (K, d) without codes, so that it may
        return; one that was zero before stays zero."""
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
        """Multiply the codes of a tile (m, K) by the pending factor."""
        if self._scale is not None:
            Z.mul_(self._scale.to(Z.device))

    def moved(self, Z: SparseMatrix) -> SparseMatrix:
        """Codes times the pending factor, of which zeros are not stored."""
        if self._scale is None:
            return Z
        return replace(Z, values=Z.values * self._scale[Z.col]).without_zeros()

    def scaled(self, D: Tensor) -> Tensor:
        """D (K, d) times the pending factor of the codes: with the codes as they are stored, it has
        the product of the pair."""
        return D if self._scale is None else D * self._scale[:, None]

    def apply_scale_(self, Z: Storage) -> None:
        """Multiply all codes by the pending factor, which becomes 1. Codes that are not kept are
        computed for D anyway."""
        if self._scale is None:
            return
        if isinstance(Z, Compressed):
            Z.scale_(self._scale)
        for rows in () if isinstance(Z, NotKept | Compressed) else Z.blocks_():
            self.move_(rows)
        self._scale.fill_(1)
