"""Exact non-negative least squares of rows for a given dictionary, chunk by chunk: a search, a
measure of what it found, and again by slower means where that is not exact."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..backends.nnls.residual import Measure, Terms, solve_by_residual
from ..backends.nnls.result import (
    CAPPED,
    FLOORED,
    SOLVED,
    TOLERANCE,
    UNSOLVED,
    NnlsInfo,
)
from ..backends.nnls.scaled import ScaledRows
from ..data.storage import row_blocks
from ..planning.memory import CHUNK_BYTES
from ..precision import products_in
from ..solvers.half_step import Operations
from ..solvers.penalties import NO_PENALTY, Penalty
from ..solvers.supports.pursuit import largest_support, pursue_, support_kkt
from ..solvers.supports.working_set import prepare_concepts, rows_together
from .rows import EXACT, ExactRows
from .sweeps import SETTLED, Swept

# entries of the largest scratch array on a CPU; each chunk of rows scales the Gram matrix again
_SCRATCH = 1 << 24
# of the squared norm of a concept: ridges that bound codes which float32 cannot hold
_RIDGES = (1e-14, 1e-12, 1e-10, 1e-8)
# the ridge with which rows that were not solved are searched again
_BOUND = 1e-10
# KKT residual, and share of ‖a‖² by which the objective may be too large, of float64 codes above
# which a row is solved again, by its residual
_EXACT, _GAP = 1e-11, 1e-10
# the same share, by which rounding the codes to their dtype may raise the objective
_RISE = {torch.float32: 1e-5, torch.float64: 1e-9}
# solvers of groups of rows that are kept for the next tile, at most
_KEPT = 4
# sweeps of a row at most: those that take longer than the solver are given up before
_SWEEPS = 300
# the largest norm of a concept over the smallest, up to which the KKT residual of swept codes, in
# which small concepts count for little, bounds the slopes of all
_ALIKE = 16.0


@dataclass(frozen=True)
class Limits:
    """How many times concepts may enter the support of a row, and how many it may have; or None."""

    max_iter: int | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class LeastSquares:
    """Solves min ½‖a − z D‖² + l1 Σ z + ½ l2 ‖z‖² over z ≥ 0 for rows a, n of them in all calls,
    of any signs and any scale.

    D (K, d), of any signs. ops: operations of solver anls. penalty: of numbers. measures: whether
    KKT residuals must be those of A and D. backend: what supplies the operations, with those of
    solver hals, so that rows may be swept first; None: they are not.
    """

    D: Tensor
    n: int
    ops: Operations
    penalty: Penalty = NO_PENALTY
    limits: Limits = Limits()
    measures: bool = False
    backend: str | None = None
    _solvers: dict[tuple, ExactRows] = field(default_factory=dict)

    @property
    def tile_rows(self) -> int:
        """Rows that are solved together; on a CPU no more than a chunk of data that are read in
        passes has, so that these have the same codes."""
        K, d = self.D.shape
        if self.D.device.type == "cpu":
            return max(1, min(_SCRATCH // max(K, d, 1), CHUNK_BYTES // (8 * (4 * d + 7 * K))))
        return rows_together(max(1, K), d, self.D)

    @torch.no_grad()
    def __call__(
        self, A: Tensor, Z0: Tensor | None = None, first: int = 0
    ) -> tuple[Tensor, NnlsInfo]:
        """Z (m, K) and its info for A (m, d) on D's device, from Z0 (m, K) or from zero. first: the
        number of the first row, for messages. Raises ArithmeticError for codes out of range."""
        if not len(self.D):
            return A.new_empty(len(A), 0), NnlsInfo.of_none(len(A), A.device)
        dtype = torch.promote_types(A.dtype, self.D.dtype)
        Z, infos = self.D.new_empty(len(A), len(self.D), dtype=dtype), []
        # exact whatever torch allows
        with products_in("highest"):
            for tile in row_blocks(len(A), self.tile_rows):
                start = None if Z0 is None else Z0[tile]
                Z[tile], info = self._tile(A[tile], start, first + tile.start)
                infos.append(info)
        return Z, NnlsInfo.join(infos)

    def _tile(self, A: Tensor, Z0: Tensor | None, first: int) -> tuple[Tensor, NnlsInfo]:
        rows = ScaledRows.of(A, self.D, Terms(self.penalty.l1, self.penalty.l2))
        start = None if Z0 is None else rows.scaled(Z0)
        solved = [
            (which, *self._solve(some, None if start is None else start[which]))
            for which, some in rows.groups()
        ]
        Z, info = solved[0][1:]
        if len(solved) > 1:
            back = torch.cat([which.nonzero()[:, 0] for which, _, _ in solved]).argsort()
            Z = torch.cat([one for _, one, _ in solved])[back]
            info = NnlsInfo.join([one for _, _, one in solved])[back]
        return rows.unscaled(Z, first), info

    def _solve(self, rows: ScaledRows, start: Tensor | None) -> tuple[Tensor, NnlsInfo]:
        """The codes (m, K) of the scaled problem, and their info."""
        top_k = self.limits.top_k
        if top_k is not None and top_k < largest_support(rows.D, self.penalty):
            return self._pursue(rows, top_k)
        if rows.A.dtype != rows.dtype or bool(rows.D.amin() < 0):
            return self._exactly(rows, start, self.limits.max_iter)
        return self._closely(rows, start)

    def _pursue(self, rows: ScaledRows, top_k: int) -> tuple[Tensor, NnlsInfo]:
        """The codes with at most top_k concepts for each row: the KKT residual of their info is
        that of the problem on the support. In float64 where D has negative entries."""
        A, D = rows.A, rows.D
        if bool(D.amin() < 0):
            A, D = A.double(), D.double()
        norms, penalty = _lengths(rows), _penalty(rows)
        concepts = prepare_concepts((D / norms[:, None]).to(D.dtype), 0, penalty)
        Z = A.new_zeros(len(A), len(D))
        info = pursue_(Z.T, A, concepts, top_k, self.ops, self.limits.max_iter)
        Z = (Z / norms).to(rows.dtype)
        # what the search reports is from the residual in float64 too, before codes are rounded
        kkt = support_kkt(rows.A, rows.D, Z, penalty) if self.measures else info.kkt
        status = torch.where(kkt <= UNSOLVED[rows.dtype], SOLVED, FLOORED)
        status = torch.where(info.status == CAPPED, CAPPED, status).int()
        return Z, replace(info, status=status, kkt=kkt, support=(Z > 0).sum(1).int())

    def _closely(self, rows: ScaledRows, start: Tensor | None) -> tuple[Tensor, NnlsInfo]:
        """The codes where D ≥ 0, by a search in the dtype of A and D; rows that it did not solve
        are solved _exactly."""
        max_iter, solved = self.limits.max_iter, UNSOLVED[rows.dtype]
        may_sweep = self.backend is not None and start is None and max_iter is None
        found = self._swept(rows, self.backend) if self.backend and may_sweep else None
        Z, info = found or self._search(rows, start, max_iter)
        left = (info.kkt > solved) | rows.cancels()
        if max_iter is not None:
            left &= info.status != CAPPED
        if left.any():
            again, info_again = self._exactly(rows[left], None, None)
            Z[left] = again
            for name in ("status", "kkt", "support"):
                getattr(info, name)[left] = getattr(info_again, name)
        if self.measures:
            info = replace(info, kkt=rows.measure(Z).kkt)
        # what is left above the tolerance of the search is rounding
        status = torch.where(info.kkt <= solved, SOLVED, FLOORED)
        status = torch.where(info.status == SOLVED, status, info.status)
        rounded = (info.status == FLOORED) & (info.kkt <= solved) & ~left
        return Z, replace(info, status=torch.where(rounded, SOLVED, status).int())

    def _search(
        self, rows: ScaledRows, start: Tensor | None, max_iter: int | None, ridge: float = 0.0
    ) -> tuple[Tensor, NnlsInfo]:
        """The codes in the dtype of A and D, and the info of the search. ridge: what is added to
        the diagonal of the Gram matrix of unit concepts."""
        A, D, norms = rows.A, rows.D, _lengths(rows)
        Z = A.new_zeros(len(A), len(D))
        if start is not None:
            # a zero concept would keep the value it starts from
            Z = torch.where(D.any(1), start * norms, 0).to(D.dtype)
        solver = self._rows(rows, norms, ridge, max_iter)
        info = solver.solve_(Z, A, warm=start is not None)
        Z /= norms
        return Z, info

    def _swept(self, rows: ScaledRows, backend: str) -> tuple[Tensor, NnlsInfo] | None:
        """As _search from no start, by sweeps, and by the solver for rows that do not converge;
        None where these take longer, or do not show that codes are exact."""
        A, D = rows.A, rows.D
        swept = Swept(D, self.n, self.ops, backend)
        sweeps = swept.most(len(A), _SWEEPS, started=False)
        if not sweeps or rows.signed:
            return None
        key = D.dtype, rows.terms
        solver = self._solvers.get(key) or ExactRows(D, self.n, self.ops, _penalty(rows))
        if solver.G is None or not solver.spread <= _ALIKE:
            return None
        if len(self._solvers) < _KEPT:
            self._solvers[key] = solver
        Z, C = D.new_empty(len(A), len(D)), solver.cross(A)
        solver.start_(Z, C)
        left = swept.sweep_(Z, C, solver, sweeps)[0]
        info = NnlsInfo.of_none(len(A), A.device)
        info.kkt.fill_(SETTLED[Z.dtype])
        if len(left):
            some, c = Z[left], C[left]
            # given c, the rows themselves are not read
            found = solver.solve_(some, None, c, warm=True)
            Z[left], kkt = some, solver.kkt_and_active(some, c)[0].double()
            # what is not exact is solved again
            info.kkt[left] = torch.where(kkt <= EXACT[Z.dtype], kkt, torch.inf)
            info.status[left], info.iterations[left] = found.status, found.iterations
        return Z, replace(info, support=(Z > 0).sum(1).int())

    def _rows(
        self, rows: ScaledRows, norms: Tensor, ridge: float, max_iter: int | None
    ) -> ExactRows:
        """The solver of most rows of a tile, which is kept for the next one, or of a few."""
        key = rows.D.dtype, rows.terms, max_iter, ridge
        if key in self._solvers:
            return self._solvers[key]
        most = 2 * len(rows.A) >= min(self.n, self.tile_rows)
        unit = (rows.D / norms[:, None]).to(rows.D.dtype)
        n, penalty = self.n if most else len(rows.A), _penalty(rows, ridge)
        found = ExactRows(unit, n, self.ops, penalty, max_steps=max_iter)
        if most and len(self._solvers) < _KEPT:
            self._solvers[key] = found
        return found

    def _exactly(
        self, rows: ScaledRows, start: Tensor | None, max_iter: int | None
    ) -> tuple[Tensor, NnlsInfo]:
        """The codes by a search in float64, and their info, measured from A and D. Rows that
        the search left unsolved are solved by their residual, unless they reached max_iter: these
        become zero where zero codes are better."""
        dtype, wide = rows.dtype, replace(rows, A=rows.A.double(), D=rows.D.double())
        Z, info = self._search(wide, start, max_iter)
        found = wide.measure(Z)
        capped = (info.status == CAPPED) & (max_iter is not None)
        again = (found.kkt > _EXACT) | (found.excess > _GAP) | (found.change > 0)
        if again.any():
            Z[capped & (found.change > 0)] = 0
            worse = again & ~capped
            if worse.any():
                # a ridge bounds the codes, so that their support is a good start
                near = self._search(wide[worse], None, None, _BOUND)[0]
                better = wide[worse].measure(near).change < found.change[worse]
                Z[worse] = torch.where(better[:, None], near, Z[worse])
                _solve_rows_(Z, worse, wide)
            found.replace_(again, wide[again].measure(Z[again]))
            _solve_from_zero_(Z, (found.excess > _GAP) & worse, wide, found)
        least, unsure = found.change.clone(), found.excess > _RISE[dtype]
        if dtype != torch.float64:
            Z, found = _rounded(Z, wide, dtype, least)
        floored = unsure | (found.kkt > UNSOLVED[dtype]) | (found.change - least > _RISE[dtype])
        status = torch.where(capped, CAPPED, torch.where(floored, FLOORED, SOLVED)).int()
        return Z, NnlsInfo(status, found.kkt, (Z > 0).sum(1).int(), info.iterations)


def _solve_from_zero_(Z: Tensor, which: Tensor, rows: ScaledRows, found: Measure) -> None:
    """Z_i and its Measure ← those of the codes by its residual from zero, where these are better,
    for the rows that are true (n,)."""
    if not which.any():
        return
    some, codes = rows[which], torch.zeros_like(Z[which])
    _solve_rows_(codes, torch.ones_like(which[which]), some)
    other = some.measure(codes)
    better = other.change < found.change[which]
    place = which.nonzero()[:, 0][better]
    Z[place] = codes[better]
    found.replace_(place, Measure(*(one[better] for one in other)))


def _rounded(
    Z: Tensor, rows: ScaledRows, dtype: torch.dtype, least: Tensor
) -> tuple[Tensor, Measure]:
    """Z (n, K) in dtype and its Measure. Rows whose codes are too large to be rounded get smaller
    ones, by ridges, where these are better; zero codes at worst. least (n,): the change of Z."""
    Z = Z.to(dtype)
    found = rows.measure(Z)
    worse = (found.change - least > _RISE[dtype] / 10) | (found.change > 0)
    if worse.any():
        some, best, codes = rows[worse], found.change[worse], Z[worse]
        everyone = torch.ones_like(best, dtype=torch.bool)
        for ridge in _RIDGES:
            other = codes.clone()
            _solve_rows_(other, everyone, some, ridge)
            change = some.measure(other).change
            codes[change < best] = other[change < best]
            best = torch.minimum(best, change)
        codes[best > 0] = 0
        Z[worse] = codes
        found.replace_(worse, some.measure(codes))
    return Z, found


def _solve_rows_(Z: Tensor, which: Tensor, rows: ScaledRows, ridge: float = 0.0) -> None:
    """Z_i ← the codes of A_i by its residual, from Z_i, for the rows that are true (n,)."""
    if not which.any():
        return
    A, D, tolerance = rows.A.cpu(), rows.D.cpu(), TOLERANCE[torch.float64]
    for i in which.nonzero()[:, 0].tolist():
        start = Z[i].double().cpu()
        Z[i] = solve_by_residual(A[i], D, tolerance, ridge, start, rows.terms).to(Z)


def _lengths(rows: ScaledRows) -> Tensor:
    """What concepts are divided by (K,) float64: their norms, as a concept is zero or it counts,
    however small it is relative to the others; 1 where a penalty tells their sizes apart."""
    norms = torch.linalg.vector_norm(rows.D, dim=1, dtype=torch.float64)
    return torch.where((norms > 0) & rows.terms.none, norms, 1)


def _penalty(rows: ScaledRows, ridge: float = 0.0) -> Penalty:
    """That of concepts divided by their _lengths, with a ridge relative to their squared norms."""
    l1, l2 = rows.terms
    if rows.terms.none or not ridge:
        return Penalty(l1, l2 + ridge)
    return Penalty(l1, l2 + ridge * rows.D.double().square().sum(1))
