"""Online learning of a dictionary: for each batch codes, discounted statistics, and half-steps."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..backends.products import largest
from ..data.arrays import Expected
from ..data.dataset import Data
from ..data.opening.opened import opened
from ..data.storage import InMemory, NotKept, Storage
from ..distributed import Processes
from ..engine.codes import Encoder
from ..engine.state import Method
from ..engine.statistics import Statistics, centre_, squared_error
from ..errors import hold_warnings
from ..init.start import start
from ..numerics import squared_norm, widened
from ..planning import hardware
from ..planning.memory import bytes_of, refuse_too_large
from ..precision import products_in
from ..results.cautions import warn_of_large_batch
from ..results.info import OnlineInfo
from ..solvers.constraints import FREE
from ..solvers.half_step import NormalData
from ..solvers.penalties import NO_PENALTY
from ..solvers.registry import learner
from .options import Options, generator
from .refusals import refuse_extreme
from .rows import in_memory
from .sparsity.request import refuse_online
from .starts.request import refuse_online as refuse_starts

log = logging.getLogger(__name__)

# the default half-life, in rows per concept. Held-out error after one pass over 50,000 rows: on
# low-rank data with noise, K = 32 and 100, 16 to 64 are within 5 % of the best; on patches fewer
# are better (K = 256: 1 leaves half the error of 16). To forget nothing leaves 1.3 to 3.5 times the
# error of 16
_ROWS_PER_CONCEPT = 16
# half-steps of the dictionary per batch; 4 give the same error within 5 %. Those of the codes, from
# a cold start, are Solver.batch_half_steps. hals: 8 take 1.4 times as long at K = 256 and leave
# 10 % more error on patches, 22 % less to 1 % more on low-rank data; 2 leave 6 to 96 % more there
_DICTIONARY_HALF_STEPS = 2


@dataclass(frozen=True)
class Learned:
    """What online learning keeps between batches: D (K, d), the statistics gram (K, K) = Σ w ZᵀZ
    and cross (K, d) = Σ w ZᵀA over batches, with smaller weights for older ones, and the summary.

    D is None before the first batch; gram and cross are None where the dictionary was not learned
    online, or all rows were zero. With an offset b (d,) A is A − b, and totals (K + 1 + d,)
    are Σ w Z, Σ w and Σ w (A − b), in float64.
    """

    D: Tensor | None
    gram: Tensor | None = None
    cross: Tensor | None = None
    info: OnlineInfo | None = None
    offset: Tensor | None = None
    totals: Tensor | None = None

    def described(self) -> dict[str, Any]:
        """Values to compare: those that must be the same in all processes."""
        found = {"D": None, "rows": 0, "batches": 0, "statistics": self.gram is not None}
        if self.info is not None:
            found |= {"rows": self.info.rows, "batches": self.info.batches}
        if self.D is not None:
            D = self.D if self.offset is None else torch.vstack((self.D, self.offset))
            # whole numbers: their sum is the same in any order, so on any machine
            bits = D.contiguous().view(getattr(torch, f"int{8 * D.itemsize}"))
            weights = torch.arange(1, len(bits) + 1, device=bits.device)
            checksum = int((bits.sum(1, dtype=torch.int64) * weights).sum())
            found["D"] = f"{' × '.join(map(str, self.D.shape))}, checksum {checksum:x}"
        return found


def partial_fit(
    A: Any,
    options: Options,
    before: Learned,
    half_life: float | None,
    device: torch.device,
    processes: Processes,
) -> Learned:
    """What is learned with the batch A (m, d), of which this process may have a part; `before` is
    not changed."""
    begun, D = time.perf_counter(), before.D
    known = {} if D is None else {"features": D.shape[1], "dtype": D.dtype}
    signed = options.constraint.signed
    expected = Expected(empty=not processes.alone, signed=signed, **known)
    with ExitStack() as stack:
        stack.enter_context(hold_warnings())
        with processes.agreed():
            refuse_online(options.target_l0, options.penalties)
            refuse_starts(options.n_init, options.start_name)
            method = options.method(device)
        stack.enter_context(torch.cuda.device_of(torch.empty(0, device=device)))
        stack.enter_context(products_in(options.precision))
        if processes.alone:
            data = in_memory(A, device, expected)
            _refuse_too_large(data, options)
        else:
            processes.agree({**options.of_a_fit(), "half_life": half_life, **before.described()})
            budget = options.budget(device, processes=processes)
            data = stack.enter_context(opened(A, expected, budget, processes))
        data.compute_with(method.ops)
        learned = _Batch(data, options, method, half_life, begun)(before)
        if before.info is None and processes.rank == 0:
            warn_of_large_batch(data.n, options.nb_concepts, _ROWS_PER_CONCEPT)
        return learned


def _refuse_too_large(data: Data, options: Options) -> None:
    """Refuse a batch or concepts whose statistics do not fit in memory."""
    K, d, itemsize = options.nb_concepts, data.d, data.dtype.itemsize
    sizes = {
        "the codes": data.n * K * itemsize,
        "the dictionary and ZᵀA": 2 * K * d * itemsize,
        "ZᵀZ": K * K * itemsize,
    }
    advice = "give fewer concepts, or smaller batches"
    refuse_too_large(sizes, data.device, advice, bytes_of(options.max_memory))


class _Batch:
    """A few half-steps towards argmin ½ ⟨gram, D Dᵀ⟩ − ⟨cross, D⟩ over D ≥ 0 for one batch.

    Before them gram ← w gram + ZᵀZ and cross ← w cross + ZᵀA for the codes Z of the batch, with w =
    ½^(m / half_life) for its m rows; half_life=None is 16 rows per concept. A dictionary that was
    not learned online gets statistics as of a half-life of rows that each use one concept, all
    concepts with the same energy. Source: Mairal, Bach, Ponce & Sapiro (2010).
    """

    def __init__(
        self,
        data: Data,
        options: Options,
        method: Method,
        half_life: float | None,
        begun: float,
    ) -> None:
        self.data, self.options, self.method, self.begun = data, options, method, begun
        self.K = options.nb_concepts
        self.half_life = _ROWS_PER_CONCEPT * self.K if half_life is None else half_life

    @torch.no_grad()
    def __call__(self, before: Learned) -> Learned:
        """The same D in all processes; an error with the rows of one is an error in all. Raises
        ArithmeticError when the statistics overflow. 2 m K (d + K) flops besides the half-steps.
        """
        data, D, Z0 = self.data, before.D, NotKept()
        seed = None if before.info is None else before.info.seed
        fresh = before.gram is None and (D is None or not D.any())
        if self.options.offset:
            offset = data.mean_row if fresh or before.offset is None else before.offset
            # which is written into
            data.subtract(offset.to(data.dtype, copy=True))
        if fresh:
            seed = self.options.seed_of_start(data.processes)
            Z0, D = self._start(seed)
        D = D.to(data.dtype)
        statistics = Statistics(D, 0.0, data.processes, ops=self.method.ops)
        if data.offset is not None:
            statistics.sum_codes()
        with data.processes.agreed():
            squares = self._encode(D, Z0, statistics)
        largest_of_D = largest(D)
        with products_in("highest"):
            statistics.reduce_()
            gram, cross, totals = statistics.gram, statistics.cross, None
            if statistics.code_sums is not None:
                rows = data.n * (data.mean_row - data.offset)
                totals = torch.cat((statistics.code_sums, rows.new_tensor([data.n]), rows))
            if not fresh:
                self._remember_(gram, cross, D, before, totals)
            D = self._updated(D, gram, cross, squares, totals, warm=before.gram is not None)
        read = *squares, largest_of_D.double()
        info, weight = self._summary(read, gram, cross, D, before.info)
        info = replace(info, seed=seed)
        log.info("batch %d of %d rows: error %.4g", info.batches, data.n, info.relative_error)
        if weight == 0:
            return Learned(D, info=info, offset=data.offset)
        return Learned(D, gram, cross, info, data.offset, totals)

    def _start(self, seed: int | None) -> tuple[Storage, Tensor]:
        data = self.data
        refuse_extreme("A", data.largest, data.like)
        Z = InMemory(data.like.new_empty(data.n_here, self.K))
        how = self.options.begin, generator(seed), self.options.constraint
        D = start(data, Z, self.K, *how)
        data.processes.broadcast_(D)
        return Z, D

    def _encode(self, D: Tensor, Z0: Storage, statistics: Statistics) -> Tensor:
        """Add the codes of the rows here to the statistics, starting from Z0 if it is kept; returns
        (3,): ‖A − Z D‖², ‖A‖² and the largest entry."""
        squares, data = torch.zeros(3, dtype=torch.float64, device=D.device), self.data
        encoder = Encoder(D, self.method, self.method.solver.batch_half_steps)
        codes = None if isinstance(Z0, NotKept) else Z0
        for X, first, _ in data.tiles(codes):
            X = widened(X)
            try:
                Z = encoder(X, first)[0]
            except ArithmeticError:
                # by its true cause, if it is one of these
                refuse_extreme("A", float(largest(X)), X, float(squared_norm(X)))
                refuse_extreme("the dictionary D", float(largest(D)), D)
                raise
            with products_in("highest"):
                error = squared_error(X, Z, D, self.method.tuning.chunk_rows or len(X))
                total = squared_norm(X if data.offset is None else X + data.offset)
                squares[:2] += torch.stack((error, total))
                squares[2] = torch.maximum(squares[2], largest(X))
                statistics.add_(X, Z)
        return squares

    def _remember_(
        self, gram: Tensor, cross: Tensor, D: Tensor, before: Learned, totals: Tensor | None
    ) -> None:
        """Add the discounted statistics of earlier batches to gram = ZᵀZ, cross = ZᵀA and the
        totals."""
        m = self.data.n
        if before.gram is not None:
            keep = 0.5 ** (m / self.half_life)
            gram.add_(before.gram.to(gram), alpha=keep)
            cross.add_(before.cross.to(cross), alpha=keep)
            if totals is not None:
                totals.add_(before.totals.to(totals), alpha=keep)
            return
        # without this, a batch of one row after a fit raises the error by a third, 16 rows by a
        # tenth; with it, neither raises it by more than 0.1 % (patches, K = 64)
        rows = min(self.half_life, _ROWS_PER_CONCEPT * self.K)
        squares = D.square().sum(1)
        energy = (gram.diagonal() * squares).mean() * (rows / m)
        weight = torch.where(squares > 0, energy / squares, 0)
        gram.diagonal().add_(weight)
        cross.addcmul_(weight[:, None], D)
        if totals is not None:
            # of as many rows for each concept
            codes = (weight.to(totals) * (rows / self.K)).sqrt()
            totals += torch.cat((codes, totals.new_tensor([rows]), codes @ D.to(codes)))

    def _updated(
        self,
        D: Tensor,
        gram: Tensor,
        cross: Tensor,
        squares: Tensor,
        totals: Tensor | None,
        *,
        warm: bool,
    ) -> Tensor:
        """D after its half-steps, of which each process does those of some features; a concept that
        no row has used does not change. The squares become their sums over the processes. The
        offset of the data becomes the best one, and cross that of the data minus it."""
        D, method, processes = D.clone(), self.method, self.data.processes
        given, offset = cross, self.data.offset
        solver = learner(method.solver, self.K, method.constraint)
        block = method.tuning.block or hardware.machine_of(D, method.backend).blocks[-1]
        compute = method.compute(min(block, self.K), D).turned()
        if totals is not None:
            codes, rows, data = totals.split((self.K, 1, self.data.d))
            cross, gram = cross.clone(), gram.clone()
            centre_(cross, gram, codes / rows, data / rows, rows)
            means = (codes / rows).to(D)[:, None]
            compute = replace(compute, fixed=FREE, means=means, rows=float(rows))
        fixed = solver.fix("normal", None, gram, 1, NO_PENALTY, compute)
        unread = torch.zeros(4, dtype=torch.float64, device=D.device)
        some, cross = processes.columns(D), processes.columns(cross)
        times = 1 if solver.exact else _DICTIONARY_HALF_STEPS
        times = times if some.numel() else 0
        solver.half_steps_(some, NormalData(cross, warm), fixed, compute, unread, times)
        processes.join_columns_(D, some, squares)
        if totals is not None:
            change = (data - codes @ D.to(codes)) / rows
            offset += change
            given.addr_(codes.to(given), change.to(given), alpha=-1)
            data.addcmul_(rows, change, value=-1)
        return D

    def _summary(
        self,
        read: tuple[Tensor, ...],
        gram: Tensor,
        cross: Tensor,
        D: Tensor,
        before: OnlineInfo | None,
    ) -> tuple[OnlineInfo, float]:
        """The OnlineInfo, and the trace of gram. read: what _encode returns, and the largest entry
        of the dictionary that it had. Synchronises."""
        unused = (gram.diagonal() == 0).sum()
        # sums, not norms, whose squares could overflow where entries do not
        sums = (M.abs().sum(dtype=torch.float64) for M in (gram.diagonal(), cross, D))
        found = torch.stack((*read, unused.double(), *sums)).tolist()
        error, squared_data, largest, largest_of_D, unused, weight = found[:6]
        refuse_extreme("A", largest, self.data.like, squared_data)
        refuse_extreme("the dictionary D", largest_of_D, D)
        if not sum(found) < float("inf"):
            raise ArithmeticError(
                "the statistics overflowed: A is too large for its dtype; scale it down "
                "(A / abs(A).max()) or pass it as float64"
            )
        rows, batches, seconds = (
            (0, 0, 0.0) if before is None else (before.rows, before.batches, before.seconds)
        )
        info = OnlineInfo(
            rows=rows + self.data.n,
            batches=batches + 1,
            d=self.data.d,
            nb_concepts=self.K,
            dtype=str(D.dtype).removeprefix("torch."),
            device=str(D.device),
            solver=self.method.solver.name,
            dictionary_solver=learner(self.method.solver, self.K, self.method.constraint).name,
            backend=self.method.backend,
            half_life=self.half_life,
            relative_error=(error / squared_data) ** 0.5 if squared_data > 0 else 0.0,
            unused_concepts=int(unused),
            processes=self.data.processes.size,
            seconds=seconds + time.perf_counter() - self.begun,
        )
        return info, weight
