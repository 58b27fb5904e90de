"""Exact codes of rows whose entries have weights: each row has a Gram matrix of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...backends.nnls.result import NnlsInfo
from ...backends.products import dot
from ...backends.weighted import triangle
from ...data.storage import row_blocks
from ...data.weights.entries import EntryWeights
from ...solvers.half_step import Operations
from ...solvers.penalties import Penalty

# entries of Gram matrices at a time
_GRAMS = 1 << 23


@torch.no_grad()
def weighted_codes(
    data: EntryWeights, D: Tensor, penalty: Penalty, ops: Operations, Z0: Tensor | None = None
) -> tuple[Tensor, NnlsInfo]:
    """argmin ½ Σ w (x − z D)² + the penalty of z over z ≥ 0, for each row x of the data (n, d) with
    weights w; in their dtype; and the info of each row, with its KKT residual as results.encoding
    has it.

    D (K, d) of any signs. ops: of solver anls. Computed in float64, from products with all pairs of
    concepts: K² flops for each entry with a weight. Z0 (n, K): codes to start from. A row without
    weight has zero codes.
    """
    K, n = len(D), len(data.X)
    B, of = D.double(), triangle(K, D.device)
    low = torch.tril_indices(K, K, device=D.device)
    pairs = (B[low[0]] * B[low[1]]).T.contiguous()
    Z, infos = torch.zeros(n, K, dtype=data.X.dtype, device=D.device), []
    for part in row_blocks(n, max(1, _GRAMS // K**2)):
        V, W = (M.to(torch.float64) for M in data.tile(part))
        C = dot(V, B.T.contiguous()) - penalty.l1
        G = dot(W, pairs)[:, of.flatten()].view(-1, K, K)
        diagonal = G.diagonal(dim1=1, dim2=2)
        if penalty:
            diagonal.add_(penalty.curvature(diagonal))
        start = None if Z0 is None else Z0[part].double()
        found, info = _solve(C, G, ops, start)
        Z[part] = found.to(Z.dtype)
        infos.append(replace(info, kkt=_kkt(C, G, Z[part].double(), penalty.l1)))
    return Z, NnlsInfo.join(infos)


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
