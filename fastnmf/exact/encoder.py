"""Exact codes of any number of rows for a fixed dictionary, chunk by chunk, by the method that is
faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..backends.products import Matrix, dense, dense_rows, row_norms, take
from ..data.storage import row_blocks
from ..engine.codes import Ended, chunk_rows
from ..engine.state import Method
from ..init.start import cold_start
from ..numerics import widened
from ..precision import products_in
from ..solvers import hals
from ..waits import look
from .least_squares import LeastSquares
from .rows import EXACT, ExactRows, solve_again_
from .sweeps import Swept

# the sum of the norms of the terms of a row over its norm, from which they cancel: some 5 are usual
_CANCELS = 1e3
# KKT residual up to which a row is solved
_SOLVED = {torch.float32: 1e-6, torch.float64: 1e-9}


@dataclass(frozen=True)
class ExactEncoder:
    """argmin ½‖A − Z D‖² plus the penalty of Z over Z ≥ 0, exactly; of n rows in all calls.

    D (K, d) is as the method's constraint has it. method: with the operations of the solvers anls
    and hals, and the penalties. sweeps: whether rows may be swept first, max_iter times at most;
    those that do not converge are then solved exactly. done is called with the rows of every chunk,
    after it. max_iter = 0 returns the start.
    """

    D: Tensor
    n: int
    method: Method
    max_iter: int
    sweeps: bool = True
    done: Callable[[int], object] | None = None

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
                look()
                ended.append(self._encode_(Z[part], X, start))
                if self.done is not None:
                    self.done(len(X))
        return Z, ended

    @cached_property
    def _rows(self) -> ExactRows:
        penalty = self.method.penalties.of_codes(self.D.shape[1])
        signed, form = self.method.constraint.signed, self.method.tuning.form
        return ExactRows(self.D, self.n, self.method.ops, penalty, form=form, signed=signed)

    @cached_property
    def _swept(self) -> Swept:
        method = self.method
        return Swept(self.D, self.n, method.ops, method.backend, method.tuning.block)

    def _encode_(self, Z: Tensor, X: Matrix, start: Tensor | None) -> Ended:
        """Z ← the codes (m, K) of X (m, d)."""
        swept, by = 0, []
        if self.max_iter == 0:
            free = self.method.constraint.signed
            Z.copy_(start) if start is not None else cold_start(X, self.D, out=Z, free=free)
            return Ended(0, True)
        C, left = None if self._rows.G is None else self._rows.cross(X), None
        sweeps = 0
        if self.sweeps and C is not None:
            sweeps = self._swept.most(len(X), self.max_iter, started=start is not None)
        if start is not None:
            Z.copy_(start)
        elif sweeps:
            self._rows.start_(Z, C)
        else:
            Z.zero_()
        if sweeps and C is not None:
            left, swept = self._swept.sweep_(Z, C, self._rows, sweeps)
            by.append(hals.SOLVER.name)
        unsolved = 0
        if left is None or len(left):
            unsolved = self._solve_(Z, X, C, left, warm=bool(sweeps) or start is not None)
            by.append("exact")
            swept += 1
        return Ended(swept, unsolved == 0, tuple(by), unsolved)

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
        if self._rows.signed:
            self._solve_by_residual_(z, X if which is None else take(X, which), kkt)
        if which is not None:
            Z[which] = z
        return int((~(kkt <= _SOLVED[Z.dtype])).sum())

    def _solve_by_residual_(self, z: Tensor, X: Matrix, kkt: Tensor) -> None:
        """z and their KKT residuals kkt (r,) ← the codes of X (r, d) by least squares that watch
        the residual, for rows that are not solved, and for those whose terms z_k d_k cancel: slopes
        of these are rounding, which a search on Gram matrices may follow until no digit is
        right."""
        terms = z @ torch.linalg.vector_norm(self.D, dim=1)
        # NaN where codes are out of range
        few = (terms <= _CANCELS * row_norms(X, z.dtype)) & (kkt <= _SOLVED[z.dtype])
        found = (~few).nonzero()[:, 0]
        if not len(found):
            return
        given = self.method.ops, self._rows.penalty
        solver = LeastSquares(self.D, len(found), *given, measures=True)
        for some in found.split(dense_rows(self.D.shape[1], z.element_size())):
            z[some], info = solver(take(X, some))
            kkt[some] = info.kkt.to(kkt)
