"""Revival: dead concepts and near-duplicates are re-initialised by the rows of the data that the
other concepts explain worst, where that lowers the objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.products import dense_tiles
from ..data.dataset import Data
from ..data.storage import Storage, blocks_of
from ..distributed import Processes
from ..numerics import keep_largest_, squared_norm
from ..planning.memory import CANDIDATES
from ..solvers import hals
from ..solvers.half_step import Compute, FixedFactor, NormalData
from ..solvers.penalties import NO_PENALTY, Penalty

# entries of a matrix of cosines at a time
_COSINES = 1 << 20
# cosine from which two concepts are near-duplicates
ALIKE = 0.99


def alike(D: Tensor) -> Tensor:
    """(K,): for every concept the first earlier one with cosine ≥ ALIKE to it, or −1; concepts of
    zeros have none. K² d flops, in blocks of _COSINES entries. Does not synchronise."""
    lengths = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    rays = D / lengths.clamp(min=1e-300)[:, None].to(D.dtype)
    rays[lengths == 0] = 0
    first_alike = torch.full((len(D),), -1, device=D.device)
    step = max(1, _COSINES // max(1, len(D)))
    for first in range(0, len(D), step):
        cosine = rays[first : first + step] @ rays[: first + step].T
        near = cosine.tril_(first - 1) >= ALIKE
        earliest = near.to(torch.uint8).argmax(1, keepdim=True)
        found = near.gather(1, earliest)
        first_alike[first : first + step] = torch.where(found, earliest, -1)[:, 0]
    return first_alike


# iterations between two checks for dead concepts
EVERY = 10
# comparing all pairs of concepts costs some 0.14 K / n iterations (2,000 × 384, K = 6,000, two
# threads of AVX2); it may take a hundredth of the time
_PAIRS = 14
# a residual below this, relative to ‖a_i‖ and in units of rounding, is zero
_LEAST_RESIDUAL = 100
# the least entry, relative to the mean of a concept or of its codes, where zeros would stay zero.
# mu then has an error of 0.213 on the digits, 0.220 with 0.01 and 0.245 with zeros (K = 32, a third
# of them dead)
_LEAST_ENTRY = 0.1
# instead of the index of a twin
_LIVES, _DEAD = -1, -2


def due_checks(iteration: int, n: int, K: int) -> tuple[bool, bool]:
    """Return whether to check for dead concepts before this iteration, and for near-duplicates."""
    between = EVERY * max(1, math.ceil(_PAIRS * K / (EVERY * n)))
    passed = iteration - 1
    return passed > 0 and passed % EVERY == 0, passed % between == 0


@dataclass(frozen=True)
class Revival:
    """What a revival works with: the data, operations and workspaces of half-steps, rows of a tile,
    the penalties of codes and dictionary, and whether entries of zero in a new concept or its codes
    are filled, for solvers that would keep them at zero. compute: that of the codes. most: codes of
    a row that are not zero, at most, or None."""

    data: Data
    compute: Compute
    tile_rows: int
    penalties: tuple[Penalty, Penalty] = (NO_PENALTY, NO_PENALTY)
    fills: bool = False
    most: int | None = None

    def tiles(self, Z: Storage, *, save: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """X (m, d), widened and dense, and its codes (m, K) of each tile; save: keep changes of the
        codes."""
        for X, codes, _ in self.data.tiles(Z, self.tile_rows, save=save):
            yield from ((rows, codes[part]) for part, rows in dense_tiles(X))


def revive_(Z: Storage, D: Tensor, by: Revival, *, duplicates: bool, least: float = 0.0) -> int:
    """Re-initialise dead concepts, and near-duplicates if `duplicates` is set, in place; return how
    many.

    A concept becomes the residual of a row, where it is not signed the positive part of it, each of
    another row, with the codes of one sweep of hals. Of two that are alike the weaker passes its
    codes to the other, where that raises ‖A − Z D‖² by less than the new row lowers it. Nothing
    changes unless
    ‖A − Z D‖² plus twice the penalties falls by more than its share `least`: codes are computed
    once to measure that, and again to be kept. All processes choose the same concepts and rows, of
    the data of all.

    K² d flops; if there are such concepts, 2 n K d in each of two passes over the rows, one more
    where entries are filled, and one more for the revival. Synchronises once if there are none.
    """
    processes, (of_codes, of_dictionary) = by.data.processes, by.penalties
    idle = _look(Z, D, duplicates, processes)
    if not len(idle):
        return 0
    signed = by.compute.fixed.signed
    worst = _Worst(CANDIDATES * len(idle), D, signed=signed)
    before, costs = _weigh(idle, D, by.tiles(Z), of_codes, worst, processes)
    idle, concepts = _match(idle, *worst.of_all(processes), costs, processes)
    if not len(idle):
        return 0
    concepts = _filled(concepts) if by.fills and not signed else concepts
    renewal = replace(_renewal(idle, concepts, D, by.compute, processes), most=by.most)
    if by.fills:
        total = _total_codes(renewal, by.tiles(Z), processes)
        renewal = replace(renewal, fill=_LEAST_ENTRY / by.data.n * total)
    after = torch.zeros_like(before)
    for X, codes in by.tiles(Z):
        codes = codes.clone()
        after += _loss(renewal.renew_(codes, X), codes, of_codes)
    processes.sum_(after)
    before, after = before + 2 * of_dictionary.value(D), after + 2 * of_dictionary.value(renewal.D)
    # the penalty of D may be rounded differently in another process
    if not any(processes.any(bool(after < (1 - least) * before))):
        return 0
    for X, codes in by.tiles(Z, save=True):
        renewal.renew_(codes, X)
    D.copy_(renewal.D)
    return len(idle)


@dataclass(frozen=True)
class _Idle:
    """Concepts that may be re-initialised: dead ones, and the weaker ones of two that are alike,
    each with its twin, which takes over its codes."""

    dead: Tensor
    weaker: Tensor
    twins: Tensor

    @property
    def concepts(self) -> Tensor:
        return torch.cat((self.dead, self.weaker))

    def __len__(self) -> int:
        return len(self.dead) + len(self.weaker)


def _look(Z: Tensor | Storage, D: Tensor, duplicates: bool, processes: Processes) -> _Idle:
    used = torch.zeros(len(D), dtype=torch.int64, device=D.device)
    for codes in blocks_of(Z):
        used += (codes.amax(0) > 0).to(D.device)
    processes.sum_(used)
    living = (used > 0) & (D != 0).any(1)
    near = alike(torch.where(living[:, None], D, 0)) if duplicates else living.new_zeros(0)
    # both by one transfer
    found = torch.stack(((~living).any(), (near >= 0).any())).tolist()
    some_dead, some_near = processes.any(*found)
    twin = torch.where(living, _LIVES, _DEAD)
    if not some_dead and not some_near:
        return _Idle(twin[:0], twin[:0], twin[:0])
    living = living.nonzero()[:, 0]
    if some_near:
        # in few digits, so that of two that are the same the earlier one stays, whatever rounding
        energy = _energy(Z, D, processes)[living].bfloat16()
        living = living[energy.argsort(descending=True, stable=True)]
        twins = alike(D[living])
        weaker = (twins >= 0).nonzero()[:, 0]
        # whose twin stays
        weaker = weaker[twins[twins[weaker]] < 0]
        twin[living[weaker]] = living[twins[weaker]]
    # rounding may differ between processes
    processes.broadcast_(twin)
    weaker = (twin >= 0).nonzero()[:, 0]
    return _Idle((twin == _DEAD).nonzero()[:, 0], weaker, twin[weaker])


def _energy(Z: Tensor | Storage, D: Tensor, processes: Processes) -> Tensor:
    """‖Z_k‖² ‖D_k‖² (K,)."""
    squares = torch.zeros(len(D), dtype=torch.float64, device=D.device)
    for codes in blocks_of(Z):
        squares += torch.linalg.vector_norm(codes, dim=0).double().square().to(D.device)
    processes.sum_(squares)
    return squares * torch.linalg.vector_norm(D, dim=1).square()


class _Worst:
    """The `most` rows with the largest gains, in their order, and what may become a concept of
    each: its residual, or the positive part of it unless `signed`; rows are added a tile at a
    time."""

    def __init__(self, most: int, D: Tensor, *, signed: bool) -> None:
        self._most, self.signed = most, signed
        self._gains, self._rows = D.new_empty(0, dtype=torch.float64), D.new_empty(0, D.shape[1])

    def add_(self, gains: Tensor, found: Tensor) -> None:
        held = len(self._gains)
        gains = torch.cat((self._gains, gains))
        best = gains.argsort(descending=True, stable=True)[: self._most]
        best = best[gains[best] > 0].sort().values
        before, new = best[best < held], best[best >= held] - held
        self._gains = gains[best]
        self._rows = torch.cat((self._rows[before], found[new]))

    def of_all(self, processes: Processes) -> tuple[Tensor, Tensor]:
        """The gains and the rows of all processes, the largest gain first. A collective call."""
        gains = [gains.to(self._rows.device) for gains in processes.gather(self._gains.cpu())]
        first = sum(map(len, gains[: processes.rank]))
        gains = torch.cat(gains)
        best = gains.argsort(descending=True, stable=True)[: self._most]
        here = (best >= first) & (best < first + len(self._rows))
        rows = self._rows.new_zeros(len(best), self._rows.shape[1])
        rows[here] = self._rows[best[here] - first]
        processes.sum_(rows)
        return gains[best], rows


def _weigh(
    idle: _Idle,
    D: Tensor,
    tiles: Iterable[tuple[Tensor, Tensor]],
    penalty: Penalty,
    worst: _Worst,
    processes: Processes,
) -> tuple[Tensor, Tensor]:
    """The loss without the penalty of D, and by how much ‖A − Z D‖² rises for each weaker concept
    whose codes move to its twin. `worst` receives the rows: the gain of one is the decrease of the
    loss if it becomes a concept that no other row uses."""
    change = _ratios(D, idle)[:, None] * D[idle.twins] - D[idle.weaker]
    sums = torch.zeros(1 + len(change), dtype=torch.float64, device=D.device)
    for X, codes in tiles:
        E, z = torch.addmm(X, codes, D, alpha=-1), codes[:, idle.weaker]
        sums[0] += _loss(E, codes, penalty)
        sums[1:] += (z.square() * change.square().sum(1) - 2 * z * (E @ change.T)).sum(0)
        norms = torch.linalg.vector_norm(E if worst.signed else E.clamp_(min=0), dim=1)
        least = _LEAST_RESIDUAL * torch.finfo(D.dtype).eps * torch.linalg.vector_norm(X, dim=1)
        worst.add_(torch.where(norms > least, norms, 0).double().square(), E)
    processes.sum_(sums)
    return sums[0], sums[1:]


def _loss(E: Tensor, codes: Tensor, penalty: Penalty) -> Tensor:
    return squared_norm(E) + 2 * penalty.value(codes)


def _match(
    idle: _Idle, gains: Tensor, concepts: Tensor, costs: Tensor, processes: Processes
) -> tuple[_Idle, Tensor]:
    """The idle concepts for which there is a row, and what they become: dead ones first, then those
    whose codes move at the least cost."""
    distinct = (alike(concepts) < 0).to(torch.int32)
    processes.broadcast_(distinct)
    gains, concepts = gains[distinct > 0], concepts[distinct > 0]
    dead = idle.dead[: len(gains)]
    cheap = costs.argsort(stable=True)[: len(gains) - len(dead)]
    last = len(dead) + len(cheap)
    pays = costs[cheap] < gains[len(dead) : last]
    # in their order, since equal concepts differ in their costs by rounding
    chosen = cheap[pays].sort().values
    concepts = torch.cat((concepts[: len(dead)], concepts[len(dead) : last][pays]))
    return replace(idle, dead=dead, weaker=idle.weaker[chosen], twins=idle.twins[chosen]), concepts


@dataclass(frozen=True)
class _Renewal:
    """New factors: D (K, d), in which the concepts S are new. Codes of the weaker concepts go to
    the unique twins by the matrix of shares; those of S are computed, with entries of at least
    `fill` (s, 1) where it is given. most: codes of a row that stay, the largest ones, or None."""

    D: Tensor
    S: Tensor
    weaker: Tensor
    twins: Tensor
    shares: Tensor
    compute: Compute
    fixed: FixedFactor
    fill: Tensor | None = None
    most: int | None = None

    def renew_(self, codes: Tensor, X: Tensor) -> Tensor:
        """Give X (m, d) its new codes (m, K), in place, by one sweep of hals over the concepts S
        from zero; return the residual."""
        codes[:, self.twins] += codes[:, self.weaker] @ self.shares
        codes[:, self.S] = 0
        E = torch.addmm(X, codes, self.D, alpha=-1)
        C = self.fixed.B @ E.T
        F, unread = torch.zeros_like(C), torch.zeros(4, dtype=torch.float64, device=C.device)
        hals.half_steps_(F, NormalData(C), self.fixed, self.compute, unread, 1)
        if self.fill is not None:
            torch.maximum(F, self.fill, out=F)
        codes[:, self.S] = F.T
        if self.most is not None:
            keep_largest_(codes, torch.linalg.vector_norm(self.D, dim=1), self.most)
            return torch.addmm(X, codes, self.D, alpha=-1)
        return E.addmm_(F.T, self.fixed.B, alpha=-1)


def _renewal(
    idle: _Idle, concepts: Tensor, D: Tensor, compute: Compute, processes: Processes
) -> _Renewal:
    """The renewal by these concepts. z_twin += z_weaker ‖d_weaker‖ / ‖d_twin‖ is a product, since
    several concepts may share a twin."""
    twins, place = idle.twins.unique(return_inverse=True)
    shares = D.new_zeros(len(place), len(twins))
    shares[torch.arange(len(place), device=D.device), place] = _ratios(D, idle)
    S, renewed = idle.concepts, D.clone()
    concepts = _of_mean_length(concepts, D, S)
    processes.broadcast_(concepts)
    renewed[S] = concepts
    fixed = FixedFactor(concepts, concepts @ concepts.T)
    return _Renewal(renewed, S, idle.weaker, twins, shares, compute, fixed)


def _total_codes(
    renewal: _Renewal, tiles: Iterable[tuple[Tensor, Tensor]], processes: Processes
) -> Tensor:
    """The sum of the codes of each new concept (s, 1)."""
    total = renewal.D.new_zeros(len(renewal.S), dtype=torch.float64)
    for X, codes in tiles:
        codes = codes.clone()
        renewal.renew_(codes, X)
        total += codes[:, renewal.S].sum(0, dtype=torch.float64)
    processes.sum_(total)
    return total.to(renewal.D)[:, None]


def _ratios(D: Tensor, idle: _Idle) -> Tensor:
    """‖d_weaker‖ / ‖d_twin‖."""
    lengths = torch.linalg.vector_norm(D, dim=1)
    return lengths[idle.weaker] / lengths[idle.twins]


def _of_mean_length(concepts: Tensor, D: Tensor, S: Tensor) -> Tensor:
    """The concepts with the mean norm of those outside S; unchanged if there are none."""
    lengths = torch.linalg.vector_norm(D, dim=1)
    lengths[S] = 0
    if not lengths.any():
        return concepts
    mean = lengths.sum() / lengths.count_nonzero()
    return concepts * (mean / torch.linalg.vector_norm(concepts, dim=1))[:, None]


def _filled(concepts: Tensor) -> Tensor:
    return torch.maximum(concepts, _LEAST_ENTRY * concepts.mean(1, keepdim=True))
