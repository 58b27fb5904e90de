"""What an iteration gathers over rows: ZᵀA, ZᵀZ, ‖ΔZ‖², ‖Z‖² and the loss. All are sums, so pieces
only add to them."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Rows
from .solvers import squared_norm


class Statistics:
    """cross (K, d) = ZᵀA and gram (K, K) = ZᵀZ where the dictionary half-step reads them, and
    float64 sums.

    sums (4,): ‖ΔZ‖², ‖Z‖², the squared residual norm where a half-step in residual form comes by
    it, and how far a residual had drifted, squared, where one that was carried was computed anew.
    """

    def __init__(self, rows: Rows, K: int, *, moments: bool) -> None:
        A = rows.A
        self.sums = torch.zeros(4, dtype=torch.float64, device=A.device)
        self.squared_data = squared_norm(A)
        self.cross = A.new_zeros(K, A.shape[1]) if moments else None
        self.gram = A.new_zeros(K, K) if moments else None

    def clear_(self) -> None:
        self.sums.zero_()
        if self.cross is not None:
            self.cross.zero_()
            self.gram.zero_()

    def add_(self, X: Tensor, Z: Tensor) -> None:
        """cross += ZᵀX, gram += ZᵀZ for a piece X (m, d) with its codes Z (m, K); 2 m K (d + K)
        flops."""
        if self.cross is not None:
            self.cross.addmm_(Z.T, X)
            self.gram.addmm_(Z.T, Z)

    def squared_error(self, D: Tensor, G: Tensor) -> Tensor:
        """‖A − Z D‖² = ‖A‖² − 2 ⟨ZᵀA, D⟩ + ⟨ZᵀZ, G⟩ for G = D Dᵀ, at least 0: a float64 scalar.

        It is a difference of large numbers: from float32 statistics, good to about 1e-7 ‖A‖².
        """
        cross = (self.cross * D).sum(dtype=torch.float64)
        gram = (self.gram * G).sum(dtype=torch.float64)
        return (self.squared_data - 2 * cross + gram).clamp(min=0)


def squared_error(rows: Rows, Z: Tensor, D: Tensor, piece_rows: int) -> Tensor:
    """‖A − Z D‖², computed from the residual, a piece of rows at a time: a float64 scalar. 2 n d K
    flops."""
    total = torch.zeros((), dtype=torch.float64, device=D.device)
    for part, X in rows.chunks(piece_rows):
        E = torch.addmm(X, Z[part], D, alpha=-1)
        total += squared_norm(E)
    return total
