"""Active sets of many rows at the same time, in plain torch, padded to the largest."""

from __future__ import annotations

import torch
from torch import Tensor

from .result import BLOCK, CAPPED, FLOORED, SOLVED, NnlsInfo
from .supports import Support, first_true, gather_gram, padded_support, towards

# refinements of a minimiser, at most
_REFINEMENTS = 3


class ActiveSets:
    """Rows that are solved at the same time, each by itself: x and c (r, K), G (K, K), or
    (r, K, K) for each row its own, of unit concepts, all float64.

    passive (r, K): the supports. added (r, K): what counts as added to the diagonal of G, for
    concepts that entered although they depend on the others. alive (K,) or (r, K): concepts that
    may be used.
    """

    def __init__(
        self, c: Tensor, G: Tensor, alive: Tensor, tolerance: float, rank_tolerance: float
    ) -> None:
        self.c, self.G, self.alive = c, G, alive.expand_as(c)
        # what is gathered for padding is zero
        self._padded = torch.nn.functional.pad(G, (0, 1, 0, 1)) if G.dim() == 2 else None
        self.tolerance, self.rank_tolerance = tolerance, rank_tolerance
        self.x = torch.zeros_like(c)
        self.passive, self.refused = (torch.zeros_like(c, dtype=torch.bool) for _ in range(2))
        self.added = torch.zeros_like(c)
        self.block = torch.full_like(c[:, 0], BLOCK, dtype=torch.long)
        self.steps = torch.zeros_like(self.block)

    def start_(self, x: Tensor) -> None:
        """Take the support of x (r, K) ≥ 0, unless too many of its concepts would have to leave."""
        given = (x > 0) & self.alive
        rows, look = torch.arange(len(x), device=x.device), 2 * BLOCK
        candidates = first_true(given, given.shape[1])
        for first in range(0, int(given.sum(1).max()), BLOCK):
            part = candidates[rows, first : first + BLOCK]
            self._enter_(rows, part, torch.zeros_like(rows, dtype=torch.bool))
            self.x[rows] = torch.where(self.passive[rows], x[rows], 0)
            last = first + BLOCK >= given[rows].sum(1)
            size = self.passive[rows].sum(1)
            looks = rows[last | (size >= look)]
            look *= 1 if not len(looks) else 2
            if len(looks):
                support = self._support(looks)
                wrong = (support.used & ~(self._minimiser(support) > 0)).sum(1)
                dropped = looks[wrong > self.passive[looks].sum(1) // 4 + 4]
                self.passive[dropped] = False
                self.x[dropped] = 0
                kept = torch.isin(rows, dropped, invert=True)
                rows, last = rows[kept], last[kept]
            rows = rows[~last]
        self._descend_(torch.arange(len(x), device=x.device))

    def solve_(self, max_steps: int) -> NnlsInfo:
        """Let concepts enter at most max_steps times, and leave, until no slope is above the
        tolerance."""
        rows, capped = torch.arange(len(self.x), device=self.x.device), torch.zeros_like(self.steps)
        refinements = torch.zeros_like(self.steps)
        while len(rows):
            slope = self._slope(rows)
            slack = torch.where(self.passive[rows], slope.abs(), 0).amax(1)
            closed = self.passive[rows] | self.refused[rows] | ~self.alive[rows]
            slope.masked_fill_(closed, -1)
            enters = slope.amax(1) > self.tolerance
            refines = ~enters & (slack > self.tolerance / 2) & (refinements[rows] < _REFINEMENTS)
            refinements[rows[refines]] += 1
            self._descend_(rows[refines])
            capped[rows[enters & (self.steps[rows] >= max_steps)]] = 1
            enters &= self.steps[rows] < max_steps
            self._step_(rows[enters], slope[enters])
            rows = rows[enters | refines]
        return self._info(capped > 0)

    def _step_(self, rows: Tensor, slope: Tensor) -> None:
        """Some of the steepest concepts enter, and those that stop x leave. One that enters alone
        without gain is refused until there is a gain."""
        if not len(rows):
            return
        before = self._gain(rows)
        candidates = self._choose(slope, self.block[rows])
        alone = (candidates >= 0).sum(1) == 1
        self.steps[rows] += 1
        come, gone = self._exchange_(rows, candidates, alone)
        gains = self._gain(rows) > before * (1 + 1e-15)
        block = self.block[rows]
        halved, doubled = (block + 1) // 2, (2 * block).clamp(max=BLOCK)
        after = torch.where(gone <= come // 4, doubled, block)
        after = torch.where(gone > come // 2, halved, after)
        self.block[rows] = torch.where(gains, after, 1)
        self.refused[rows] &= ~gains[:, None]
        useless = ~gains & alone
        self.refused[rows[useless], candidates[useless, 0]] = True

    def _choose(self, slope: Tensor, most: Tensor) -> Tensor:
        """At most `most` (r,) of the steepest concepts, none less than half as steep as the first,
        (r, BLOCK), −1 behind the last."""
        high = slope.amax(1)
        low = torch.where(most == 1, high, high / 2).clamp(min=self.tolerance)
        halves = (most > 1) & ((slope >= low[:, None]).sum(1) > most)
        # six halvings are precise enough
        for _ in range(6):
            middle = (low + high) / 2
            found = (slope >= middle[:, None]).sum(1)
            low = torch.where(halves & (found >= most), middle, low)
            high = torch.where(halves & (found < most), middle, high)
            halves &= (found < most) | (found > most + most // 4)
        chosen = slope >= low[:, None]
        return first_true(chosen & (chosen.cumsum(1) <= most[:, None]), BLOCK)

    def _exchange_(self, rows: Tensor, candidates: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates (r, s), −1 behind the last, enter, and those that stop x leave; how many
        entered and left, (r,) each."""
        real = candidates >= 0
        come, candidates = real.sum(1), candidates.clamp(min=0)
        support, place = self._joined(rows, candidates, real)
        factor, info = torch.linalg.cholesky_ex(support.with_added())
        # squared distances of the candidates to the span of those before them
        distance = factor.diagonal(dim1=1, dim2=2).gather(1, place).square()
        near = self.rank_tolerance * self._diagonal(rows).gather(1, candidates)
        depends = (info > 0) | (real & ~(distance > near)).any(1)
        candidates = torch.where(real, candidates, -1)
        if not depends.any():
            self._pass_(rows, candidates)
            return come, self._descend_(rows, support, factor)
        gone, plain = torch.zeros_like(come), (~depends).nonzero()[:, 0]
        self._pass_(rows[plain], candidates[plain])
        gone[plain] = self._descend_(rows[plain], support[plain], factor[plain])
        some = rows[depends]
        come[depends] = self._enter_(some, candidates[depends], alone[depends])
        gone[depends] = self._descend_(some)
        return come, gone

    def _pass_(self, rows: Tensor, candidates: Tensor) -> None:
        """The candidates are in the supports."""
        row, place = (candidates >= 0).nonzero(as_tuple=True)
        self.passive[rows[row], candidates[row, place]] = True

    def _enter_(self, rows: Tensor, candidates: Tensor, alone: Tensor) -> Tensor:
        """Add the candidates (r, s), −1 behind the last, to the supports; the number added (r,).

        One that depends on the support is left out, unless it enters alone: then its squared
        distance counts as rank_tolerance.
        """
        support = self._support(rows)
        index, used = support.index, support.used
        factor = self._factor(support)
        real, candidates = candidates >= 0, candidates.clamp(min=0)
        mixed = self._products(rows, index, candidates) * used[:, :, None]
        mixed = torch.linalg.solve_triangular(factor, mixed, upper=False)
        apart = self._products(rows, candidates, candidates) - mixed.mT @ mixed
        diagonal = self._diagonal(rows)
        count = torch.zeros_like(rows)
        for t in range(candidates.shape[1]):
            k, distance = candidates[:, t], apart[:, t, t]
            near = self.rank_tolerance * diagonal.gather(1, k[:, None])[:, 0]
            depends = ~(distance > near)
            enters = real[:, t] & (~depends | alone)
            self.added[rows, k] = torch.where(enters & depends, near - distance, 0)
            distance = torch.where(depends, near, distance)
            outer = apart[:, :, t, None] * apart[:, t, None, :] / distance[:, None, None]
            apart = torch.where(enters[:, None, None], apart - outer, apart)
            self.passive[rows[enters], k[enters]] = True
            count += enters
        return count

    def _descend_(
        self, rows: Tensor, support: Support | None = None, factor: Tensor | None = None
    ) -> Tensor:
        """Move x towards the minimiser on the support as far as x ≥ 0 allows; the concept that
        stops it leaves; until x is the minimiser. The number that left (r,). support, factor: the
        supports with their Cholesky factor, where these are known."""
        left = torch.zeros_like(self.steps)
        support = self._support(rows) if support is None else support
        going = torch.arange(len(rows), device=rows.device)
        while len(going):
            some = support if len(going) == len(rows) else support[going]
            s, factor = self._minimiser(some, factor), None
            moved, arrived, stops = towards(some.x, s, some.used)
            support.x[going] = moved
            going, stops = going[~arrived], stops[~arrived]
            support.leave_(going, stops)
            left[rows[going]] += 1
        self._take_(rows, support)
        return left[rows]

    def _take_(self, rows: Tensor, support: Support) -> None:
        """The support of these rows, and x on it, are those of `support`."""
        index, real = support.index, support.real
        self.x[rows] = torch.zeros_like(self.x[rows]).scatter_add_(
            1, index, torch.where(support.used, support.x, 0)
        )
        gone = real & ~support.used
        row, place = gone.nonzero(as_tuple=True)
        self.passive[rows[row], index[row, place]] = False
        self.added[rows[row], index[row, place]] = 0

    def _joined(self, rows: Tensor, candidates: Tensor, real: Tensor) -> tuple[Support, Tensor]:
        """The supports of these rows with the candidates (r, s) that are real behind them, and
        their places (r, s)."""
        passive = self.passive[rows]
        first, more = passive.sum(1, keepdim=True), real.sum(1, keepdim=True)
        q = max(1, int((first + more).max()))
        index, _ = padded_support(passive, q)
        place = torch.arange(real.shape[1], device=rows.device) + first
        # a place behind all others takes what is not real
        place = torch.where(real, place, q)
        index = torch.nn.functional.pad(index, (0, 1)).scatter_(1, place, candidates)[:, :q]
        used = torch.arange(q, device=rows.device) < first + more
        return self._gathered(rows, index, used), place.clamp(max=q - 1)

    def _support(self, rows: Tensor) -> Support:
        """The supports of these rows."""
        return self._gathered(rows, *padded_support(self.passive[rows]))

    def _gathered(self, rows: Tensor, index: Tensor, used: Tensor) -> Support:
        if self._padded is None:
            gram = gather_gram(self.G, rows, index, used)
        else:
            place = torch.where(used, index, len(self.G))
            gram = self._padded[place[:, :, None], place[:, None]]
            gram.diagonal(dim1=1, dim2=2).add_(~used)
        parts = (M[rows].gather(1, index) * used for M in (self.x, self.c, self.added))
        return Support(index, used, used.clone(), gram, *parts)

    def _minimiser(self, support: Support, factor: Tensor | None = None) -> Tensor:
        """The minimiser on the support of each row (r, q), by a step from x, which refines it."""
        x, used = support.x, support.used
        slope = support.c - (support.gram @ x[:, :, None])[:, :, 0]
        slope = torch.where(used, slope, 0)[:, :, None]
        factor = self._factor(support) if factor is None else factor
        change = torch.cholesky_solve(slope, factor)[:, :, 0]
        return x + torch.where(used, change, 0)

    def _factor(self, support: Support) -> Tensor:
        """The Cholesky factor of the Gram matrix on each support (r, q, q), the identity where it
        is padded."""
        gram = support.with_added()
        factor, info = torch.linalg.cholesky_ex(gram)
        # concepts are independent when they enter, but for rounding
        damping, left = self.rank_tolerance, info > 0
        while left.any() and damping < 1:
            damped = gram[left] + damping * torch.diag_embed(torch.ones_like(gram[0, 0]))
            factor[left], info[left] = torch.linalg.cholesky_ex(damped)
            damping, left = 10 * damping, info > 0
        return factor

    def _products(self, rows: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Products (r, a, b) of the concepts i (r, a) and j (r, b) of each row."""
        if self.G.dim() == 2:
            return self.G[i[:, :, None], j[:, None]]
        return self.G[rows[:, None, None], i[:, :, None], j[:, None]]

    def _diagonal(self, rows: Tensor) -> Tensor:
        if self.G.dim() == 2:
            return self.G.diagonal().expand(len(rows), -1)
        return self.G.diagonal(dim1=1, dim2=2)[rows]

    def _slope(self, rows: Tensor) -> Tensor:
        return self.c[rows] - self._times(rows)

    def _times(self, rows: Tensor) -> Tensor:
        """G x (r, K)."""
        x = self.x[rows]
        return x @ self.G if self.G.dim() == 2 else (x[:, None] @ self.G[rows])[:, 0]

    def _gain(self, rows: Tensor) -> Tensor:
        """Twice the gain of x over zero."""
        return (self.c[rows] * self.x[rows]).sum(1)

    def _info(self, capped: Tensor) -> NnlsInfo:
        slope = self._slope(torch.arange(len(self.c), device=self.c.device))
        worst = torch.where(self.passive, slope.abs(), slope.clamp(min=0) * self.alive).amax(1)
        kkt = torch.where(worst == 0, 0, worst / self.c.amax(1).clamp(min=1e-300))
        strange = ~(worst.isfinite() & self.c.isfinite().all(1))
        status = torch.where(strange | (worst > self.tolerance), FLOORED, SOLVED)
        status = torch.where(capped, CAPPED, status).int()
        kkt = kkt.masked_fill(strange, torch.inf)
        return NnlsInfo(status, kkt, self.passive.sum(1).int(), self.steps.int())
