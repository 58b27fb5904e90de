"""A dictionary learned from a stream, a batch at a time: codes, forgetting statistics, half-steps.
The counterpart of fitting.py."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import memory
from .encoding import Encoder, Method
from .info import OnlineInfo
from .precision import products_in
from .ranks import Ranks
from .resident import Resident
from .rows import Rows
from .solvers import SOLVERS, learner, squared_norm
from .statistics import Statistics, squared_error
from .store import Store
from .stream import Stream, pieces_of
from .streamed import Streamed
from .sweeps import Normal, Sweep, Workspace, half_steps_, hold

log = logging.getLogger(__name__)

# rows a concept that the half-life has where it is not told. Held-out error after one pass over
# 50,000 rows: on low-rank data with noise, K = 32 and 100, 16 to 64 are within 5 % of the best; on
# patches fewer are better (K = 256: 1 leaves half of what 16 leave). To forget nothing leaves 1.3
# to 3.5 times the error of 16
_ROWS_A_CONCEPT = 16
# of the codes of a batch from a cold start, and of the dictionary. hals: 8 for the codes take 1.4
# times as long at K = 256 and leave 10 % more error on patches, 22 % less to 1 % more on low-rank
# data; 2 leave 6 to 96 % more there. 4 for the dictionary are the same to 5 %. mu: with 4 a stream
# after a fit loses a tenth of what the fit had reached, with 8 a fiftieth
_CODE_SWEEPS, _MU_SWEEPS, _DICTIONARY_SWEEPS = 4, 8, 2


@dataclass(frozen=True)
class Learned:
    """What a stream has left: D (K, d), the statistics gram (K, K) = Σ ZᵀZ and cross (K, d) = Σ ZᵀA
    over batches, older ones weighing less, and the account.

    gram and cross are None where the dictionary is not one of a stream, or all rows were zero. D is
    None before the first batch.
    """

    D: Tensor | None
    gram: Tensor | None = None
    cross: Tensor | None = None
    info: OnlineInfo | None = None

    def told(self) -> dict[str, Any]:
        """What all processes of a stream must have alike, to be compared."""
        told = {"D": None, "rows": 0, "batches": 0, "statistics": self.gram is not None}
        if self.info is not None:
            told |= {"rows": self.info.rows, "batches": self.info.batches}
        if self.D is not None:
            # whole numbers: their sum is the same in any order, so on any machine
            bits = self.D.contiguous().view(getattr(torch, f"int{8 * self.D.itemsize}"))
            weights = torch.arange(1, len(bits) + 1, device=bits.device)
            checksum = int((bits.sum(1, dtype=torch.int64) * weights).sum())
            told["D"] = f"{' × '.join(map(str, bits.shape))}, checksum {checksum:x}"
        return told


@dataclass(frozen=True)
class OnlineFitter:
    """D ← argmin ½ ⟨gram, D Dᵀ⟩ − ⟨cross, D⟩ over D ≥ 0, followed a few half-steps a batch.

    Before, gram ← w gram + ZᵀZ and cross ← w cross + ZᵀA for the codes Z of the batch, with w =
    ½^(m / half_life) for its m rows; half_life=None is 16 rows a concept. A dictionary that is not
    one of a stream has statistics of its own: those of codes that use every concept by itself, all
    with the same energy, in as many rows as the half-life has. begun: when the call began, by
    time.perf_counter. The rest as for NMF. Source: Mairal, Bach, Ponce & Sapiro, 2010.
    """

    K: int
    by: Method
    init: str | tuple[Any, Any]
    generator: torch.Generator | None
    half_life: float | None
    begun: float

    @torch.no_grad()
    def __call__(self, data: Resident | Streamed, before: Learned) -> Learned:
        """The stream after the batch A (m, d) that the data are, of which the rows here may be a
        part; `before` is not changed. Then all processes get the same D, and an error that one has
        with its rows is one in all.

        Raises ArithmeticError when the factors overflow. 2 m K (d + K) flops beside the sweeps.
        """
        rows, D, Z0 = data.rows, before.D, None
        fresh = before.gram is None and (D is None or not D.any())
        if fresh:
            Z0, D = data.start(self.K, self.init, self.generator)
        D = D.to(rows.dtype)
        statistics = Statistics(D, 0.0, data.ranks, moments=self.by.ops["moments_"])
        with data.ranks.agreed():
            squares = self._encode(rows, D, Z0, statistics)
        with products_in("highest"):
            statistics.reduce_()
            gram, cross = statistics.gram, statistics.cross
            if not fresh:
                self._remember_(gram, cross, rows.n, D, before)
            D = self._updated(
                D, gram, cross, warm=before.gram is not None, ranks=data.ranks, squares=squares
            )
        info, weight = self._account(data, squares, gram, cross, D, before.info)
        log.info("batch %d of %d rows: error %.4g", info.batches, rows.n, info.relative_error)
        return Learned(D, gram, cross, info) if weight > 0 else Learned(D, info=info)

    def encoder(self, D: Tensor) -> Encoder:
        sweeps = _MU_SWEEPS if self.by.solver == "mu" else _CODE_SWEEPS
        return Encoder(D, self.by, sweeps, 0.0)

    def _encode(
        self, rows: Rows | Stream, D: Tensor, Z0: Tensor | Store | None, statistics: Statistics
    ) -> Tensor:
        """Add the codes of the rows here, from Z0 or from nothing, to the statistics; returns
        (2,): ‖A − Z D‖² and ‖A‖²."""
        squares, encoder = torch.zeros(2, dtype=torch.float64, device=D.device), self.encoder(D)
        for X, start in pieces_of(rows, Z0):
            Z = encoder.encode(X, start)[0]
            with products_in("highest"):
                error = squared_error(Rows(X), Z, D, self.by.chunk_rows or len(X))
                squares += torch.stack((error, squared_norm(X)))
                statistics.add_(X, Z)
        return squares

    def _remember_(self, gram: Tensor, cross: Tensor, m: int, D: Tensor, before: Learned) -> None:
        """Add what there was to gram = ZᵀZ and cross = ZᵀA of m rows."""
        if before.gram is not None:
            keep = 0.5 ** (m / self._half_life)
            gram.add_(before.gram.to(gram), alpha=keep)
            cross.add_(before.cross.to(cross), alpha=keep)
            return
        # without it a batch of one row after a fit raises the error by a third, of 16 rows by a
        # tenth; with it neither by more than 0.1 % (patches, K = 64)
        rows = min(self._half_life, _ROWS_A_CONCEPT * self.K)
        squares = D.square().sum(1)
        energy = (gram.diagonal() * squares).mean() * (rows / m)
        weight = torch.where(squares > 0, energy / squares, 0)
        gram.diagonal().add_(weight)
        cross.addcmul_(weight[:, None], D)

    def _updated(
        self, D: Tensor, gram: Tensor, cross: Tensor, *, warm: bool, ranks: Ranks, squares: Tensor
    ) -> Tensor:
        """D after its half-steps, of which each process takes those of some features; a concept
        that no row has used is left as it is. The squares become their sums over the processes."""
        D, solver = D.clone(), learner(self.by.solver, self.K)
        block = self.by.block or memory.machine_of(D, self.by.backend).blocks[-1]
        sweep = Sweep(self.by.ops, min(block, self.K), Workspace(D.dtype, D.device))
        held = hold(solver, "normal", sweep, None, gram)
        unread = torch.zeros(4, dtype=torch.float64, device=D.device)
        some, cross = ranks.columns(D), ranks.columns(cross)
        times = 1 if SOLVERS[solver].exact else _DICTIONARY_SWEEPS
        half_steps_(
            solver, times if some.numel() else 0, some, Normal(cross, warm), held, sweep, unread
        )
        ranks.join_columns_(D, some, squares)
        return D

    def _account(self, data, squares, gram, cross, D, before: OnlineInfo | None):
        """The OnlineInfo, and the trace of gram."""
        unused = (gram.diagonal() == 0).sum()
        sums = (M.sum(dtype=torch.float64) for M in (gram.diagonal(), cross, D))
        read = torch.stack((*squares, unused.double(), *sums)).tolist()
        error, squared_data, unused, weight = read[:4]
        if not sum(read) < float("inf"):
            raise ArithmeticError(
                "the statistics overflowed: A is too large for its dtype; scale it down "
                "(A / A.max()) or pass it as float64"
            )
        rows, batches, seconds = (
            (0, 0, 0.0) if before is None else (before.rows, before.batches, before.seconds)
        )
        info = OnlineInfo(
            rows=rows + data.rows.n,
            batches=batches + 1,
            d=data.rows.d,
            nb_concepts=self.K,
            dtype=str(D.dtype).removeprefix("torch."),
            device=str(D.device),
            solver=self.by.solver,
            dictionary_solver=learner(self.by.solver, self.K),
            backend=self.by.backend,
            half_life=self._half_life,
            relative_error=(error / squared_data) ** 0.5 if squared_data > 0 else 0.0,
            unused_concepts=int(unused),
            processes=data.ranks.size,
            seconds=seconds + time.perf_counter() - self.begun,
        )
        return info, weight

    @property
    def _half_life(self) -> float:
        return _ROWS_A_CONCEPT * self.K if self.half_life is None else self.half_life
