"""Sweeps over codes for a fixed dictionary, in rounds after which rows that have converged, and
those for which an exact solver would be faster, are taken out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data.storage import row_blocks
from ..engine.acceleration import along, normal_line
from ..planning.codes import BETWEEN, START_SWEEPS, SWEEPS, CodesCost
from ..planning.hardware import machine_of
from ..planning.plan import Problem, Tuning, choose
from ..solvers import hals
from ..solvers.half_step import Compute, FixedFactor, NormalData, Operations, Workspace
from .rows import ExactRows

# KKT residual, as far as products in the dtype show it, up to which swept codes are exact
SETTLED = {torch.float32: 5e-7, torch.float64: 1e-12}
# entries of codes that are swept together: with their products they are in the cache
_TILE = 1 << 20
# that of a start, for the first forecast
_START = 0.1
# what a round leaves of it, in half the rows, from which line searches pay
_SLOW = 1e-2


@dataclass(frozen=True)
class Swept:
    """Rows that are swept before the exact solver takes those that did not converge, where that is
    faster: n of them in all calls.

    D (K, d). ops: operations of the solvers anls and hals. backend: what supplies them. block:
    concepts of a block of sweeps that the caller forces, or None.
    """

    D: Tensor
    n: int
    ops: Operations
    backend: str
    block: int | None = None

    def most(self, m: int, limit: int, *, started: bool) -> int:
        """How often m rows are swept at most, `limit` times or less; 0: not at all. started:
        whether the caller has a start, which is likely to be as near as a round of sweeps."""
        if self._cost.sweeps_first(m):
            return limit
        return min(START_SWEEPS, limit) if not started and self._cost.sweeps_start(m) else 0

    def sweep_(self, Z: Tensor, C: Tensor, rows: ExactRows, most: int) -> tuple[Tensor, int]:
        """Sweep over the codes Z (m, K), at most `most` times, with C (m, K) of rows.cross; the
        rows that have not converged, and the most sweeps."""
        tiles = list(row_blocks(len(Z), max(1, _TILE // len(self.D))))
        sweeps = Sweeps(rows, self._compute, self._cost)
        found = [sweeps.settle_(Z[part], C[part], most) for part in tiles]
        left = [which + part.start for part, (which, _) in zip(tiles, found, strict=True)]
        return torch.cat(left), max((done for _, done in found), default=0)

    @cached_property
    def _cost(self) -> CodesCost:
        K, d = self.D.shape
        return CodesCost(d, K, self.D.element_size(), machine_of(self.D, self.backend))

    @cached_property
    def _compute(self) -> Compute:
        (K, d), D, on = self.D.shape, self.D, machine_of(self.D, self.backend)
        problem = Problem(self.n, d, K, D.element_size(), hals.SOLVER, learns=False)
        block = choose(problem, on, Tuning("normal", self.block)).block
        return Compute(self.ops, block, Workspace(D.dtype, D.device))


@dataclass(frozen=True)
class Sweeps:
    """Sweeps of hals on codes in normal form."""

    rows: ExactRows
    compute: Compute
    cost: CodesCost

    def settle_(self, Z: Tensor, C: Tensor, most: int) -> tuple[Tensor, int]:
        """Sweep over the codes Z (m, K), at most `most` times, with C (m, K) of ExactRows.cross.
        Returns the rows (r,) that have not converged, and the sweeps done. Synchronises."""
        index = torch.arange(len(Z), device=Z.device)
        z, c, before = Z, C, torch.full_like(C[:, 0], _START)
        tolerance, done, left, slow = SETTLED[Z.dtype], 0, [], False
        while done < most and len(index):
            times = min(SWEEPS, most - done)
            self._round_(z, c, times, searches=slow)
            done += times
            kkt, active = self.rows.kkt_and_active(z, c)
            if z is not Z:
                Z.index_copy_(0, index, z)
            unsettled = ~(kkt <= tolerance)
            worth_it = self._worth_it(active, kkt, before)
            left.append(index[unsettled & ~worth_it])
            goes = (unsettled & worth_it).nonzero()[:, 0]
            index = index[goes]
            if len(index) * self.cost.exact_seconds(Z.shape[1] / 2) < self.cost.overhead:
                break
            # several times as fast as z[goes]
            z, c, kkt, before = (x.index_select(0, goes) for x in (z, c, kkt, before))
            slow, before = bool((kkt / before).median() > _SLOW), kkt
        return torch.cat((*left, index)), done

    def _worth_it(self, active: Tensor, kkt: Tensor, before: Tensor) -> Tensor:
        """Whether more sweeps are expected to take less time than the exact solver, for each row
        and its number of active concepts: each round multiplies its KKT residual by kkt / before.
        """
        rate = (kkt / before).log()
        rounds = torch.where(rate < 0, (SETTLED[kkt.dtype] / kkt).log() / rate, torch.inf)
        exact = self.cost.exact_seconds(active)
        return rounds.clamp(min=1) * self.cost.round_seconds < exact

    def _round_(self, Z: Tensor, C: Tensor, times: int, *, searches: bool) -> None:
        """Sweep `times` times, with line searches in between."""
        fixed = FixedFactor(self.rows.D, self.rows.G, l1=self.rows.penalty.l1)
        F, data = Z.T, NormalData(C.T)
        unread = torch.zeros(4, dtype=torch.float64, device=Z.device)
        line = normal_line(data.C, self.rows.G)
        while times > 0:
            some = min(times, BETWEEN) if searches else times
            before = F.clone() if searches else None
            hals.SOLVER.half_steps_(F, data, fixed, self.compute, unread, some)
            times -= some
            if before is not None and times > 0:
                F.copy_(along(F, before, line)[0])
