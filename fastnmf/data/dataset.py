"""Data: A (n, d), checked, as everything else sees it: in memory (one chunk) or read in every pass
(many), all of it or the rows of one of several processes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributed import ALONE, Processes
from ..numerics import compute_dtype, squared_norm, wide_pieces
from ..planning.memory import Budget
from .arrays import Expected, read_matrix
from .prefetch import Prefetcher
from .sources import Source, Summary, chunks_of, held_by, joined, open_source, summarise
from .storage import InMemory, NotKept, OnDisk, Storage, row_blocks

# chunks after which freed memory is returned to the system: the next ones would use it, and taking
# it anew for each of them made fits up to 5 % slower
_RETURNED_AFTER = 8
# entries whose sum is taken at a time
_SUMMED = 1 << 20

Tile = tuple[Tensor, Tensor | None, Tensor | None]


class Data:
    """A (n, d), checked and on its device, of which a process may have a part.

    n, d, dtype: of all rows; dtype is that of computing. A: the rows here, where they are in memory;
    16-bit numbers may stay as they are, and are to be widened where they are computed with.
    resident: whether all rows, of all processes, are in memory, and so may be a residual (n, d).
    first, n_here: which rows of A this process has. chunk_rows: rows of a chunk. passes: how often
    all rows were read, the checks included.
    """

    def __init__(self, A: Tensor) -> None:
        """Data of one process, all in memory."""
        (self.n, self.d), self.dtype, self.device = A.shape, compute_dtype(A), A.device
        self.A: Tensor | None = A
        self.processes, self.first, self.n_here = ALONE, 0, self.n
        self.resident, self.passes, self.chunk_rows = True, 1, self.n
        self._summary: Summary | None = None

    @classmethod
    def of_source(
        cls,
        source: Source,
        summaries: tuple[Summary, ...],
        budget: Budget,
        prefetch: Prefetcher,
        processes: Processes = ALONE,
        *,
        resident: bool = False,
    ) -> Data:
        """Data whose rows here are those of a source, in chunks that fit. summaries: of the rows of
        each process."""
        self, whole = cls.__new__(cls), joined(summaries)
        summary = summaries[processes.rank]
        self.n, self.d, self.dtype, self.device = whole.n, whole.d, whole.dtype, budget.device
        self.processes, self.n_here = processes, summary.n
        self.first = sum(part.n for part in summaries[: processes.rank])
        self.resident, self.passes = resident, 1
        self._summary, self._squares_here = whole, summary.squares
        self._source, self._prefetch, self._budget = source, prefetch, budget
        none = torch.empty(0, self.d, dtype=self.dtype, device=self.device)
        self.A = held_by(source, self.dtype, self.device) if self.n_here else none
        self._buffers, self.chunk_rows = [], 0
        self.limit_chunks(None)
        gpu = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if gpu else None
        return self

    @property
    def in_one_piece(self) -> bool:
        """Whether all rows are in memory and of this process."""
        return self.resident and self.processes.alone

    @functools.cached_property
    def squared_norm(self) -> Tensor | float:
        """‖A‖² of all rows: a float64 scalar on the device where they are in memory."""
        return squared_norm(self.A) if self._summary is None else self._summary.squares

    @property
    def squared_norm_here(self) -> float:
        """‖A‖² of the rows here."""
        return float(self.squared_norm) if self._summary is None else self._squares_here

    @functools.cached_property
    def largest(self) -> float:
        """The largest entry."""
        return float(self.A.amax()) if self._summary is None else self._summary.largest

    @property
    def mean(self) -> Tensor:
        """The mean entry."""
        if self._summary is not None:
            return self.like.new_tensor(self._summary.mean)
        shares = [part.mean() * (len(part) / self.n) for part in wide_pieces(self.A)]
        return torch.stack(shares).sum()

    @property
    def mean_row(self) -> Tensor:
        """The mean of all rows (d,), in float64."""
        if self._summary is not None:
            return self._summary.columns.to(self.device) / self.n
        # torch takes sums of all of A in float64 from a copy
        parts = self.A.split(max(1, _SUMMED // self.d))
        return sum(part.sum(0, dtype=torch.float64) for part in parts) / self.n

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of computing."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def limit_chunks(self, most: int | None) -> None:
        """Have chunks of as many rows as fit in memory, `most` at most."""
        if self._summary is None:
            self.chunk_rows = min(self.n, most or self.n)
        else:
            sizes = self.n_here, self.d, self.dtype, self.n
            self.take_chunks(self._budget.rows(*sizes, most))

    def take_chunks(self, rows: int) -> None:
        """From now on read that many rows at a time."""
        self.chunk_rows, self._buffers = rows, []

    def chunks(
        self, codes: Storage | None = None, save: bool = True
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """One pass: (which of the rows here, X, their codes) on the device, X widened; what became
        of the codes is kept unless save is False. A chunk is valid until the next one is asked for.
        Codes that are not kept are None."""
        if self._summary is None:
            yield from self._chunks_in_memory(codes)
            return
        chunks = self._read(codes, save)
        # what is in memory need not be waited for
        waits = self.A is None or isinstance(codes, OnDisk)
        for part, (buffer, host), loaded in self._prefetch(chunks) if waits else chunks:
            X = self._on_device(buffer, host)
            Z = None if loaded is None else loaded.to(self.device)
            yield part, X, Z
            if isinstance(codes, OnDisk):
                done = (codes.save, part, Z.cpu()) if save else (codes.release, part)
                self._prefetch.later(*done)
        if waits:
            self._prefetch.settle()
        self.passes += 1

    def _chunks_in_memory(
        self, codes: Storage | None
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Views, or of 16-bit numbers as many rows as may be widened at a time."""
        first = 0
        for rows in self.A.split(self.chunk_rows):
            for X in wide_pieces(rows):
                part = slice(first, first + len(X))
                first = part.stop
                yield part, X, None if codes is None else codes.load(part)

    def tiles(
        self,
        codes: Storage | None,
        rows: int | None = None,
        *,
        save: bool = False,
        E: Tensor | None = None,
    ) -> Iterable[Tile]:
        """X (m, d), its codes (m, K) and its part of E (n, d), where they are given, of each `rows`
        rows here; None is as many as a chunk has. Views of what is in memory, X as it is stored; of
        a stream read anew in every pass. save: whether what becomes of the codes is kept."""
        if not self.in_one_piece or not isinstance(codes, InMemory | None):
            return _Tiles(self, codes, rows or self.chunk_rows, save, E)
        Z = None if codes is None else codes.Z
        parts = row_blocks(self.n, rows or self.n)
        return [tuple(None if M is None else M[part] for M in (self.A, Z, E)) for part in parts]

    def _read(self, codes: Storage | None, save: bool) -> Iterator:
        """In the thread: a chunk, the buffer it is in, and its codes as they are stored."""
        load = _loading(codes, save)
        if self.A is not None:
            for part in row_blocks(self.n_here, self.chunk_rows):
                yield part, (None, self.A[part]), load(part)
            return
        turn = -1
        self._buffers = self._buffers or [self._buffer(), self._buffer()]

        def buffer() -> Tensor:
            nonlocal turn
            turn = (turn + 1) % 2
            if self._buffers[turn].copied is not None:
                self._buffers[turn].copied.synchronize()
            return self._buffers[turn].host

        chunks = chunks_of(self._source, self.chunk_rows, buffer)
        for number, (part, host) in enumerate(chunks):
            if number % _RETURNED_AFTER == 0:
                return_memory()
            yield part, (self._buffers[turn], host), load(part)

    def _buffer(self) -> _Buffer:
        pinned = self.device.type == "cuda"
        shape = self.chunk_rows, self.d
        return _Buffer(torch.empty(shape, dtype=self.dtype, pin_memory=pinned))

    def _on_device(self, buffer: _Buffer | None, host: Tensor) -> Tensor:
        """The chunk where it is computed with; the buffer may be filled again when `copied`."""
        if self._copies is None or buffer is None:
            return host.to(self.device)
        here = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            X = host.to(self.device, non_blocking=True)
            buffer.copied = self._copies.record_event()
        here.wait_event(buffer.copied)
        X.record_stream(here)
        return X


@contextmanager
def opened(
    A: Any, expected: Expected, budget: Budget, processes: Processes = ALONE
) -> Iterator[Data]:
    """A as Data, with the thread that reads ahead until the end of the context. Where A is the rows
    of one of several processes, or its codes are not kept, it is gone through in chunks also where
    it is in memory."""
    with Prefetcher() as prefetch:
        with processes.agreed():
            found = open_source(A, expected, budget, prefetch)
        matrix = found.detach() if isinstance(found, Tensor) else None
        if matrix is not None and processes.alone and budget.codes != "none":
            yield Data(matrix)
            return
        source, summary = found if matrix is None else summarise(matrix)
        here = summary.n == 0 or (matrix is not None and budget.has_room_beside(matrix))
        summaries, everywhere = zip(*processes.gather((summary, here)), strict=True)
        # where all is in memory, the fit is as that of one process which has all
        resident = not processes.alone and all(everywhere) and budget.codes != "none"
        resident = resident and len({part.dtype for part in summaries if part.n}) == 1
        joined(summaries)
        with processes.agreed():
            given = source, summaries, budget, prefetch, processes
            data = Data.of_source(*given, resident=resident)
        yield data


def in_memory(A: Any, device: torch.device, expected: Expected = Expected()) -> Data:
    """A, which is in memory or fits there, as Data."""
    return Data(read_matrix(A, device, expected))


def _loading(codes: Storage | None, save: bool) -> Callable[[slice], Tensor | None]:
    """What gives the codes of a chunk as they are stored."""
    if isinstance(codes, OnDisk):
        return functools.partial(codes.map_rows, writes=save)
    return lambda part: None if codes is None or isinstance(codes, NotKept) else codes.load(part)


@dataclass
class _Buffer:
    """Memory for a chunk, and the event after which its copy to the device is complete."""

    host: Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Tiles:
    """The tiles of data that are read in passes: read anew every time they are gone through."""

    data: Data
    codes: Storage | None
    rows: int
    save: bool
    E: Tensor | None

    def __iter__(self) -> Iterator[Tile]:
        for part, X, Z in self.data.chunks(self.codes, self.save):
            E = None if self.E is None else self.E[part]
            for i in range(0, len(X), self.rows):
                tile = slice(i, i + self.rows)
                yield tuple(None if M is None else M[tile] for M in (X, Z, E))


def return_memory() -> None:
    """Return freed memory to the system: glibc keeps blocks of up to 32 MB, and a process had grown
    by up to three times what was in use at once."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """malloc_trim, which glibc alone has."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
