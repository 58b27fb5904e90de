"""Exact non-negative least squares from cross products and a Gram matrix, without the data and the
dictionary: the checks of the matrix, the solver, and how far codes are from the optimum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.nnls.result import (
    CAPPED,
    FLOORED,
    RANK_TOLERANCE,
    SOLVED,
    UNSOLVED,
    NnlsInfo,
)
from ..backends.nnls.scaled import unscaled_codes
from ..data.storage import row_blocks
from ..errors import InvalidInput
from ..numerics import exponents, times_power
from ..precision import products_in
from ..solvers.half_step import Operations
from ..solvers.penalties import NO_PENALTY, Penalty

# entries of the largest scratch array on a CPU
_SCRATCH = 1 << 24
# powers of two up to which norms are not scaled
_NEAR = 16
# multiple of K times the rounding of unit concepts by which an eigenvalue may be negative
_BELOW_ZERO = 16
# largest weight of l1 that has an effect on slopes of 1 at most
_MOST = 2.0**100
# the share of the gain of one concept up to which the rounding of a value is no matter
_KNOWN = 1e-3


@dataclass(frozen=True)
class _Rows:
    """Rows c (m, K) of scaled products, and the weight l1 of their codes, (m, K) or one for all,
    (1, 1)."""

    c: Tensor
    weight: Tensor

    def __getitem__(self, rows: Tensor) -> _Rows:
        one = self.weight.shape == (1, 1)
        return _Rows(self.c[rows], self.weight if one else self.weight[rows])


class _Found(NamedTuple):
    """The KKT residual of codes and their objective, less that of zero codes; (m,) float64."""

    kkt: Tensor
    value: Tensor


@torch.no_grad()
def checked_gram(G: Tensor) -> Tensor:
    """G (K, K) itself, or made exactly symmetric. Raises InvalidInput where it is no Gram matrix,
    but for rounding. K³ / 3 flops."""
    if not len(G):
        return G
    diagonal = G.diagonal()
    if bool((diagonal < 0).any()):
        k = int(diagonal.argmin())
        raise InvalidInput(
            f"G[{k}, {k}] is {float(diagonal[k]):g}; G must be a Gram matrix such as D @ D.T, "
            "whose diagonal has squared norms"
        )
    norms = diagonal.double().sqrt()
    scale = torch.where(norms > 0, 1 / torch.where(norms > 0, norms, 1), 0)
    unit = (G * scale[:, None] * scale).to(G.dtype)
    if not torch.equal(G, G.T):
        eps = torch.finfo(G.dtype).eps
        worst = (unit - unit.T).abs()
        if float(worst.max()) > eps**0.5:
            i, j = divmod(int(worst.argmax()), len(G))
            raise InvalidInput(
                f"G is not symmetric: G[{i}, {j}] is {float(G[i, j]):g}, G[{j}, {i}] "
                f"{float(G[j, i]):g}; it must be a Gram matrix such as D @ D.T"
            )
        # not (G + Gᵀ) / 2, which may overflow
        G, unit = G / 2 + G.T / 2, (unit + unit.T) / 2
    dead = norms == 0
    if bool(G[dead].any()):
        k = int((dead & G.any(1)).byte().argmax())
        raise InvalidInput(
            f"G[{k}, {k}] is 0, but row {k} of G is not; a concept of norm 0 has no products with "
            "others. Where squared norms vanish in rounding, scale D or give float64"
        )
    shift = _BELOW_ZERO * len(G) * torch.finfo(G.dtype).eps
    unit.diagonal().copy_(1 + shift)
    if int(torch.linalg.cholesky_ex(unit).info):
        raise InvalidInput(
            "G has a negative eigenvalue, beyond what rounding makes of 0; it must be a Gram "
            "matrix such as D @ D.T, with products in full precision (not in tf32 or 16 bits)"
        )
    return G


@dataclass(frozen=True)
class GramLeastSquares:
    """Solves min ½ z G zᵀ − c zᵀ + l1 Σ z + ½ l2 ‖z‖² over z ≥ 0 for rows c, at any scale.

    G (K, K): as checked_gram returns it. ops: operations of solver anls. penalty: of numbers.
    max_iter: as for nnls. measures: whether KKT residuals must be those of codes as they are
    returned.
    """

    G: Tensor
    ops: Operations
    penalty: Penalty = NO_PENALTY
    max_iter: int | None = None
    measures: bool = False

    @torch.no_grad()
    def __call__(self, C: Tensor) -> tuple[Tensor, NnlsInfo]:
        """Z (n, K) and its info for C (n, K), in the dtype of G. Raises ArithmeticError for codes
        out of range, and InvalidInput for rows without a minimum."""
        self._refuse_unbounded(C)
        Z, infos = torch.empty_like(C), []
        rows = max(1, _SCRATCH // len(self.G))
        with products_in("highest"):
            for tile in row_blocks(len(C), rows):
                Z[tile], info = self._tile(C[tile], tile.start)
                infos.append(info)
        return Z, NnlsInfo.join(infos)

    def _refuse_unbounded(self, C: Tensor) -> None:
        """Raise where a concept of norm 0 would lower the objective of a row without end."""
        if self.penalty.l2:
            return
        dead = self.G.diagonal() == 0
        falls = (C[:, dead] > self.penalty.l1).any(0)
        if bool(falls.any()):
            k = int(dead.nonzero()[:, 0][falls][0])
            raise InvalidInput(
                f"G[{k}, {k}] is 0, but column {k} of C is not: no codes are the best. A concept "
                "of norm 0 has products of 0; where its squared norm vanishes in rounding, scale D "
                "or give float64"
            )

    @cached_property
    def _powers(self) -> Tensor:
        """Powers of two (K,) by which concepts are scaled."""
        squares = self.G.diagonal().double() + self.penalty.l2
        powers = exponents(squares[:, None]) // 2
        return torch.where((powers.abs() <= _NEAR).all(), 0, powers)

    @cached_property
    def _plain(self) -> Tensor:
        """G of scaled concepts."""
        powers = self._powers
        if not powers.any():
            return self.G
        return times_power(self.G, -powers[:, None] - powers).to(self.G.dtype)

    @cached_property
    def _curvature(self) -> Tensor:
        """l2 of codes of scaled concepts (K,)."""
        weight = self._powers.new_tensor(self.penalty.l2, dtype=torch.float64)
        return times_power(weight, -2 * self._powers)

    @cached_property
    def _gram(self) -> Tensor:
        """What is added up of both."""
        if not self.penalty.l2:
            return self._plain
        G = self._plain.clone()
        G.diagonal().copy_(G.diagonal().double() + self._curvature)
        return G

    @cached_property
    def _sizes(self) -> Tensor:
        """How much slopes of scaled concepts count in the KKT residual (K,)."""
        powers = self._powers
        return times_power(torch.ones_like(powers), (powers - powers.max()).clamp(min=-1022))

    def _tile(self, C: Tensor, first: int) -> tuple[Tensor, NnlsInfo]:
        of_concepts, dtype = self._powers, self.G.dtype
        c = times_power(C, -of_concepts) if of_concepts.any() else C
        of_rows = exponents(c, 2 * _NEAR)
        if of_rows.any():
            c = times_power(c, -of_rows[:, None])
        c, weight = c.to(dtype), c.new_zeros(1, 1)
        if self.penalty.l1:
            weight = c.new_full((1, 1), self.penalty.l1, dtype=torch.float64)
            weight = times_power(weight, -of_rows[:, None] - of_concepts).clamp(max=_MOST)
        Z, info = self._solve(_Rows(c, weight))
        powers = of_rows, of_concepts
        if of_rows.any() or of_concepts.any():
            Z = unscaled_codes(Z, powers, ("G", "the rows of C", "D, hence C and G"), first)
        return Z, info

    def _solve(self, rows: _Rows) -> tuple[Tensor, NnlsInfo]:
        """The codes of the scaled problem, and their info."""
        dtype = self.G.dtype
        solved = UNSOLVED[dtype]
        Z, info = self._search(rows, self._gram)
        capped = (info.status == CAPPED) & (self.max_iter is not None)
        found = None
        # concepts of both signs may cancel, so that rounded codes are worse than zero
        if self.measures or bool(self.G.amin() < 0):
            found = self._measure(Z, rows)
        left = ~((info.kkt if found is None else found.kkt) <= solved) & ~capped
        if left.any():
            found = self._measure(Z, rows) if found is None else found
            self._again_(Z, found, left, rows)
        kkt, support = info.kkt, info.support
        if found is not None:
            worse = ~(found.value <= 0)
            Z[worse] = 0
            found.kkt[worse] = self._measure(Z[worse], rows[worse]).kkt
            kkt, support = found.kkt, (Z > 0).sum(1).int()
        status = torch.where(kkt <= solved, SOLVED, FLOORED)
        status = torch.where(capped, CAPPED, status).int()
        return Z, NnlsInfo(status, kkt, support, info.iterations)

    def _again_(self, Z: Tensor, found: _Found, left: Tensor, rows: _Rows) -> None:
        """Z and what is found of it ← those of a search in float64, or with a ridge that bounds the
        codes, where these are better, for the rows that are true (m,)."""
        some, place = _Rows(rows.c.double(), rows.weight)[left], left.nonzero()[:, 0]
        for ridge in (0.0, RANK_TOLERANCE[self.G.dtype]):
            G = self._plain.double()
            G = G + torch.diag(self._curvature + ridge * G.diagonal())
            other = self._search(some, G, limited=False)[0].to(Z.dtype)
            after = self._measure(other, some)
            better = (after.kkt < found.kkt[place]) & (after.value <= 0)
            Z[place[better]] = other[better]
            for own, new in zip(found, after, strict=True):
                own[place[better]] = new[better]

    def _search(self, rows: _Rows, G: Tensor, *, limited: bool = True) -> tuple[Tensor, NnlsInfo]:
        c = rows.c
        if self.penalty.l1:
            c = (c - rows.weight).to(c.dtype)
        Z, sums = torch.zeros_like(c), torch.zeros(3, dtype=torch.float64, device=c.device)
        most = self.max_iter if limited else None
        return Z, self.ops["nnls_"](Z.T, c.T, G, sums, warm=False, max_steps=most)

    def _measure(self, Z: Tensor, rows: _Rows) -> _Found:
        """What is found of codes Z (m, K) of the scaled problem, in float64; infinite where their
        terms cancel so much that nothing is known of them."""
        z, c, G = Z.double(), rows.c.double(), self._plain.double()
        finite = z.isfinite().all(1)
        z = torch.where(finite[:, None], z, 0)
        product = z @ G
        size = product if bool(G.amin() >= 0) else z @ G.abs()
        size = size + c.abs() + rows.weight
        curved = product + self._curvature * z
        slope = c - curved - rows.weight
        worst = (torch.where(z > 0, slope.abs(), slope.clamp(min=0)) * self._sizes).amax(1)
        scale = (size * self._sizes).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
        value = ((curved / 2 - c + rows.weight) * z).sum(1)
        kkt = torch.where(worst > 0, worst / scale, 0)
        # beside what the best concept alone would gain
        gain = (c * self._sizes).clamp(min=0).square().amax(1)
        rounding = torch.finfo(torch.float64).eps * (z * size).sum(1)
        known = finite & ((rounding <= _KNOWN * gain) | ~z.any(1))
        return _Found(*(torch.where(known, one, torch.inf) for one in (kkt, value)))
