"""Exact codes of rows whose entries have weights: each row has a Gram matrix of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...backends.nnls.result import NnlsInfo
from ...backends.products import Matrix, dot
from ...backends.sparse import SparseMatrix
from ...backends.weighted import triangle
from ...data.storage import row_blocks
from ...data.weights.entries import EntryWeights
from ...solvers.half_step import Operations
from ...solvers.penalties import Penalty

# entries at a time: of Gram matrices, of rows and their weights; of products of pairs of concepts,
# beyond which the Gram matrix of each row is a product of its own
_GRAMS, _ROWS, _PAIRS = 1 << 21, 1 << 20, 1 << 24


class WeightedCodes:
    """argmin ½ Σ w (x − z D)² + the penalty of z over z ≥ 0, for each row x with weights w.

    D (K, d) of any signs. ops: of solver anls. Computed in float64, from products with all pairs of
    concepts: K² flops for each entry with a weight. A row without weight has zero codes.
    """

    def __init__(self, D: Tensor, penalty: Penalty, ops: Operations) -> None:
        self._B, self._penalty, self._ops = D.double(), penalty, ops
        (K, d), device = D.shape, D.device
        self._triangle, self._pairs = triangle(K, device).flatten(), None
        # rows that are computed with at a time
        self.step = max(1, min(_GRAMS // max(1, K * K), _ROWS // d))
        if d * K * (K + 1) // 2 <= _PAIRS:
            low = torch.tril_indices(K, K, device=device)
            self._pairs = (self._B[low[0]] * self._B[low[1]]).T.contiguous()

    @torch.no_grad()
    def __call__(self, data: EntryWeights, Z0: Tensor | None = None) -> tuple[Tensor, NnlsInfo]:
        """Codes (n, K) of rows (n, d), in their dtype, and the info of each row, with its KKT
        residual as results.encoding has it. Z0 (n, K): codes to start from."""
        n, K = len(data.X), len(self._B)
        Z, infos = torch.zeros(n, K, dtype=data.X.dtype, device=self._B.device), []
        for part in row_blocks(n, self.step):
            V, W = (M.to(torch.float64) for M in data.tile(part))
            l1, C = self._penalty.l1, dot(V, self._B.T.contiguous())
            C -= l1
            G = self._grams(W)
            diagonal = G.diagonal(dim1=1, dim2=2)
            if self._penalty:
                diagonal.add_(self._penalty.curvature(diagonal))
            start = None if Z0 is None else Z0[part].double()
            found, info = _solve(C, G, self._ops, start)
            Z[part] = found.to(Z.dtype)
            infos.append(replace(info, kkt=_kkt(C, G, Z[part].double(), l1)))
        return Z, NnlsInfo.join(infos)

    def _grams(self, W: Matrix) -> Tensor:
        """Σ_j w_ij b_j b_jᵀ of each row i (m, K, K)."""
        K = len(self._B)
        if self._pairs is not None:
            return dot(W, self._pairs)[:, self._triangle].view(-1, K, K)
        G = self._B.new_empty(len(W), K, K)
        for i, out in enumerate(G):
            w, B = W[i : i + 1], self._B
            if isinstance(w, SparseMatrix):
                B, w = B[:, w.col.long()], w.values
            torch.mm(B * w.flatten(), B.T, out=out)
        return G


def _kkt(C: Tensor, G: Tensor, z: Tensor, l1: float) -> Tensor:
    """The KKT residual (m,) of codes z (m, K), for C − l1 (m, K) and G (m, K, K)."""
    slope = C - (G @ z[:, :, None])[:, :, 0]
    size = (C + l1).abs() + (G.abs() @ z[:, :, None])[:, :, 0] + l1
    worst = torch.where(z > 0, slope.abs(), slope.clamp(min=0)).amax(1)
    return torch.where(worst > 0, worst / size.amax(1).clamp(min=1e-300), 0)


def _solve(C: Tensor, G: Tensor, ops: Operations, start: Tensor | None) -> tuple[Tensor, NnlsInfo]:
    """argmin ½ z G_i zᵀ − c_i zᵀ over z ≥ 0, for C (m, K) and G (m, K, K), float64."""
    m, K = C.shape
    diagonal = G.diagonal(dim1=1, dim2=2)
    norm = torch.where(diagonal > 0, diagonal, 1).sqrt()
    unit = G / norm[:, :, None] / norm[:, None]
    # a concept that no observed feature has is not used
    F = torch.zeros_like(C) if start is None else torch.where(diagonal > 0, start * norm, 0)
    slopes = torch.where(diagonal > 0, C / norm, 0)
    index = torch.arange(K, dtype=torch.int32, device=C.device).expand(m, K).contiguous()
    ones = torch.ones(K, dtype=torch.float64, device=C.device)
    info, _ = ops["nnls_on_"](F.T, slopes.T, unit, ones, index, warm=start is not None)
    return torch.where(diagonal > 0, F / norm, 0), info
