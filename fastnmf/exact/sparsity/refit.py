"""Codes without shrinkage: least squares on the support that a penalty has chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends.products import Matrix, dense
from ...data.storage import row_blocks
from ...precision import products_in
from ...solvers.half_step import Operations
from ...solvers.supports.working_set import on_supports_, prepare_concepts

NAME = "refit"
# entries of codes of rows that are solved together
_ENTRIES = 1 << 23


@torch.no_grad()
def refit_(Z: Tensor, X: Matrix, D: Tensor, ops: Operations) -> None:
    """Z (m, K) ← argmin ½ ‖X − Z D‖² over Z ≥ 0 that are zero where Z is; X (m, d), D (K, d). ops:
    operations of the solver anls."""
    with torch.cuda.device_of(D), products_in("highest"):
        concepts = prepare_concepts(D, 0)
        for part in row_blocks(len(Z), max(1, _ENTRIES // len(D))):
            on_supports_(Z[part], dense(X[part]).to(D.dtype), concepts, ops)
