"""The half-step of codes with at most k concepts a row: a pursuit, and what the row has had before,
whichever leaves the lower loss, so that the loss does not rise. The dictionary is another solver's.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...backends.nnls.supports import first_true
from ...numerics import add_squares_, keep_largest_, widened
from ..base import Size, Solver, Work
from ..constraints import FREE, NON_NEGATIVE
from ..half_step import Compute, FixedFactor, HalfStepData, ResidualData
from ..penalties import Penalty
from .pursuit import pursue_
from .working_set import Concepts, on_sets_, prepare_concepts

NAME = "pursuit"
# exchanges of a row in codes for a fixed dictionary, and the relative fall of its loss that is
# worth another one
_EXCHANGES, _WORTH = 8, 1e-3


class _Rows(NamedTuple):
    """Rows X (m, p) of a tile, and what their codes are found with. c (m, K) = X Bᵀ. E (m, p):
    scratch for a residual. norms (K,): of the concepts."""

    X: Tensor
    c: Tensor
    E: Tensor
    norms: Tensor
    concepts: Concepts
    ops: dict

    @classmethod
    def of(cls, X: Tensor, concepts: Concepts, ops: dict, E: Tensor | None = None) -> _Rows:
        """Of rows X (m, p). E: scratch as large, if there is any."""
        norms = torch.where(concepts.scale > 0, 1 / concepts.scale, 0).to(X.dtype)
        E = torch.empty_like(X) if E is None else E
        return cls(X, X @ concepts.B.T, E, norms, concepts, ops)

    def losses(self, Z: Tensor) -> Tensor:
        """‖x − z B‖² of each row (m,), in float64; E ← X − Z B."""
        torch.addmm(self.X, Z, self.concepts.B, alpha=-1, out=self.E)
        return self.E.square().sum(1, dtype=torch.float64)

    def refit_(self, Z: Tensor, among: Tensor) -> Tensor:
        """Z ← the codes of least loss on the concepts that are true in `among` (m, K), in which
        those in use are. Returns Z."""
        index = first_true(among, max(1, int(among.sum(1).max()))).int()
        on_sets_(Z, self.c, self.concepts, index, self.ops)
        return Z

    def exchanged(self, Z: Tensor, most: int) -> Tensor:
        """Codes after an exchange: as many concepts as a row may have join those in use, the
        steepest ones, and of the solution on all of these the largest stay. E is the residual of Z.
        Source: Dai & Milenkovic (2009), subspace pursuit."""
        scale = self.concepts.scale.to(Z.dtype)
        slope = (self.E @ self.concepts.B.T).mul_(scale).masked_fill_(Z > 0, 0)
        steepest, k = slope.topk(min(most, Z.shape[1]), dim=1)
        among = (Z > 0).scatter_(1, k, (steepest > 0) | (Z.gather(1, k) > 0))
        found = keep_largest_(self.refit_(Z.clone(), among), self.norms, most)
        return self.refit_(found, found > 0)


def half_steps_(
    F: Tensor,
    data: HalfStepData,
    fixed: FixedFactor,
    compute: Compute,
    sums: Tensor,
    times: int,
    *,
    most: int,
) -> None:
    """F (K, m) ← codes of at most `most` concepts for each column, in place.

    Of each column the best of three: a pursuit from no concept; the solution on the concepts that
    it uses, if these are not too many; and an exchange of concepts from the better of both. So no
    column ends above the loss that it had with at most so many concepts.
    """
    assert isinstance(data, ResidualData)
    concepts = fixed.concepts
    assert concepts is not None
    X = widened(data.Xt.T).contiguous()
    rows = _Rows.of(X, concepts, compute.ops, data.Et.T)
    for _ in range(times):
        before, Z = F.clone(), torch.zeros_like(F.T, memory_format=torch.contiguous_format)
        pursue_(Z.T, X, concepts, most, compute.ops)
        loss = rows.losses(Z)
        # concepts of zeros have no use for codes
        kept = F.T.clone(memory_format=torch.contiguous_format).mul_(rows.norms > 0)
        kept.mul_(((kept > 0).sum(1) <= most)[:, None])
        loss = _take_lower_(Z, loss, rows.refit_(kept, kept > 0), rows)
        # the residual of what was taken
        rows.losses(Z)
        loss = _take_lower_(Z, loss, rows.exchanged(Z, most), rows)
        F.copy_(Z.T)
        add_squares_(sums, F - before, F)
        sums[2] += loss.sum()


def _take_lower_(Z: Tensor, loss: Tensor, found: Tensor, rows: _Rows) -> Tensor:
    """Z ← the codes found, in rows whose loss they lower; returns the losses (m,)."""
    after = rows.losses(found)
    lower = after < loss
    Z.copy_(torch.where(lower[:, None], found, Z))
    return torch.where(lower, after, loss)


def exchange_(Z: Tensor, X: Tensor, concepts: Concepts, most: int, ops: dict) -> None:
    """Z (m, K) ← codes of X (m, p) after exchanges of concepts, while they lower the loss of a row
    by a thousandth. Z: of a pursuit."""
    some = torch.arange(len(X), device=X.device)
    for _ in range(_EXCHANGES):
        if not len(some):
            return
        rows, codes = _Rows.of(X[some], concepts, ops), Z[some]
        loss = rows.losses(codes)
        after = _take_lower_(codes, loss, rows.exchanged(codes, most), rows)
        Z[some] = codes
        some = some[after < (1 - _WORTH) * loss]


def fix(
    form: str, B: Tensor | None, G: Tensor | None, m: int, penalty: Penalty, compute: Compute
) -> FixedFactor:
    """The fixed factor with the norms of its concepts. There is no penalty on the codes."""
    assert B is not None
    B = B.contiguous()
    return FixedFactor(B, concepts=prepare_concepts(B, 0))


def work(form: str, size: Size, times: int, *, most: int) -> Work:
    """The Work of half-steps: the slopes of all concepts for each that enters, the residuals, and
    small systems."""
    m, p, K, _ = size
    products = 2.0 * m * p * K * (most + 6)
    flops = times * (products + m * (2 * most) ** 2 * (p + most))
    # a step of a pursuit in plain torch takes 50 launches
    return Work(flops, flops, calls=(0, 0), fixed_calls=(times * 50 * (most + 2), 0))


@functools.lru_cache(maxsize=64)
def solver_of(most: int, learner: Solver) -> Solver:
    """The solver of codes with at most `most` concepts a row, beside which `learner` updates the
    dictionary."""
    return Solver(
        NAME,
        f"pursuit with at most {most} concepts a row",
        functools.partial(half_steps_, most=most),
        operations=learner.operations,
        fix=fix,
        work=functools.partial(work, most=most),
        workspace=lambda K, d, block: 6 * K + d,
        forms=("residual",),
        exact=True,
        needs_all_concepts=True,
        constraints=(NON_NEGATIVE, FREE),
        most=most,
        learns_by=learner,
    )
