"""Data: A (n, d), checked, with one interface whether it is in memory (one chunk) or read in every
pass (many), whole or the rows of one of several processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backends.products import Matrix, dense_copy, largest, stored_share, take
from ..backends.sparse import SparseMatrix
from ..distributed import ALONE, Processes
from ..numerics import WIDENED_BYTES, compute_dtype, squared_norm, wide_tiles
from ..planning.memory import Budget, return_memory
from ..solvers.half_step import Operations
from .prefetch import Buffer, Copies, Prefetcher, minus_row
from .shards import Shards
from .sources import Source, chunks_of, rows_of, whole_matrix
from .sparse.rows import chunks_of as sparse_chunks
from .storage import Compressed, InMemory, OnDisk, Storage, TilesRead, loading, row_blocks
from .summary import Summary, joined, spread_about, squares_about

if TYPE_CHECKING:
    from .opening.first_pass import Drawing
    from .weights.entries import EntryWeights
    from .weights.read import EntriesRead
    from .weights.scaled import Scale

# chunks after which freed memory is returned to the system: after every chunk made fits up to 5 %
# slower, as the next one allocates it again
_RETURNED_AFTER = 8
# entries that are summed at a time
_SUMMED = 1 << 20
# of ‖A‖²: a spread below that is not computed as a difference
_LEAST_SPREAD = 1e-3


Tile = tuple[Matrix, Tensor | None, Tensor | None]


class Data:
    """A (n, d), checked; a process may have a part of its rows.

    n, d: of all rows. dtype, device: in which and on which they are computed with. A: the rows here
    if they are in memory, else None; 16-bit numbers may stay as they are stored. stored: the share
    of the entries that is stored where A is sparse, and all rows are SparseMatrices; else None.
    resident: whether all rows of all processes are in memory, so that a residual (n, d) may be as
    well. first, n_here: which rows of A this process has. chunk_rows: rows of a chunk, at most.
    passes: how often all rows were read, including the checks. offset: a row (d,) that chunks and
    tiles are minus, or None; what is written into it shows in the next one. Statistics are of A
    itself. scale: how rows and features were multiplied for their weights, or None. weights: of
    single entries, or None. With either, ‖A‖², the mean row and the spread about it are weighted:
    who sets it assigns these. drawing: rows that are drawn for a fit of a sample, or None.
    """

    _operations: Operations | None = None
    offset: Tensor | None = None
    scale: Scale | None = None
    weights: EntryWeights | EntriesRead | None = None
    drawing: Drawing | None = None

    def __init__(self, A: Matrix, largest: float | None = None) -> None:
        """Data in the memory of one process. largest: the property, where it is known."""
        (self.n, self.d), self.dtype, self.device = A.shape, compute_dtype(A), A.device
        self.A: Matrix | None = A
        self.processes, self.first, self.n_here = ALONE, 0, self.n
        self.resident, self.passes, self.chunk_rows = True, 1, self.n
        self._source: Source | None = None
        self._summary: Summary | None = None
        self.density = self.stored = stored_share(A)
        if isinstance(A, SparseMatrix):
            self._summary = Summary.of_sparse(A)
        elif largest is not None:
            self.largest = largest

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
        """Data whose rows here are those of a source, in chunks that fit the budget. summaries: of
        the rows of each process."""
        self, whole = cls.__new__(cls), joined(summaries)
        summary = summaries[processes.rank]
        self.n, self.d, self.dtype, self.device = whole.n, whole.d, whole.dtype, budget.device
        self.processes, self.n_here = processes, summary.n
        self.first = sum(part.n for part in summaries[: processes.rank])
        self.resident, self.passes = resident, 1
        self.density = self.stored = whole.share
        self._summary, self._squares_here = whole, summary.squares
        self._source, self._prefetch = source, prefetch
        self._sparse = self.stored is not None
        self._budget = budget
        none = torch.empty(0, self.d, dtype=self.dtype, device=self.device)
        self.A = whole_matrix(source, self.dtype, self.device) if self.n_here else none
        self._buffers, self.chunk_rows = [], 0
        self.limit_chunks(None)
        self._copy = Copies(self.device)
        return self

    def as_dense(self) -> Data:
        """A dense copy of sparse data in the memory of one process."""
        copy = Data(dense_copy(self.A))
        copy.density, copy.scale, copy.drawing = self.density, self.scale, self.drawing
        kept = {name: vars(self).get(name) for name in ("mean_row", "squared_spread")}
        vars(copy).update({name: value for name, value in kept.items() if value is not None})
        return copy

    def subtract(self, offset: Tensor | None) -> None:
        """Set the offset; rows of sparse data are then made dense, some at a time."""
        self.offset = offset
        if offset is not None and self.stored is not None:
            self.stored = None
            if self._source is not None:
                self.limit_chunks(None)

    @property
    def most_beside(self) -> int:
        """Rows of which a fit is within max_memory, beside the codes of these."""
        if self._source is None:
            return self.n
        most = self._budget.sample_beside(self.n_here, self.d, self.dtype, self.n)
        return self.n if most is None else most

    def compute_with(self, operations: Operations) -> None:
        """Compute products with sparse rows by these operations of a backend."""
        self._operations = operations
        if isinstance(self.A, SparseMatrix):
            self.A = self.A.using(operations)

    @property
    def in_memory_here(self) -> bool:
        """Whether all rows are in the memory of this process."""
        return self.resident and self.processes.alone

    @property
    def as_it_is(self) -> Tensor | None:
        """All rows, where they are in the memory of this process as `chunks` would yield them."""
        A = self.A if self.in_memory_here and self.offset is None else None
        return A if isinstance(A, Tensor) and A.dtype == self.dtype else None

    @functools.cached_property
    def squared_norm(self) -> Tensor | float:
        """‖A‖² of all rows: a float, or for data in memory a float64 scalar on the device."""
        return squared_norm(self.A) if self._summary is None else self._summary.squares

    @property
    def squared_norm_here(self) -> float:
        """‖A‖² of the rows here."""
        return float(self.squared_norm) if self._source is None else self._squares_here

    @functools.cached_property
    def largest(self) -> float:
        """The largest absolute value of an entry."""
        return float(largest(self.A)) if self._summary is None else self._summary.largest

    @property
    def mean(self) -> Tensor:
        """The mean entry."""
        if self._summary is not None:
            return self.like.new_tensor(self._summary.mean)
        shares = [part.mean() * (len(part) / self.n) for part in wide_tiles(self.A)]
        return torch.stack(shares).sum()

    @functools.cached_property
    def mean_row(self) -> Tensor:
        """The mean of all rows (d,), in float64: torch sums in it by a copy of a part at a time."""
        if self._summary is not None:
            return self._summary.columns.to(self.device) / self.n
        parts = self.A.split(max(1, _SUMMED // self.d))
        return sum(part.sum(0, dtype=torch.float64) for part in parts) / self.n

    @functools.cached_property
    def squared_spread(self) -> float:
        """‖A − its mean row‖², not as a difference of nearly equal numbers; but for data that are
        read in passes or shared, where less than 1e-7 of ‖A‖² is not told from rounding.
        Synchronises once."""
        mean = self.mean_row
        spread, total = spread_about(mean, self.n, self.squared_norm)
        if not self.in_memory_here or spread >= _LEAST_SPREAD * total:
            return spread
        return squares_about(mean.to(self.dtype), self.A, _SUMMED // self.d)

    @property
    def made_dense(self) -> bool:
        """Whether the data are sparse and in memory, and made dense when they are read."""
        return self.stored is None and isinstance(self.A, SparseMatrix)

    @property
    def squares_read(self) -> Tensor | float:
        """‖A − offset‖² for the best offset, ‖A‖² without one: of what chunks are at the start."""
        return self.squared_norm if self.offset is None else self.squared_spread

    @property
    def spread(self) -> float:
        """‖A − its mean row‖ / ‖A‖, from 0 to 1; at least 3e-4 for data that are read in passes or
        shared, where less is not told from rounding."""
        total, least = float(self.squared_norm), 0.0 if self.in_memory_here else 1e-7
        return max(self.squared_spread / total, least) ** 0.5 if total else 1.0

    @property
    def like(self) -> Tensor:
        """An empty tensor of this dtype on this device."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def limit_chunks(self, most: int | None) -> None:
        """Set chunk_rows to what fits in memory, `most` at most."""
        if self._source is None:
            self.chunk_rows = min(self.n, most or self.n)
        else:
            sizes = self.n_here, self.d, self.dtype, self.n
            self.take_chunks(replace(self._budget, stored=self.stored).rows(*sizes, most))

    def take_chunks(self, rows: int) -> None:
        """Set chunk_rows."""
        self.chunk_rows, self._buffers = rows, []

    @property
    def takes_rows(self) -> bool:
        """Whether any rows can be read, not only all of them in their order."""
        dense = self.stored is None and self.density is None
        return dense and (self.in_memory_here or isinstance(self._source, Shards))

    def take(self, numbers: Tensor) -> Tensor:
        """These rows (m,), where `takes_rows`, in this order, widened: a copy on the device."""
        if self._source is None:
            return take(self.A, numbers).to(self.dtype)
        return rows_of(self._source, numbers, self.dtype)

    def chunks(
        self, codes: Storage | None = None, save: bool = True, rows: int | None = None
    ) -> Iterator[tuple[slice, Matrix, Tensor | None]]:
        """Yield (part, X, Z) of each chunk in one pass over the rows here: X, widened, minus the
        offset, and their codes Z, or None if codes are not kept, on the device.

        Z may be changed in place, and is saved unless save is False. A chunk is valid until the
        next one is requested. rows: of a chunk that is a copy of data in memory, at most.
        """
        chunks = self._chunks(codes, save, rows)
        if self.offset is None:
            return chunks
        few = min(rows or self.n, max(1, WIDENED_BYTES // (self.d * self.dtype.itemsize)))
        return minus_row(chunks, self.offset, self.n if self.A is None else few)

    def _chunks(
        self, codes: Storage | None, save: bool, rows: int | None
    ) -> Iterator[tuple[slice, Matrix, Tensor | None]]:
        if self._source is None:
            yield from self._chunks_in_memory(codes, save, rows)
            return
        chunks = self._read(codes, save)
        # what is in memory is read without the thread
        waits = self.A is None or isinstance(codes, OnDisk)
        for part, (buffer, host), stored in self._prefetch(chunks) if waits else chunks:
            X = self._copy(buffer, host)
            # made dense here, not by the thread, which would read what is saved here
            stored = codes.load(part) if isinstance(codes, Compressed) else stored
            Z = None if stored is None else stored.to(self.device)
            yield part, X, Z
            if save and isinstance(codes, Compressed):
                codes.save(part, Z)
            if isinstance(codes, OnDisk):
                done = (codes.save, part, Z.cpu()) if save else (codes.release, part)
                self._prefetch.later(*done)
        if waits:
            self._prefetch.wait()
        self.passes += 1

    def _chunks_in_memory(
        self, codes: Storage | None, save: bool, most: int | None
    ) -> Iterator[tuple[slice, Matrix, Tensor | None]]:
        """Views, or of 16-bit numbers as many rows as may be widened at a time."""
        first = 0
        # codes that are made dense may have fewer rows at a time
        most = most if isinstance(codes, Compressed) else None
        blocks = row_blocks(self.n, min(self.chunk_rows, most or self.n))
        for number, rows in enumerate(blocks):
            if isinstance(codes, Compressed) and number % _RETURNED_AFTER == 0:
                return_memory()
            for X in wide_tiles(self.A[rows]):
                part = slice(first, first + len(X))
                first = part.stop
                Z = None if codes is None else codes.load(part)
                yield part, X, Z
                if save and isinstance(codes, Compressed):
                    codes.save(part, Z)

    def tiles(
        self,
        codes: Storage | None,
        rows: int | None = None,
        *,
        save: bool = False,
        E: Tensor | None = None,
    ) -> Iterable[Tile]:
        """(X (m, d), their codes (m, K), their part of E (n, d)) of tiles of up to `rows` rows, by
        default of a chunk; None for codes or E that are not given.

        Data in memory: views, X as it is stored. Read in passes, or minus an offset: read again
        whenever the tiles are iterated over, X widened; codes that are changed in place are saved
        if `save`.
        """
        copies = self.offset is not None or not self.in_memory_here
        if copies or not isinstance(codes, InMemory | None):
            return TilesRead(self, codes, rows or self.chunk_rows, save, E)
        Z = None if codes is None else codes.Z
        parts = row_blocks(self.n, rows or self.n)
        return [tuple(None if M is None else M[part] for M in (self.A, Z, E)) for part in parts]

    def _read(self, codes: Storage | None, save: bool) -> Iterator:
        """(part, (buffer, X), codes as they are stored) of each chunk; runs in the thread."""
        load = loading(codes, save)
        if self.A is not None:
            for part in row_blocks(self.n_here, self.chunk_rows):
                yield part, (None, self.A[part]), load(part)
            return
        if self._sparse:
            yield from self._read_sparse(load)
            return
        turn = -1
        like = self.like.new_empty(0, self.d)
        self._buffers = self._buffers or [Buffer.of(self.chunk_rows, like) for _ in range(2)]

        def buffer() -> Tensor:
            nonlocal turn
            turn = (turn + 1) % 2
            return self._buffers[turn].free()

        chunks = chunks_of(self._source, self.chunk_rows, buffer)
        for number, (part, host) in enumerate(chunks):
            if number % _RETURNED_AFTER == 0:
                return_memory()
            yield part, (self._buffers[turn], host), load(part)

    def _read_sparse(self, load: Callable[[slice], Tensor | None]) -> Iterator:
        parts = (values for values, _, _ in self._source.parts())
        for number, (part, X) in enumerate(sparse_chunks(parts, self.chunk_rows, self.dtype)):
            if number % _RETURNED_AFTER == 0:
                return_memory()
            yield part, (None, X.using(self._operations)), load(part)
