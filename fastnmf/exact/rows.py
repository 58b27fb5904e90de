"""Exact codes for a fixed dictionary, each row by itself: active sets on the Gram matrix or on
working sets, and how far codes are from the optimum."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..backends.nnls.result import NnlsInfo, unit_gram
from ..backends.products import Matrix, dot, operand
from ..planning.hardware import Machine, machine_of
from ..planning.plan import Problem, choose
from ..precision import products_in
from ..solvers import anls
from ..solvers.half_step import Operations
from ..solvers.penalties import NO_PENALTY, Penalty
from ..solvers.supports.working_set import GRAM_BYTES, Search, prepare_concepts, working_set_

# KKT residual, as far as products in the dtype show it, up to which codes count as exact: that from
# A and D in float64 is then at most 1e-6 and 1e-11
EXACT = {torch.float32: 7e-7, torch.float64: 5e-12}
# concepts from which rows in flight are faster than the Gram matrix of all, on a CPU
_MANY = 1500


class ExactRows:
    """Solves min ½‖a − z D‖² + l1 Σ z + ½ l2 ‖z‖² over z ≥ 0 for rows a, n of them in all calls.

    D (K, d), of any signs. ops: operations of solver anls. form: 'normal', on the Gram matrix G of
    all concepts, or 'residual', on working sets; by default the one that is faster for n rows, and
    fits. max_steps: as for nnls_. signed: whether D, or rows, may have negative entries, for
    `start_` and `kkt`. In residual form G is None.
    """

    def __init__(
        self,
        D: Tensor,
        n: int,
        ops: Operations,
        penalty: Penalty = NO_PENALTY,
        *,
        form: str | None = None,
        max_steps: int | None = None,
        signed: bool = False,
    ) -> None:
        K, d = D.shape
        if form is None:
            fits = K * K * D.element_size() <= GRAM_BYTES
            # on a GPU the workspaces of a search on very many concepts would leave most of it idle
            on = machine_of(D, "cuda") if D.device.type == "cuda" else None
            form = _faster_form(n, d, K, D.element_size(), on) if fits else "residual"
            form = "residual" if in_flight(K, d, ops) else form
        self.D, self.penalty, self._ops, self._max_steps = D, penalty, ops, max_steps
        self.G, self._concepts, self.signed = None, None, signed
        with products_in("highest"):
            if form == "normal":
                self.G = penalty.gram(D @ D.T)
            else:
                self._concepts = prepare_concepts(D, n, penalty)

    @functools.cached_property
    def _unit(self) -> tuple[Tensor, Tensor]:
        assert self.G is not None
        return unit_gram(self.G)

    @functools.cached_property
    def spread(self) -> float:
        """The largest norm of a concept over the smallest, of those that are not zero."""
        scale = self._unit[1]
        alive = scale[scale > 0]
        return float(alive.max() / alive.min()) if len(alive) else 1.0

    def cross(self, X: Matrix) -> Tensor:
        """C (m, K) = X Dᵀ − l1 for X (m, d)."""
        if not isinstance(X, Tensor):
            C = dot(X, operand(X, self.D))
            return C.sub_(self.penalty.l1) if self.penalty.l1 else C
        C = X.new_empty(len(X), len(self.D))
        self._ops["cross_"](C, X, self.D, self.penalty.l1)
        return C

    def start_(self, Z: Tensor, C: Tensor) -> None:
        """Z ← cold_start of the rows of C (m, K), which `cross` returned, without the rows."""
        if self.signed:
            return self._start_of_signed_(Z, C)
        total = self.D.sum(0).square().sum().clamp(min=torch.finfo(C.dtype).tiny)
        scale = (C.sum(1) + len(self.D) * self.penalty.l1) / total
        torch.mul(scale[:, None], (self.D.amax(1) > 0).to(C.dtype), out=Z)

    def _start_of_signed_(self, Z: Tensor, C: Tensor) -> None:
        """Z ← codes of the concepts that alone would lower the error, with the best factor."""
        tiny = torch.finfo(C.dtype).tiny
        torch.div(C.clamp(min=0), self.G.diagonal().clamp(min=tiny), out=Z)
        norms = (Z @ self.G).mul_(Z).sum(1, keepdim=True)
        Z.mul_((Z * C).sum(1, keepdim=True) / norms.clamp(min=tiny))

    def solve_(
        self, Z: Tensor, X: Matrix | None, C: Tensor | None = None, *, warm: bool
    ) -> NnlsInfo:
        """Z ← the codes (m, K) of X (m, d), from Z if warm. C: as `cross` has it, in normal form;
        given it, X is not read."""
        sums = torch.zeros(4, dtype=torch.float64, device=Z.device)
        if self._concepts is not None:
            search = Search.of(self._ops, self._max_steps)
            return working_set_(Z.T, X.T, self._concepts, sums, search, warm=warm)
        C = self.cross(X) if C is None else C
        limits = {"warm": warm, "max_steps": self._max_steps, "unit": self._unit}
        return self._ops["nnls_"](Z.T, C.T, self.G, sums, **limits)

    def kkt(self, Z: Tensor, X: Tensor, C: Tensor | None = None) -> Tensor:
        """The KKT residual (m,) of the codes Z (m, K) of X (m, d), computed in their dtype; NaN
        where they are not finite. Where signs differ at least that, in residual form: relative to
        the sums, not to the sums of absolute values. 2 m K² flops in normal form, given C, else
        6 m K d; where signs differ 4 m K².
        """
        l1, l2 = self.penalty.l1, self.penalty.l2
        C = self.cross(X) if C is None else C
        if self.G is not None:
            return self.kkt_and_active(Z, C)[0]
        product = (Z @ self.D) @ self.D.T
        slope = torch.addmm(X, Z, self.D, alpha=-1) @ self.D.T
        slope = slope.sub_(l1).sub_(Z, alpha=l2) if self.penalty else slope
        if self.signed:
            # C is minus the slope l1
            scale = product.abs().add_((C + l1).abs()).amax(1) + l1
        else:
            scale = product.add_(C).amax(1) + 2 * l1
        return _relative(Z, slope, scale)

    def kkt_and_active(self, Z: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """`kkt` of the codes Z (m, K) in normal form, and the number of their active concepts, both
        (m,); C (m, K) as `cross` has it."""
        l1, l2 = self.penalty.l1, self.penalty.l2
        if self.signed:
            sizes = (Z @ self._sizes).sub_(Z, alpha=l2) if l2 else Z @ self._sizes
            scale = sizes.add_((C + l1).abs()).amax(1) + l1
            return _relative(Z, torch.addmm(C, Z, self.G, alpha=-1), scale), (Z > 0).sum(1)
        found = C.new_empty(2, len(C))
        self._ops["kkt_"](found, Z.T, C.T, self.G, (l1, l2))
        return found[0], found[1]

    def surely_exact(self, info: NnlsInfo) -> bool:
        """Whether it follows from the info of a search, in normal form, that the KKT residual of
        all its rows is at most EXACT. Synchronises."""
        # its slopes are those of concepts of norm 1, before the codes are rounded, which changes
        # the KKT residual by less than two roundings
        return float(info.kkt.max()) * self.spread <= EXACT[self.D.dtype] / 2

    @functools.cached_property
    def _sizes(self) -> Tensor:
        """|D Dᵀ| (K, K)."""
        return self.G.abs()


def _relative(Z: Tensor, slope: Tensor, scale: Tensor) -> Tensor:
    """The KKT residual (m,) of the codes Z (m, K): the largest of their slopes (m, K), or sizes of
    slopes where they are active, relative to scale (m,)."""
    worst = torch.where(Z > 0, slope.abs(), slope).amax(1).clamp(min=0)
    return torch.where(worst == 0, 0, worst / scale.clamp(min=torch.finfo(Z.dtype).tiny))


def in_flight(K: int, d: int, ops: Operations) -> bool:
    """Whether any number of rows is solved without G of K concepts with d features, and with one
    matrix of that size at most."""
    # as fast at K = 2,000, d = 384, and several times as fast at K = 10,000
    return "nnls_rows_" in ops and K > max(_MANY, 2 * d)


@functools.lru_cache(maxsize=64)
def _faster_form(n: int, d: int, K: int, itemsize: int, on: Machine | None) -> str:
    # kept, as it takes as long as the codes of ten rows
    return choose(Problem(n, d, K, itemsize, anls.SOLVER, learns=False), on).codes


def solve_again_(Z: Tensor, X: Tensor, rows: ExactRows, ops: Operations) -> Tensor:
    """Z ← the codes (r, K) of the few rows X (r, d) by a search in float64, from Z; and their KKT
    residual (r,)."""
    wide = ExactRows(rows.D.double(), len(X), ops, rows.penalty, signed=rows.signed)
    # what is not finite is no start
    start = Z.double().nan_to_num_(0, 0, 0)
    wide.solve_(start, X.double(), warm=True)
    Z.copy_(start)
    return wide.kkt(Z.double(), X.double())
