"""Concepts that stand for nothing, dead ones and near-duplicates, are given rows of the data that
the others explain worst."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .codes import alike
from .exemplars import CANDIDATES
from .penalties import NO_PENALTY, Penalty
from .ranks import ALONE, Ranks
from .rows import Rows
from .solvers import squared_norm
from .store import Store, blocks_of
from .stream import Stream, pieces_of
from .sweeps import HALF_STEPS, Held, Normal, Sweep

# iterations between two looks for dead concepts
EVERY = 10
# to compare all pairs of concepts takes some 0.14 K / n iterations (2,000 × 384, K = 6,000, two
# threads of AVX2); it may take a hundredth of them
_PAIRS = 14
# of ‖a_i‖, in units of the dtype's rounding: a residual below that is none
_LEAST_RESIDUAL = 100
# of the mean of a concept, or of its codes: the least entry where zeros would stay zero. mu leaves
# 0.213 of the digits then, 0.220 with a hundredth and 0.245 with zeros (K = 32, a third dead)
_LEAST_ENTRY = 0.1
# in place of the number of a twin
_LIVES, _DEAD = -1, -2


def looks(iteration: int, n: int, K: int) -> tuple[bool, bool]:
    """Whether to look for dead concepts before this iteration, and for near-duplicates too."""
    between = EVERY * max(1, math.ceil(_PAIRS * K / (EVERY * n)))
    passed = iteration - 1
    return passed > 0 and passed % EVERY == 0, passed % between == 0


def revive_(
    Z: Tensor | Store,
    D: Tensor,
    rows: Rows | Stream,
    sweep: Sweep,
    piece_rows: int,
    penalties: tuple[Penalty, Penalty] = (NO_PENALTY, NO_PENALTY),
    ranks: Ranks = ALONE,
    *,
    duplicates: bool,
    fills: bool,
    least: float = 0.0,
) -> int:
    """Give dead concepts, and near-duplicates if asked, the worst-explained rows, in place; how
    many.

    A concept becomes what is positive of the residual of a row, each of another row, and its codes
    those of one sweep of hals. Of two that are alike the weaker leaves its codes to the other,
    where that costs less of ‖A − Z D‖² than the new row saves. fills: no entry of either is zero.
    Codes are drawn once to be measured, and again to be kept if ‖A − Z D‖² and twice the penalties
    fall, by more than `least` of that: before nothing is changed. The rows of all processes count,
    and all choose the same. K² d flops, and 2 n K d in each of two passes over the rows where
    concepts are idle, in one more where it fills and one where they are revived. Synchronises.
    """
    idle = _look(Z, D, duplicates, ranks)
    if not len(idle):
        return 0
    of_codes, of_dictionary = penalties
    worst = _Worst(CANDIDATES * len(idle), D)
    before, costs = _weigh(idle, D, pieces_of(rows, Z, piece_rows), of_codes, worst, ranks)
    idle, concepts = _match(idle, *worst.of_all(ranks), costs, ranks)
    if not len(idle):
        return 0
    renewal = _renewal(idle, _filled(concepts) if fills else concepts, D, sweep, ranks)
    if fills:
        total = _total_codes(renewal, pieces_of(rows, Z, piece_rows), ranks)
        renewal = replace(renewal, fill=_LEAST_ENTRY / rows.n * total)
    after = torch.zeros_like(before)
    for X, codes in pieces_of(rows, Z, piece_rows):
        codes = codes.clone()
        after += _loss(renewal.renew_(codes, X), codes, of_codes)
    ranks.sum_(after)
    before, after = before + 2 * of_dictionary.value(D), after + 2 * of_dictionary.value(renewal.D)
    # the penalty of D may be rounded otherwise elsewhere
    if not any(ranks.any(bool(after < (1 - least) * before))):
        return 0
    for X, codes in pieces_of(rows, Z, piece_rows, save=True):
        renewal.renew_(codes, X)
    D.copy_(renewal.D)
    return len(idle)


@dataclass(frozen=True)
class _Idle:
    """Concepts that may be given away: dead ones, and the weaker ones of two that are alike, with
    the twin that takes over the codes of each."""

    dead: Tensor
    weaker: Tensor
    twins: Tensor

    @property
    def concepts(self) -> Tensor:
        return torch.cat((self.dead, self.weaker))

    def __len__(self) -> int:
        return len(self.dead) + len(self.weaker)


def _look(Z: Tensor | Store, D: Tensor, duplicates: bool, ranks: Ranks) -> _Idle:
    used = torch.zeros(len(D), dtype=torch.int64, device=D.device)
    for codes in blocks_of(Z):
        used += (codes.amax(0) > 0).to(D.device)
    ranks.sum_(used)
    living = (used > 0) & (D.amax(1) > 0)
    twin = torch.where(living, _LIVES, _DEAD)
    living = living.nonzero()[:, 0]
    if duplicates and any(ranks.any(bool((alike(D[living]) >= 0).any()))):
        # in few digits: of two that are the same the earlier stays, not the one by rounding
        energy = _energy(Z, D, ranks)[living].bfloat16()
        living = living[energy.argsort(descending=True, stable=True)]
        twins = alike(D[living])
        weaker = (twins >= 0).nonzero()[:, 0]
        # whose twin stays
        weaker = weaker[twins[twins[weaker]] < 0]
        twin[living[weaker]] = living[twins[weaker]]
    # by rounding, others might find others alike
    ranks.share_(twin)
    weaker = (twin >= 0).nonzero()[:, 0]
    return _Idle((twin == _DEAD).nonzero()[:, 0], weaker, twin[weaker])


def _energy(Z: Tensor | Store, D: Tensor, ranks: Ranks) -> Tensor:
    """‖Z_k‖² ‖D_k‖² (K,)."""
    squares = torch.zeros(len(D), dtype=torch.float64, device=D.device)
    for codes in blocks_of(Z):
        squares += torch.linalg.vector_norm(codes, dim=0).double().square().to(D.device)
    ranks.sum_(squares)
    return squares * torch.linalg.vector_norm(D, dim=1).square()


class _Worst:
    """Of rows that come in pieces the `most` with the largest gains, in their order, and what is
    positive of the residual of each."""

    def __init__(self, most: int, D: Tensor) -> None:
        self._most = most
        self._gains, self._rows = D.new_empty(0, dtype=torch.float64), D.new_empty(0, D.shape[1])

    def add_(self, gains: Tensor, positive: Tensor) -> None:
        held = len(self._gains)
        gains = torch.cat((self._gains, gains))
        best = gains.argsort(descending=True, stable=True)[: self._most]
        best = best[gains[best] > 0].sort().values
        before, new = best[best < held], best[best >= held] - held
        self._gains = gains[best]
        self._rows = torch.cat((self._rows[before], positive[new]))

    def of_all(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """The gains and the rows among those of all processes, the worst first."""
        gains = [gains.to(self._rows.device) for gains in ranks.gather(self._gains.cpu())]
        first = sum(map(len, gains[: ranks.rank]))
        gains = torch.cat(gains)
        best = gains.argsort(descending=True, stable=True)[: self._most]
        here = (best >= first) & (best < first + len(self._rows))
        rows = self._rows.new_zeros(len(best), self._rows.shape[1])
        rows[here] = self._rows[best[here] - first]
        ranks.sum_(rows)
        return gains[best], rows


def _weigh(
    idle: _Idle,
    D: Tensor,
    pieces: Iterable[tuple[Tensor, Tensor]],
    penalty: Penalty,
    worst: _Worst,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """The loss, but for the penalty of D, and what ‖A − Z D‖² rises by where the codes of each of
    the weaker move to its twin. The gain of a row is what the loss falls by where it becomes a
    concept that no other row uses."""
    change = _ratios(D, idle)[:, None] * D[idle.twins] - D[idle.weaker]
    sums = torch.zeros(1 + len(change), dtype=torch.float64, device=D.device)
    for X, codes in pieces:
        E, z = torch.addmm(X, codes, D, alpha=-1), codes[:, idle.weaker]
        sums[0] += _loss(E, codes, penalty)
        sums[1:] += (z.square() * change.square().sum(1) - 2 * z * (E @ change.T)).sum(0)
        norms = torch.linalg.vector_norm(E.clamp_(min=0), dim=1)
        least = _LEAST_RESIDUAL * torch.finfo(D.dtype).eps * torch.linalg.vector_norm(X, dim=1)
        worst.add_(torch.where(norms > least, norms, 0).double().square(), E)
    ranks.sum_(sums)
    return sums[0], sums[1:]


def _loss(E: Tensor, codes: Tensor, penalty: Penalty) -> Tensor:
    return squared_norm(E) + 2 * penalty.value(codes)


def _match(
    idle: _Idle, gains: Tensor, concepts: Tensor, costs: Tensor, ranks: Ranks
) -> tuple[_Idle, Tensor]:
    """Those of the idle concepts for which there is a row, and what they become: dead ones first,
    then those whose codes move at the least cost."""
    distinct = (alike(concepts) < 0).to(torch.int32)
    ranks.share_(distinct)
    gains, concepts = gains[distinct > 0], concepts[distinct > 0]
    dead = idle.dead[: len(gains)]
    cheap = costs.argsort(stable=True)[: len(gains) - len(dead)]
    last = len(dead) + len(cheap)
    pays = costs[cheap] < gains[len(dead) : last]
    # in their order: the costs of those that are the same are rounding
    chosen = cheap[pays].sort().values
    concepts = torch.cat((concepts[: len(dead)], concepts[len(dead) : last][pays]))
    return replace(idle, dead=dead, weaker=idle.weaker[chosen], twins=idle.twins[chosen]), concepts


@dataclass(frozen=True)
class _Renewal:
    """What the factors become: D (K, d), in which the concepts S are new; codes of the weaker go to
    the twins, each of these once, in these shares; those of S are drawn, with entries of `fill`
    (s, 1) at least where it is given."""

    D: Tensor
    S: Tensor
    weaker: Tensor
    twins: Tensor
    shares: Tensor
    sweep: Sweep
    held: Held
    fill: Tensor | None = None

    def renew_(self, codes: Tensor, X: Tensor) -> Tensor:
        """Codes (m, K) of X (m, d) become those; returns the residual they leave. One sweep of hals
        over the concepts S, which have no codes before it."""
        codes[:, self.twins] += codes[:, self.weaker] @ self.shares
        codes[:, self.S] = 0
        E = torch.addmm(X, codes, self.D, alpha=-1)
        C = self.held.B @ E.T
        F, unread = torch.zeros_like(C), torch.zeros(4, dtype=torch.float64, device=C.device)
        HALF_STEPS["hals"](F, Normal(C), self.held, self.sweep, unread)
        if self.fill is not None:
            torch.maximum(F, self.fill, out=F)
        codes[:, self.S] = F.T
        return E.addmm_(F.T, self.held.B, alpha=-1)


def _renewal(idle: _Idle, concepts: Tensor, D: Tensor, sweep: Sweep, ranks: Ranks) -> _Renewal:
    """The codes of the weaker go by a product, z_twin += z_weaker ‖d_weaker‖ / ‖d_twin‖: a twin may
    be that of many."""
    twins, place = idle.twins.unique(return_inverse=True)
    shares = D.new_zeros(len(place), len(twins))
    shares[torch.arange(len(place), device=D.device), place] = _ratios(D, idle)
    S, renewed = idle.concepts, D.clone()
    concepts = _of_mean_length(concepts, D, S)
    ranks.share_(concepts)
    renewed[S] = concepts
    held = Held(concepts, concepts @ concepts.T)
    return _Renewal(renewed, S, idle.weaker, twins, shares, sweep, held)


def _total_codes(
    renewal: _Renewal, pieces: Iterable[tuple[Tensor, Tensor]], ranks: Ranks
) -> Tensor:
    """The sum of the codes of each new concept (s, 1)."""
    total = renewal.D.new_zeros(len(renewal.S), dtype=torch.float64)
    for X, codes in pieces:
        codes = codes.clone()
        renewal.renew_(codes, X)
        total += codes[:, renewal.S].sum(0, dtype=torch.float64)
    ranks.sum_(total)
    return total.to(renewal.D)[:, None]


def _ratios(D: Tensor, idle: _Idle) -> Tensor:
    """‖d_weaker‖ / ‖d_twin‖."""
    lengths = torch.linalg.vector_norm(D, dim=1)
    return lengths[idle.weaker] / lengths[idle.twins]


def _of_mean_length(concepts: Tensor, D: Tensor, S: Tensor) -> Tensor:
    """The concepts, as long as those beside S are on average; as they are where there is none."""
    lengths = torch.linalg.vector_norm(D, dim=1)
    lengths[S] = 0
    if not lengths.any():
        return concepts
    mean = lengths.sum() / lengths.count_nonzero()
    return concepts * (mean / torch.linalg.vector_norm(concepts, dim=1))[:, None]


def _filled(concepts: Tensor) -> Tensor:
    return torch.maximum(concepts, _LEAST_ENTRY * concepts.mean(1, keepdim=True))
