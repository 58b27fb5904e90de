"""Exact codes of any number of rows for a fixed dictionary, chunk by chunk, by the method that is
faster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..backends.products import Matrix, dense, take
from ..data.storage import row_blocks
from ..engine.codes import Ended, chunk_rows
from ..engine.state import Callback, Iteration, Method
from ..init.start import cold_start
from ..numerics import widened
from ..planning.codes import SWEEPS, CodesCost
from ..planning.hardware import machine_of
from ..planning.plan import Problem, Tuning, choose
from ..precision import products_in
from ..solvers import hals
from ..solvers.half_step import Compute, Workspace
from .rows import EXACT, ExactRows, solve_again_
from .sweeps import Sweeps

# entries of codes that are swept together: with their products they are in the cache
_TILE = 1 << 20
# KKT residual up to which a row is solved
_SOLVED = {torch.float32: 1e-6, torch.float64: 1e-9}


@dataclass(frozen=True)
class ExactEncoder:
    """argmin ½‖A − Z D‖² plus the penalty of Z over Z ≥ 0, exactly; of n rows in all calls.

    D (K, d) is as the method's constraint has it. method: with the operations of the solvers anls
    and hals, and the penalties. sweeps: whether rows may be swept first, max_iter times at most;
    those that do not converge are then solved exactly. each is called after the sweeps, and after
    the exact solver, of every chunk. max_iter = 0 returns the start.
    """

    D: Tensor
    n: int
    method: Method
    max_iter: int
    sweeps: bool = True
    each: Callback | None = None

    @torch.no_grad()
    def __call__(self, A: Matrix, Z0: Tensor | None = None) -> tuple[Tensor, list[Ended]]:
        """Z (m, K) for A (m, d), of signs like D's, on D's device, in its dtype or in 16 bits, from
        Z0 (m, K) or from `cold_start`; and how each chunk ended."""
        Z, ended = self.D.new_empty(len(A), len(self.D)), []
        with torch.cuda.device_of(self.D), products_in("highest"):
            for part in row_blocks(len(A), chunk_rows(self.D, self.method)):
                start = None if Z0 is None else Z0[part]
                # working sets read the rows themselves
                X = widened(A[part]) if self._rows.G is not None else dense(A[part])
                ended.append(self._encode_(Z[part], X, start))
        return Z, ended

    @cached_property
    def _rows(self) -> ExactRows:
        penalty = self.method.penalties.of_codes(self.D.shape[1])
        signed, form = self.method.constraint.signed, self.method.tuning.form
        return ExactRows(self.D, self.n, self.method.ops, penalty, form=form, signed=signed)

    @cached_property
    def _cost(self) -> CodesCost:
        K, d = self.D.shape
        return CodesCost(d, K, self.D.element_size(), machine_of(self.D, self.method.backend))

    @cached_property
    def _compute(self) -> Compute:
        (K, d), D, on = self.D.shape, self.D, machine_of(self.D, self.method.backend)
        problem = Problem(self.n, d, K, D.element_size(), hals.SOLVER, learns=False)
        block = choose(problem, on, Tuning("normal", self.method.tuning.block)).block
        return Compute(self.method.ops, block, Workspace(D.dtype, D.device))

    def _encode_(self, Z: Tensor, X: Matrix, start: Tensor | None) -> Ended:
        """Z ← the codes (m, K) of X (m, d)."""
        begun, swept, by = time.perf_counter(), 0, []
        may_sweep = self.sweeps and self._rows.G is not None
        first = may_sweep and self._cost.sweeps_first(len(X))
        # a start of the caller's is likely to be as near
        sweeps = first or (may_sweep and start is None and self._cost.sweeps_start(len(X)))
        if self.max_iter == 0:
            free = self.method.constraint.signed
            Z.copy_(start) if start is not None else cold_start(X, self.D, out=Z, free=free)
            return Ended(0, True)
        C, left = None if self._rows.G is None else self._rows.cross(X), None
        if start is not None:
            Z.copy_(start)
        elif sweeps:
            self._rows.start_(Z, C)
        else:
            Z.zero_()
        if sweeps:
            left, swept = self._sweep_(Z, C, self.max_iter if first else min(SWEEPS, self.max_iter))
            by.append(hals.SOLVER.name)
            self._report(swept, begun)
        unsolved = 0
        if left is None or len(left):
            unsolved = self._solve_(Z, X, C, left, warm=sweeps or start is not None)
            by.append("exact")
            swept += 1
            self._report(swept, begun)
        return Ended(swept, unsolved == 0, tuple(by), unsolved)

    def _sweep_(self, Z: Tensor, C: Tensor, most: int) -> tuple[Tensor, int]:
        """Sweep over the codes Z (m, K), at most `most` times; the rows that have not converged,
        and the most sweeps."""
        tiles = list(row_blocks(len(Z), max(1, _TILE // len(self.D))))
        sweeps = Sweeps(self._rows, self._compute, self._cost)
        found = [sweeps.settle_(Z[part], C[part], most) for part in tiles]
        left = [rows + part.start for part, (rows, _) in zip(tiles, found, strict=True)]
        return torch.cat(left), max((done for _, done in found), default=0)

    def _solve_(
        self, Z: Tensor, X: Matrix, C: Tensor | None, which: Tensor | None, *, warm: bool
    ) -> int:
        """Z_i ← the exact codes of X_i for the rows `which` (r,), or all; how many have none."""
        # given C, the rows themselves are read only where it is too coarse
        z, x, c = Z, X if C is None else None, C
        if which is not None:
            z, x, c = Z[which], None if x is None else x[which], None if C is None else C[which]
        self._rows.solve_(z, x, c, warm=warm)
        kkt = self._rows.kkt(z, x, c)
        wrong = (~(kkt <= EXACT[Z.dtype])).nonzero()[:, 0]
        if len(wrong) and Z.dtype != torch.float64:
            # the products of float32 are too coarse there, or their Gram matrix is
            some = z[wrong]
            again = take(X, wrong if which is None else which[wrong])
            kkt[wrong] = solve_again_(some, again, self._rows, self.method.ops).to(kkt)
            z[wrong] = some
        if which is not None:
            Z[which] = z
        return int((~(kkt <= _SOLVED[Z.dtype])).sum())

    def _report(self, iterations: int, begun: float) -> None:
        if self.each is not None:
            seconds = time.perf_counter() - begun
            self.each(Iteration(iterations, float("nan"), float("nan"), seconds))
