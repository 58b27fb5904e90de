"""Exact codes of rows whose entries have weights: each row has a Gram matrix of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...backends.nnls.result import NnlsInfo
from ...backends.products import Matrix, dot
from ...backends.sparse import SparseMatrix
from ...backends.weighted import triangle
from ...data.storage import row_blocks
from ...data.weights.entries import EntryWeights
from ...solvers.half_step import Operations
from ...solvers.penalties import NO_PENALTY, Penalty
from ...solvers.supports.top_k import NAME as PURSUIT
from ..sparsity.refit import NAME as REFIT
from .pursuit import Rows, exchange, pursue

# entries at a time: of Gram matrices, of rows and their weights; of products of pairs of concepts,
# beyond which the Gram matrix of each row is a product of its own
_GRAMS, _ROWS, _PAIRS = 1 << 21, 1 << 20, 1 << 24


@dataclass(frozen=True)
class Asked:
    """What is asked of codes beside the solution: the most concepts of a row, or None; whether
    concepts are exchanged after a pursuit, and coefficients refitted without the penalty."""

    top_k: int | None = None
    exchanges: bool = False
    refit: bool = False

    @property
    def method(self) -> str:
        """What it is called in a summary."""
        return ("exact" if self.top_k is None else PURSUIT) + (f", then {REFIT}" * self.refit)


class WeightedCodes:
    """argmin ½ Σ w (x − z D)² + the penalty of z over z ≥ 0, for each row x with weights w.

    D (K, d) of any signs. ops: of solver anls. Computed in float64, from products with all pairs of
    concepts: K² flops for each entry with a weight. A row without weight has zero codes.
    """

    def __init__(
        self, D: Tensor, penalty: Penalty, ops: Operations, asked: Asked | None = None
    ) -> None:
        self._B, self._penalty, self._ops = D.double(), penalty, ops
        self._asked = asked or Asked()
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
            C, G = dot(V, self._B.T.contiguous()), self._grams(W)
            start = None if Z0 is None else Z0[part].double()
            exchanges = self._asked.exchanges
            squares = _row_squares(data.beside(part, data.X[part])) if exchanges else None
            found, info = self._codes(Rows(C, G, self._solution), start, squares)
            Z[part] = found.to(Z.dtype)
            # with a support of its own, that of the problem on it, without the penalty of a refit
            on_support = self._asked != Asked()
            terms = NO_PENALTY if self._asked.refit else self._penalty
            kkt = _kkt(C, G, Z[part].double(), terms, on_support=on_support)
            infos.append(replace(info, kkt=kkt, support=(Z[part] > 0).sum(1).int()))
        return Z, NnlsInfo.join(infos)

    def _codes(
        self, rows: Rows, start: Tensor | None, squares: Tensor | None
    ) -> tuple[Tensor, NnlsInfo]:
        """Codes (m, K) of rows without a penalty, and the info of each. squares (m,): Σ w x²."""
        asked, penalised = self._asked, rows
        if self._penalty:
            G = rows.G.clone()
            diagonal = G.diagonal(dim1=1, dim2=2)
            diagonal.add_(self._penalty.curvature(diagonal))
            penalised = Rows(rows.C - self._penalty.l1, G, self._solution)
        if asked.top_k is None or asked.top_k >= len(self._B):
            Z, info = _solve(penalised.C, penalised.G, self._ops, start)
        else:
            Z, steps = pursue(penalised, asked.top_k)
            if squares is not None:
                Z = exchange(penalised, Z, asked.top_k, squares)
            # residual and support are found by who calls
            info = NnlsInfo(torch.zeros_like(steps), torch.zeros_like(Z[:, 0]), steps, steps)
        return (rows.among(Z > 0) if asked.refit else Z), info

    def _solution(self, C: Tensor, G: Tensor) -> Tensor:
        return _solve(C, G, self._ops, None)[0]

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


def _kkt(C: Tensor, G: Tensor, z: Tensor, terms: Penalty, *, on_support: bool) -> Tensor:
    """The KKT residual (m,) of codes z (m, K), for B (w ∘ x) (m, K) and Gram matrices (m, K, K);
    on_support: of the problem on the concepts in use."""
    slope = C - terms.l1 - (G @ z[:, :, None])[:, :, 0] - terms.l2 * z
    size = C.abs() + (G.abs() @ z[:, :, None])[:, :, 0] + terms.l1
    others = torch.zeros_like(slope) if on_support else slope.clamp(min=0)
    worst = torch.where(z > 0, slope.abs(), others).amax(1)
    return torch.where(worst > 0, worst / size.amax(1).clamp(min=1e-300), 0)


def _row_squares(rows: EntryWeights) -> Tensor:
    """Σ w x² of each row (m,), in float64."""
    V, _ = rows.tile(slice(0, len(rows.X)))
    X = rows.X
    if isinstance(V, SparseMatrix):
        assert isinstance(X, SparseMatrix)
        sums = V.values.new_zeros(len(V), dtype=torch.float64)
        return sums.index_add_(0, V.row_of_entries().long(), (V.values * X.values).double())
    assert isinstance(X, Tensor)
    return (V * X).sum(1, dtype=torch.float64)


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
