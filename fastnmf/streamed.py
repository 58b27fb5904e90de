"""What a fit asks of data that are read in passes, and where data go: into memory or through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from . import budget, memory, plan
from .ahead import Ahead
from .budget import Needs
from .codes import describe_pieces, r_squared_about
from .encoding import Encoder
from .errors import InvalidInput
from .init import resolve
from .penalties import Penalty
from .plan import Plan
from .ranks import ALONE, Ranks
from .resident import Measured, Resident
from .rows import Rows
from .shards import paths_of
from .solvers import squared_norm
from .source import Shards, Source, Summary, joined, summarise, take
from .store import InMemory, NotKept, OnDisk, Store, copy_rows, mapped, written
from .stream import Stream
from .streamed_start import start

# half-steps from nothing that codes which are not kept are given in every pass
SWEEPS = 20


@dataclass(frozen=True)
class Streamed:
    """A (n, d), read in passes, of which the rows here may be a part. store: where their codes are
    kept, or None; encoder(D) then gives what computes them. target: the file that codes in memory
    go to at the end."""

    rows: Stream
    store: InMemory | OnDisk | None
    encoder: Callable[[Tensor], Encoder]
    target: OnDisk | None = None

    @property
    def ranks(self) -> Ranks:
        return self.rows.ranks

    @property
    def rows_in_memory(self) -> bool:
        """Whether all are, with their codes."""
        return self.rows.resident

    @property
    def chunk_rows(self) -> int | None:
        return None if self.rows_in_memory else self.rows.chunk_rows

    @property
    def passes(self) -> int:
        return 1 if self.rows_in_memory else self.rows.passes

    @property
    def place(self) -> str:
        return (self.target or self.store or NotKept).place

    @property
    def largest(self) -> float:
        return self.rows.summary.largest

    def plan(self, K: int, solver: str, backend: str, *, chunk_rows: int | None, **asked) -> Plan:
        rows, ranks = self.rows, self.rows.ranks
        like = torch.empty(0, dtype=rows.dtype, device=rows.device)
        chosen = plan.choose(
            # of a process, on average
            -(-rows.n // ranks.size),
            rows.d,
            K,
            like.itemsize,
            solver,
            chunk_rows=rows.chunk_rows,
            on=memory.machine_of(like, backend),
            streams=not rows.resident,
            processes=ranks.size,
            **asked,
        )
        # the same in all of them, but for the pieces
        return replace(ranks.gather(chosen)[0], piece_rows=chosen.piece_rows)

    def start(self, K: int, init: Any, generator: Generator | None) -> tuple[Store, Tensor]:
        D = start(self.rows, self.store, K, init, generator or self.rows.ranks.generator())
        self.rows.ranks.share_(D)
        return self.resume(self.store, D)

    def resume(self, Z: Store | None, D: Tensor) -> tuple[Store, Tensor]:
        """Codes and dictionary to go on from, Z where they are kept."""
        if Z is not None:
            return Z, D
        encoder = self.encoder(D)
        return NotKept(lambda X: encoder.encode(X, None)[0]), D

    def measure(self, Z: Store, D: Tensor, chosen: Plan, penalty: Penalty) -> Measured:
        mean = self.rows.summary.columns.to(D) / self.rows.n
        sums = torch.zeros(3, dtype=torch.float64, device=D.device)

        def pieces() -> Iterator[Tensor]:
            for X, codes, _ in self.rows.pieces(Z, chosen.piece_rows, save=False):
                sums[0] += squared_norm(torch.addmm(X, codes, D, alpha=-1))
                sums[1] += squared_norm(X - mean)
                sums[2] += penalty.value(codes)
                yield codes

        codes = describe_pieces(pieces(), D, self.rows.ranks)
        self.rows.ranks.sum_(sums)
        error, spread, penalties = sums.tolist()
        whole = self.rows.squared_data
        return Measured(error, whole, r_squared_about(spread, error, whole), codes, penalties)

    def keep(self, Z: Store) -> None:
        """Bring the codes where they are to be."""
        if self.target is not None:
            copy_rows(Z, self.target)

    def codes(self, Z: Store) -> Tensor | None:
        """The codes for the caller, after all is done."""
        if self.store is None:
            return None
        in_memory = isinstance(Z, InMemory) and self.target is None
        return Z.Z if in_memory else mapped(Path(self.place))


def shape_of(taken: Rows | tuple[Source, Summary]) -> tuple[int, torch.dtype]:
    """The number of rows, and the dtype to compute in."""
    if isinstance(taken, Rows):
        return taken.n, taken.dtype
    return taken[1].n, taken[1].dtype


@dataclass(frozen=True)
class Taking:
    """How data are taken: by whom they are read, where they go, and within which bytes.

    asked: bytes that the process may grow by, or None for what is free. chunk_rows: rows in hand at
    most. codes: where what is computed of them goes: 'memory', None, or a file. checkpoint: another
    file that is written, or None. sharing: processes that share what is free. revives: whether idle
    concepts are given rows.
    """

    ahead: Ahead
    device: torch.device
    asked: int | None
    chunk_rows: int | None
    codes: Path | str | None
    checkpoint: Path | None = None
    sharing: int = 1
    revives: bool = False

    def take(self, A: Any, K: int, start: str = "random", **wanted: Any):
        """Rows, or what source.take gives for data that do not fit."""
        limit = self._limit()

        def keep(n: int, d: int, dtype: torch.dtype, copied: int, given: bool) -> bool:
            # what is in memory already is used there, as long as nobody asks for less
            if given and self.asked is None:
                return True
            return self._needs(n, d, K, dtype, start).resident(copied) <= limit

        for file in (self.codes, self.checkpoint):
            read = A.paths if isinstance(A, Shards) else paths_of(A) or ()
            for path in map(Path, read if isinstance(file, Path) else ()):
                # a new file in a folder would be one of its shards the next time
                if path.resolve() in (file, file.parent):
                    raise InvalidInput(f"{file} is to be written, but {path} is read; give another")
        return take(A, self.ahead, keep=keep, device=self.device, **wanted)

    def stream(
        self,
        source: Source,
        summary: Summary,
        K: int,
        start: str,
        most=None,
        ranks=ALONE,
        whole=None,
        first=0,
        resident=False,
    ) -> Stream:
        """The rows of a source in chunks that fit, of `most` rows at most. whole: the Summary of
        all ranks' rows, among which those of the source begin at `first`; None: these are all.
        resident: see Stream."""
        whole, here = whole or summary, slice(first, first + summary.n)
        needs = self._needs(max(1, summary.n), whole.d, K, whole.dtype, start, whole.n)
        wanted = min((rows for rows in (self.chunk_rows, most) if rows), default=None)
        gpu = self.device.type == "cuda"
        rows = needs.chunk_rows(self._limit(), wanted, asked=self.asked is not None, gpu=gpu)
        squares = summary.squares
        return Stream(source, whole, self.ahead, self.device, rows, ranks, here, squares, resident)

    @contextmanager
    def store(self, shape: tuple[int, int], dtype: torch.dtype) -> Iterator[InMemory | OnDisk]:
        """Where rows of this shape go."""
        if isinstance(self.codes, Path):
            with written(self.codes, shape, dtype) as store:
                yield store
        else:
            yield self._in_memory(shape, dtype)

    def _in_memory(self, shape: tuple[int, int], dtype: torch.dtype) -> InMemory:
        return InMemory(torch.empty(shape, dtype=dtype, device=self.device))

    def through(
        self,
        taken: Rows | tuple[Source, Summary],
        make: Callable[[slice, Tensor], Tensor],
        K: int,
        most: int | None = None,
    ) -> Tensor:
        """make(part, X) (m, K) of all rows, `most` together at most, in memory or a map of its
        file."""
        if isinstance(taken, Rows):
            n, dtype, chunks = taken.n, taken.dtype, taken.chunks(most or budget.LEAST_ROWS)
        else:
            stream = self.stream(*taken, K, "random", most)
            n, dtype, chunks = stream.n, stream.dtype, ((p, X) for p, X, _ in stream.chunks())
        with self.store((n, K), dtype) as store:
            for part, X in chunks:
                store.save(part, make(part, X))
        return store.Z if isinstance(store, InMemory) else mapped(Path(store.place))

    @contextmanager
    def for_fit(
        self, A: Any, K: int, init: Any, encoder, ranks: Ranks = ALONE, **wanted: Any
    ) -> Iterator[Resident | Streamed]:
        """A as what a fit asks of its data; a file for the codes is in its place at the end. Where
        A is the rows of one of several ranks, they are read as those that do not fit. wanted: as
        for take."""
        name = init if isinstance(init, str) else "given"
        # whichever start is taken, it has room
        name = "nndsvda" if name == "auto" else name
        with ExitStack() as stack:
            with ranks.agreed():
                # what is read as a stream is widened as it comes
                narrow = ranks.alone and self.codes is not None
                empty = not ranks.alone
                taken = self.take(A, K, name, empty=empty, narrow=narrow, **wanted)
            yield self._for_fit(taken, K, init, encoder, ranks, stack)

    def _for_fit(self, taken, K: int, init: Any, encoder, ranks: Ranks, stack: ExitStack):
        resident = isinstance(taken, Rows) and self._has_room(taken, K)
        if isinstance(taken, Rows):
            taken = Rows(taken.A.detach())
            if ranks.alone and self.codes is not None:
                shape, dtype = (taken.n, K), taken.dtype
                on_disk = isinstance(self.codes, Path)
                target = stack.enter_context(self.store(shape, dtype)) if on_disk else None
                return Resident(taken, target)
            taken = summarise(taken)
        source, summary = taken
        summaries, everywhere = zip(
            *ranks.gather((summary, resident or summary.n == 0)), strict=True
        )
        whole, first = joined(summaries), sum(part.n for part in summaries[: ranks.rank])
        start = resolve(init, whole.n, whole.d, K)
        with ranks.agreed():
            # where all is in memory, the fit is as that of one process which has all
            kept = all(everywhere) and self.codes is not None and not ranks.alone
            kept = kept and len({part.dtype for part in summaries if part.n}) == 1
            shared = {"ranks": ranks, "whole": whole, "first": first, "resident": kept}
            stream = self.stream(source, summary, K, start, **shared)
            store = target = None
            if self.codes is not None:
                store = stack.enter_context(self.store((stream.n_here, K), stream.dtype))
            if kept and isinstance(store, OnDisk):
                target, store = store, self._in_memory(store.shape, store.dtype)
        return Streamed(stream, store, encoder, target)

    def _has_room(self, rows: Rows, K: int) -> bool:
        """Whether the device has room for codes, their copies and a residual beside the rows."""
        free = memory.free_bytes(self.device)
        return free is None or rows.n * (rows.d + 3 * K) * rows.dtype.itemsize < 0.8 * free

    def _needs(
        self, n: int, d: int, K: int, dtype: torch.dtype, start: str, of_all: int | None = None
    ) -> Needs:
        codes = "none" if self.codes is None else "memory" if self.codes == "memory" else "file"
        return Needs(n, d, K, dtype.itemsize, codes, start, of_all, self.revives)

    def _limit(self) -> int:
        asked = budget.available() // self.sharing if self.asked is None else self.asked
        free = memory.free_bytes(self.device)
        return asked if free is None else min(asked, int(0.9 * free))
