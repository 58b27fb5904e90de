"""Exact non-negative least squares by active sets, in plain torch: the reference.

Lawson & Hanson's method (1974) on the Gram matrix (Bro & de Jong, 1997), with several concepts that
enter at once, as in csrc/nnls/solver.h, for many columns at a time. It ends at any rank, so K > d
is safe."""

from __future__ import annotations

import torch
from torch import Tensor

from .result import (
    BLOCK,
    CAPPED,
    FLOORED,
    RANK_TOLERANCE,
    SOLVED,
    TOLERANCE,
    NnlsInfo,
    most_steps,
    unit_gram,
)

# entries of the largest scratch array
_SCRATCH = 1 << 22
# refinements of a minimiser, at most
_REFINEMENTS = 3


def nnls_(
    F: Tensor,
    C: Tensor,
    G: Tensor,
    sums: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
) -> NnlsInfo:
    """F ← argmin ½ tr(Fᵀ G F) − tr(Fᵀ C) over F ≥ 0, in place, each column separately.

    F, C (K, m); G (K, K). Computed in float64, to the precision that C and G have. warm: start from
    F, which pays where F is an exact solution of a similar problem; else from zero. A concept with
    G_kk = 0 is left as it is. max_steps: how many times concepts may enter the support of a column,
    up to BLOCK at once; None: most_steps(K). sums (2,) float64 is increased by ‖Δ‖² and ‖F‖². About
    m q⁴ / 50 flops for supports of q concepts. Synchronises.
    """
    G, scale = unit_gram(G)
    G, alive = G.double(), scale > 0
    scale = torch.where(alive, 1 / scale, 1)
    K, m = F.shape
    tolerances = TOLERANCE[C.dtype], RANK_TOLERANCE[C.dtype]
    max_steps = most_steps(K) if max_steps is None else max_steps
    width = max(1, _SCRATCH // max(K, min(K, 512) ** 2))
    infos = []
    for first in range(0, m, width):
        part = slice(first, first + width)
        c = torch.where(alive, C[:, part].T.double() / scale, 0)
        # a power of two, so that the largest slope is from 1 to 2
        unit = torch.ldexp(torch.ones_like(c[:, :1]), 1 - c.amax(1, keepdim=True).frexp().exponent)
        search = _Search(c * unit, G, alive, *tolerances)
        if warm:
            search.start_(torch.where(alive, F[:, part].T.double() * scale, 0) * unit)
        infos.append(search.solve_(max_steps))
        # passed on: zeros would hide that numbers overflowed
        x = (search.x / unit).masked_fill_(~c.isfinite().all(1, keepdim=True), torch.nan)
        updated = torch.where(alive[:, None], (x / scale).T.to(F.dtype), F[:, part])
        sums[0] += (updated - F[:, part]).square().sum(dtype=torch.float64)
        sums[1] += updated.square().sum(dtype=torch.float64)
        F[:, part] = updated
    return NnlsInfo.join(infos)


def nnls_on_(
    F: Tensor,
    C: Tensor,
    unit: Tensor,
    scale: Tensor,
    index: Tensor,
    *,
    warm: bool,
    max_steps: int | None = None,
) -> tuple[NnlsInfo, Tensor]:
    """nnls_ with column i of F restricted to the concepts index[i], −1 behind the last; in place.

    F, C (K, m) have all concepts, but only those of index are read and written. unit (K, K) and
    scale (K,) as unit_gram returns them, or unit (m, q, q) on the concepts of index (m, q) int32.
    Returns the info, and the gain of each column, (m,) float64: ‖x‖² minus its squared residual.
    One column at a time here.
    """
    infos = []
    gain = torch.zeros(F.shape[1], dtype=torch.float64, device=F.device)
    sums = torch.zeros(2, dtype=torch.float64, device=F.device)
    for i, row in enumerate(index.long()):
        concepts = row[row >= 0]
        q, length = len(concepts), scale[concepts, None].clamp(min=torch.finfo(C.dtype).tiny)
        G = unit[i, :q, :q] if unit.dim() == 3 else unit[concepts[:, None], concepts]
        G = torch.where(scale[concepts] > 0, G, 0)
        c, x = C[concepts, i, None] * length, F[concepts, i, None] / length
        x, c = x.to(C.dtype), c.to(C.dtype)
        infos.append(nnls_(x, c, G, sums, warm=warm, max_steps=max_steps))
        used = scale[concepts] > 0
        F[concepts[used], i] = (x * length).to(F.dtype)[used, 0]
        x, c = x.double(), c.double()
        gain[i] = (x * (2 * c - G.double() @ x)).sum()
    return NnlsInfo.join(infos), gain


class _Search:
    """Rows that are solved at the same time, each by itself: x and c (r, K), G (K, K) of unit
    concepts, all float64.

    passive (r, K): the supports. added (r, K): what counts as added to the diagonal of G, for
    concepts that entered although they depend on the others. alive (K,): concepts that may be used.
    """

    def __init__(
        self, c: Tensor, G: Tensor, alive: Tensor, tolerance: float, rank_tolerance: float
    ) -> None:
        self.c, self.G, self.alive = c, G, alive
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
        candidates = _first(given, given.shape[1])
        for first in range(0, int(given.sum(1).max()), BLOCK):
            part = candidates[rows, first : first + BLOCK]
            self._enter_(rows, part, torch.zeros_like(rows, dtype=torch.bool))
            self.x[rows] = torch.where(self.passive[rows], x[rows], 0)
            last = first + BLOCK >= given[rows].sum(1)
            size = self.passive[rows].sum(1)
            looks = rows[last | (size >= look)]
            look *= 1 if not len(looks) else 2
            if len(looks):
                wrong = (self.passive[looks] & ~(self._minimiser(looks) > 0)).sum(1)
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
            closed = self.passive[rows] | self.refused[rows] | ~self.alive
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
        come = self._enter_(rows, candidates, alone)
        gone = self._descend_(rows)
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
        return _first(chosen & (chosen.cumsum(1) <= most[:, None]), BLOCK)

    def _enter_(self, rows: Tensor, candidates: Tensor, alone: Tensor) -> Tensor:
        """Add the candidates (r, s), −1 behind the last, to the supports; the number added (r,).

        One that depends on the support is left out, unless it enters alone: then its squared
        distance counts as rank_tolerance.
        """
        index, used = _padded_support(self.passive[rows])
        factor = self._factor(rows, index, used)
        real, candidates = candidates >= 0, candidates.clamp(min=0)
        mixed = self.G[index[:, :, None], candidates[:, None, :]] * used[:, :, None]
        mixed = torch.linalg.solve_triangular(factor, mixed, upper=False)
        apart = self.G[candidates[:, :, None], candidates[:, None, :]] - mixed.mT @ mixed
        count = torch.zeros_like(rows)
        for t in range(candidates.shape[1]):
            k, distance = candidates[:, t], apart[:, t, t]
            near = self.rank_tolerance * self.G[k, k]
            depends = ~(distance > near)
            enters = real[:, t] & (~depends | alone)
            self.added[rows, k] = torch.where(enters & depends, near - distance, 0)
            distance = torch.where(depends, near, distance)
            outer = apart[:, :, t, None] * apart[:, t, None, :] / distance[:, None, None]
            apart = torch.where(enters[:, None, None], apart - outer, apart)
            self.passive[rows[enters], k[enters]] = True
            count += enters
        return count

    def _descend_(self, rows: Tensor) -> Tensor:
        """Move x towards the minimiser on the support as far as x ≥ 0 allows; the concept that
        stops it leaves; until x is the minimiser. The number that left (r,)."""
        left = torch.zeros_like(self.steps)
        everyone = rows
        while len(rows):
            x, s = self.x[rows], self._minimiser(rows)
            falls = self.passive[rows] & ~(s > 0)
            ratio = torch.where(x > 0, x / (x - s), 0).masked_fill_(~falls, torch.inf)
            step, stops = ratio.min(1, keepdim=True)
            inside = ~falls.any(1, keepdim=True)
            moved = torch.where(inside, s, (x + step * (s - x)).clamp(min=0))
            self.x[rows] = torch.where(self.passive[rows], moved, 0)
            ends = inside[:, 0]
            rows, stops = rows[~ends], stops[~ends, 0]
            self.x[rows, stops] = self.added[rows, stops] = 0
            self.passive[rows, stops] = False
            left[rows] += 1
        return left[everyone]

    def _minimiser(self, rows: Tensor) -> Tensor:
        """The minimiser on the support of each row (r, K), by a step from x, which refines it."""
        index, used = _padded_support(self.passive[rows])
        slope = (self._slope(rows).gather(1, index) * used)[:, :, None]
        change = torch.cholesky_solve(slope, self._factor(rows, index, used))[:, :, 0]
        return self.x[rows].scatter_add(1, index, torch.where(used, change, 0))

    def _factor(self, rows: Tensor, index: Tensor, used: Tensor) -> Tensor:
        """The Cholesky factor of the Gram matrix on each support (r, q, q), the identity where it
        is padded."""
        gram = _gather_gram(self.G, index, used)
        gram = gram + torch.diag_embed(self.added[rows].gather(1, index) * used)
        factor, info = torch.linalg.cholesky_ex(gram)
        # concepts are independent when they enter, but for rounding
        damping, left = self.rank_tolerance, info > 0
        while left.any() and damping < 1:
            damped = gram[left] + damping * torch.diag_embed(torch.ones_like(gram[0, 0]))
            factor[left], info[left] = torch.linalg.cholesky_ex(damped)
            damping, left = 10 * damping, info > 0
        return factor

    def _slope(self, rows: Tensor) -> Tensor:
        return self.c[rows] - self.x[rows] @ self.G

    def _gain(self, rows: Tensor) -> Tensor:
        """Twice the gain of x over zero."""
        return (self.c[rows] * self.x[rows]).sum(1)

    def _info(self, capped: Tensor) -> NnlsInfo:
        slope = self.c - self.x @ self.G
        worst = torch.where(self.passive, slope.abs(), slope.clamp(min=0) * self.alive).amax(1)
        kkt = torch.where(worst == 0, 0, worst / self.c.amax(1).clamp(min=1e-300))
        strange = ~(worst.isfinite() & self.c.isfinite().all(1))
        status = torch.where(strange | (worst > self.tolerance), FLOORED, SOLVED)
        status = torch.where(capped, CAPPED, status).int()
        kkt = kkt.masked_fill(strange, torch.inf)
        return NnlsInfo(status, kkt, self.passive.sum(1).int(), self.steps.int())


def _first(chosen: Tensor, most: int) -> Tensor:
    """The indices of the first `most` columns that are true in each row, −1 behind the last."""
    K = chosen.shape[1]
    index = torch.where(chosen, torch.arange(K, device=chosen.device), K).sort(1).values[:, :most]
    return torch.where(index < K, index, -1)


def _padded_support(passive: Tensor) -> tuple[Tensor, Tensor]:
    """The concepts that each row uses, padded to the largest number q: their indices (r, q), and
    which entries are no padding (r, q)."""
    counts = passive.sum(1)
    q = max(1, int(counts.max())) if len(counts) else 1
    index = passive.to(torch.int8).topk(q, dim=1).indices
    return index, passive.gather(1, index)


def _gather_gram(G: Tensor, index: Tensor, used: Tensor) -> Tensor:
    """G on the support of each row (r, q, q), the identity where it is padded."""
    gathered = G[index[:, :, None], index[:, None, :]] * (used[:, :, None] & used[:, None, :])
    return gathered + torch.diag_embed((~used).to(G.dtype))
