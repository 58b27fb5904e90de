"""At most k concepts for each row: non-negative orthogonal matching pursuit, with exact codes on
the support. The steepest concept enters, codes become the solution on the support, and so on.

Sources: Pati, Rezaiifar & Krishnaprasad (1993); non-negative: Bruckstein, Elad & Zibulevsky (2008).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...backends.nnls.residual import Terms, measure
from ...backends.nnls.result import BLOCK, CAPPED, RANK_TOLERANCE, SOLVED, TOLERANCE, NnlsInfo
from ...backends.nnls.supports import towards
from ..penalties import NO_PENALTY, Penalty
from .working_set import Concepts

# entries of the largest scratch array
_SCRATCH = 1 << 23
# relative fall of the objective that counts
_FALLS = 1e-13


def pursue_(
    F: Tensor,
    X: Tensor,
    concepts: Concepts,
    most: int,
    ops: dict[str, Callable],
    max_steps: int | None = None,
) -> NnlsInfo:
    """F (K, m) ← codes of X (m, p), contiguous rows, on at most `most` concepts of B for each.

    The error does not rise with `most`. Where the search meets the solution on all concepts with up
    to 2 most + BLOCK concepts on its way, and that has no more than `most`, it is the solution.
    Zero concepts keep their F_k. max_steps: how many concepts may enter. kkt of the info is that of
    the problem on the support, or on all concepts where F solves that. Synchronises.
    """
    if operation := ops.get("nnls_rows_"):
        fixed = concepts.B, concepts.scale, None, concepts.l1, concepts.curvature
        sums = torch.zeros(3, dtype=torch.float64, device=F.device)
        return operation(F, X, fixed, sums, warm=False, max_steps=max_steps, most=most)
    # curved concepts are independent, however many they are
    rank = len(F) if concepts.curvature is not None else min(len(F), X.shape[1])
    width = min(rank, 2 * most + BLOCK)
    rows, infos = max(1, _SCRATCH // max(len(F), width * X.shape[1])), []
    for first in range(0, max(1, len(X)), rows):
        part = slice(first, first + rows)
        pursuit = _Pursuit(X[part].double(), concepts, width)
        infos.append(pursuit.run_(most, TOLERANCE[F.dtype] / 2, max_steps))
        alive = concepts.scale > 0
        F[:, part] = torch.where(alive[:, None], pursuit.codes().T.to(F.dtype), F[:, part])
    return NnlsInfo.join(infos)


def largest_support(D: Tensor, penalty: Penalty) -> int:
    """How many of the concepts D (K, d) a solution needs at most; curved ones are independent,
    however many they are."""
    return len(D) if isinstance(penalty.l2, Tensor) or penalty.l2 else min(D.shape)


def support_kkt(A: Tensor, D: Tensor, Z: Tensor, penalty: Penalty = NO_PENALTY) -> Tensor:
    """The KKT residual (n,) float64 of codes Z (n, K) of A (n, d) for the problem on their support:
    the largest |slope| of a concept in use, relative to max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ| z_j +
    l1)."""
    terms = Terms(penalty.l1, penalty.l2)
    return measure(A, D, Z, terms=terms, on_support=True).kkt


class _Pursuit:
    """Rows X (r, p) float64 that are searched at the same time, in places for q concepts each.

    index, x, used (r, q): the concept, its code times its norm, and whether the place is in use.
    basis (r, q, p): unit concepts of the places; gram (r, q, q), c (r, q): their products with each
    other and with X. kept: x and used when a row had as many concepts as it may have.
    """

    def __init__(self, X: Tensor, concepts: Concepts, q: int) -> None:
        self.X, self.scale = X, concepts.scale
        self.unit = concepts.B.double() * concepts.scale[:, None]
        self.l1 = concepts.l1 * concepts.scale
        curvature = concepts.curvature
        self.curvature = None if curvature is None else curvature.double() * self.scale.square()
        r, (K, p) = len(X), self.unit.shape
        self.index = torch.zeros(r, q, dtype=torch.long, device=X.device)
        self.x, self.c = X.new_zeros(r, q), X.new_zeros(r, q)
        self.used = torch.zeros(r, q, dtype=torch.bool, device=X.device)
        self.basis, self.gram = X.new_zeros(r, q, p), X.new_zeros(r, q, q)
        self.refused = torch.zeros(r, K, dtype=torch.bool, device=X.device)
        self.kept = self.index.clone(), self.x.clone(), self.used.clone()

    def run_(self, most: int, tolerance: float, max_steps: int | None) -> NnlsInfo:
        """Search until no slope is above the tolerance, relative to the largest at zero, or the
        support would be too large."""
        rows = torch.arange(len(self.X), device=self.X.device)
        reference = (self.X @ self.unit.T).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
        least = torch.full_like(reference, torch.inf)
        beyond = torch.zeros_like(rows, dtype=torch.bool)
        steps, status = torch.zeros_like(rows), torch.zeros_like(rows)
        newest = torch.full_like(rows, -1)
        while len(rows):
            slope, objective = self._slope(rows)
            falls = objective < least[rows] * (1 - _FALLS)
            least[rows] = torch.minimum(objective, least[rows])
            # rounding or dependence: left out until another lowers the objective
            useless = ~falls & (newest[rows] >= 0)
            self.refused[rows] &= ~falls[:, None]
            self.refused[rows[useless], newest[rows[useless]]] = True
            slope.masked_fill_(self.refused[rows], 0)
            count = self.used[rows].sum(1)
            full = (count >= most) & ~beyond[rows]
            for kept, now in zip(self.kept, (self.index, self.x, self.used), strict=True):
                kept[rows[full]] = now[rows[full]]
            beyond[rows[full]] = True
            steepest, k = slope.max(1)
            enters = (steepest > tolerance * reference[rows]) & (count < self.used.shape[1])
            ends = enters & (steps[rows] >= (max_steps if max_steps is not None else 1 << 30))
            status[rows[ends & ~beyond[rows]]] = CAPPED
            enters &= ~ends
            rows, k = rows[enters], k[enters]
            steps[rows] += 1
            newest[rows] = self._enter_(rows, k)
        self._restore_(beyond & (self.used.sum(1) > most))
        return self._info(status, steps, reference)

    def codes(self) -> Tensor:
        """Z (r, K)."""
        x = torch.where(self.used, self.x * self.scale[self.index], 0)
        # several places may have had the same concept
        return self.x.new_zeros(self.refused.shape).scatter_add(1, self.index, x)

    def _restore_(self, rows: Tensor) -> None:
        for kept, now in zip(self.kept, (self.index, self.x, self.used), strict=True):
            now[rows] = kept[rows]
        # places may have had other concepts since
        self.basis[rows] = self.unit[self.index[rows]]

    def _slope(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes (r, K) of concepts that are not in use, 0 of the others, and twice the
        objective."""
        x = torch.where(self.used[rows], self.x[rows], 0)
        E = self.X[rows] - (x[:, None] @ self.basis[rows])[:, 0]
        objective = E.square().sum(1) + 2 * (self.l1[self.index[rows]] * x).sum(1)
        if self.curvature is not None:
            objective += (self.curvature[self.index[rows]] * x.square()).sum(1)
        slope = E @ self.unit.T - self.l1
        # several places may have had the same concept: it is in use if one of them is
        used = self.used[rows].to(slope.dtype)
        used = torch.zeros_like(slope).scatter_add_(1, self.index[rows], used)
        return slope.masked_fill_(used > 0, 0), objective

    def _enter_(self, rows: Tensor, k: Tensor) -> Tensor:
        """Concept k (r,) of each row takes a free place, and x becomes the solution. Returns k."""
        place = (~self.used[rows]).to(torch.int8).argmax(1)
        new = self.unit[k]
        products = (self.basis[rows] @ new[:, :, None])[:, :, 0]
        self.index[rows, place], self.basis[rows, place] = k, new
        self.gram[rows, place], self.gram[rows, :, place] = products, products
        self.gram[rows, place, place] = 1.0
        self.c[rows, place] = (self.X[rows] * new).sum(1) - self.l1[k]
        self.x[rows, place], self.used[rows, place] = 0, True
        factor, failed = self._factor(rows)
        one = torch.zeros_like(products).scatter_(1, place[:, None], 1.0)[:, :, None]
        inverse = torch.cholesky_solve(one, factor)[:, :, 0].gather(1, place[:, None])[:, 0]
        depends = (failed > 0) | ~(inverse * RANK_TOLERANCE[torch.float64] < 1)
        self.used[rows[depends], place[depends]] = False
        self._descend_(rows[~depends])
        return k

    def _descend_(self, rows: Tensor) -> None:
        """Move x towards the minimiser on the support as far as x ≥ 0 allows; the concept that
        stops it leaves; until x is the minimiser."""
        while len(rows):
            used = self.used[rows]
            right = torch.where(used, self.c[rows], 0)[:, :, None]
            s = torch.cholesky_solve(right, self._factor(rows)[0])[:, :, 0]
            self.x[rows], arrived, stops = towards(self.x[rows], s, used)
            rows, stops = rows[~arrived], stops[~arrived]
            self.used[rows, stops], self.x[rows, stops] = False, 0

    def _factor(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The Cholesky factors of the Gram matrices of the places in use, the identity elsewhere,
        and which failed."""
        used = self.used[rows]
        gram = self.gram[rows] * (used[:, :, None] & used[:, None, :])
        return torch.linalg.cholesky_ex(gram + torch.diag_embed((~used).to(gram.dtype)))

    def _info(self, status: Tensor, steps: Tensor, reference: Tensor) -> NnlsInfo:
        x = torch.where(self.used, self.x, 0)
        E = self.X - (x[:, None] @ self.basis)[:, 0]
        slope = (self.basis @ E[:, :, None])[:, :, 0] - self.l1[self.index]
        if self.curvature is not None:
            slope -= self.curvature[self.index] * x
        worst = torch.where(self.used, slope.abs(), 0).amax(1) / reference
        status = torch.where(status == CAPPED, CAPPED, SOLVED).int()
        return NnlsInfo(status, worst, self.used.sum(1).int(), steps.int())
