"""Concepts that stand for nothing, dead ones and near-duplicates, are given rows of the data that
the others explain worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .codes import alike
from .rows import Rows, widened
from .sweeps import HALF_STEPS, Held, Normal, Sweep

# iterations between two looks for dead concepts
EVERY = 10
# to compare all pairs of concepts takes some 0.14 K / n iterations (2,000 × 384, K = 6,000, two
# threads of AVX2); it may take a hundredth of them
_PAIRS = 14
# rows that are looked at for each concept, since some may be alike
_CANDIDATES = 4
# of ‖a_i‖, in units of the dtype's rounding: a residual below that is none
_LEAST_RESIDUAL = 100
# of the mean of a concept, or of its codes: the least entry where zeros would stay zero. mu leaves
# 0.213 of the digits then, 0.220 with a hundredth and 0.245 with zeros (K = 32, a third dead)
_LEAST_ENTRY = 0.1


def looks(iteration: int, n: int, K: int) -> tuple[bool, bool]:
    """Whether to look for dead concepts before this iteration, and for near-duplicates too."""
    between = EVERY * max(1, math.ceil(_PAIRS * K / (EVERY * n)))
    passed = iteration - 1
    return passed > 0 and passed % EVERY == 0, passed % between == 0


def revive_(
    Z: Tensor,
    D: Tensor,
    rows: Rows,
    sweep: Sweep,
    piece_rows: int,
    loss: Callable[[], float],
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
    Both factors are as they were unless loss() falls, by more than `least` of it. K² d flops, and
    2 n K d in each of four passes over the rows where concepts are idle. Synchronises.
    """
    idle = _look(Z, D, duplicates)
    if len(idle):
        idle, concepts = _match(idle, Z, D, rows, piece_rows)
    if not len(idle):
        return 0
    before, S = loss(), idle.concepts
    # codes of dead concepts are zero, mostly: no copy of them
    touched = torch.cat((S[Z.amax(0)[S] > 0], idle.twins)).unique()
    kept = Z[:, touched], D[S]
    _move_codes_(Z, D, idle)
    Z[:, S] = 0
    D[S] = _of_mean_length(_filled(concepts) if fills else concepts, D, S)
    _draw_codes_(Z, D, S, rows, sweep, piece_rows, fills)
    if loss() < (1 - least) * before:
        return len(idle)
    Z[:, S] = 0
    Z[:, touched], D[S] = kept
    return 0


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


def _look(Z: Tensor, D: Tensor, duplicates: bool) -> _Idle:
    living = (Z.amax(0) > 0) & (D.amax(1) > 0)
    dead, living = ((~living).nonzero()[:, 0], living.nonzero()[:, 0])
    if not duplicates or not (alike(D[living]) >= 0).any():
        return _Idle(dead, living[:0], living[:0])
    energy = torch.linalg.vector_norm(Z, dim=0) * torch.linalg.vector_norm(D, dim=1)
    living = living[energy[living].argsort(descending=True, stable=True)]
    twins = alike(D[living])
    weaker = (twins >= 0).nonzero()[:, 0]
    # whose twin stays
    weaker = weaker[twins[twins[weaker]] < 0]
    return _Idle(dead, living[weaker], living[twins[weaker]])


def _match(idle: _Idle, Z: Tensor, D: Tensor, rows: Rows, piece_rows: int) -> tuple[_Idle, Tensor]:
    """Those of the idle concepts for which there is a row, and what they become: dead ones first,
    then those whose codes move at the least cost."""
    gains, costs = _weigh(idle, Z, D, rows, piece_rows)
    worst = gains.argsort(descending=True, stable=True)[: _CANDIDATES * len(idle)]
    worst = worst[gains[worst] > 0]
    pieces = worst.split(piece_rows)
    residuals = [torch.addmm(widened(rows.A[piece]), Z[piece], D, alpha=-1) for piece in pieces]
    concepts = torch.cat(residuals).clamp_(min=0)
    distinct = alike(concepts) < 0
    gains, concepts = gains[worst[distinct]], concepts[distinct]
    dead = idle.dead[: len(gains)]
    cheap = costs.argsort(stable=True)[: len(gains) - len(dead)]
    last = len(dead) + len(cheap)
    pays = costs[cheap] < gains[len(dead) : last]
    chosen = cheap[pays]
    concepts = torch.cat((concepts[: len(dead)], concepts[len(dead) : last][pays]))
    return replace(idle, dead=dead, weaker=idle.weaker[chosen], twins=idle.twins[chosen]), concepts


def _weigh(idle: _Idle, Z: Tensor, D: Tensor, rows: Rows, piece_rows: int) -> tuple[Tensor, Tensor]:
    """What the loss falls by where a row becomes a concept that no other uses (n,), and what it
    rises by where the codes of one of the weaker move to its twin."""
    change = _ratios(D, idle)[:, None] * D[idle.twins] - D[idle.weaker]
    costs = torch.zeros(len(change), dtype=torch.float64, device=D.device)
    positive = []
    for part, X in rows.chunks(piece_rows):
        E, z = torch.addmm(X, Z[part], D, alpha=-1), Z[part][:, idle.weaker]
        costs += (z.square() * change.square().sum(1) - 2 * z * (E @ change.T)).sum(0)
        norms = torch.linalg.vector_norm(E.clamp_(min=0), dim=1)
        least = _LEAST_RESIDUAL * torch.finfo(D.dtype).eps * torch.linalg.vector_norm(X, dim=1)
        positive.append(torch.where(norms > least, norms, 0))
    return torch.cat(positive).double().square(), costs


def _ratios(D: Tensor, idle: _Idle) -> Tensor:
    """‖d_weaker‖ / ‖d_twin‖."""
    lengths = torch.linalg.vector_norm(D, dim=1)
    return lengths[idle.weaker] / lengths[idle.twins]


def _move_codes_(Z: Tensor, D: Tensor, idle: _Idle) -> None:
    """z_twin += z_weaker ‖d_weaker‖ / ‖d_twin‖, by a product: a twin may be that of many."""
    twins, place = idle.twins.unique(return_inverse=True)
    shares = D.new_zeros(len(place), len(twins))
    shares[torch.arange(len(place), device=D.device), place] = _ratios(D, idle)
    Z[:, twins] += Z[:, idle.weaker] @ shares


def _of_mean_length(concepts: Tensor, D: Tensor, S: Tensor) -> Tensor:
    """The concepts, as long as those beside S are on average; as they are where there is none."""
    lengths = torch.linalg.vector_norm(D, dim=1)
    lengths[S] = 0
    if not lengths.any():
        return concepts
    mean = lengths.sum() / lengths.count_nonzero()
    return concepts * (mean / torch.linalg.vector_norm(concepts, dim=1))[:, None]


def _draw_codes_(
    Z: Tensor, D: Tensor, S: Tensor, rows: Rows, sweep: Sweep, piece_rows: int, fills: bool
) -> None:
    """One sweep of hals over the concepts S, which have no codes yet."""
    concepts = D[S]
    held = Held(None, concepts @ concepts.T)
    sums = torch.zeros(4, dtype=torch.float64, device=D.device)
    for part, X in rows.chunks(piece_rows):
        C = concepts @ torch.addmm(X, Z[part], D, alpha=-1).T
        F = torch.zeros_like(C)
        HALF_STEPS["hals"](F, Normal(C), held, sweep, sums)
        Z[part, S] = (_filled(F) if fills else F).T


def _filled(F: Tensor) -> Tensor:
    return torch.maximum(F, _LEAST_ENTRY * F.mean(1, keepdim=True))
