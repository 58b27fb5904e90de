"""Data that are read in every pass: chunks brought to the device ahead of their use, with the codes
that belong to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .ahead import Ahead
from .budget import give_back
from .ranks import Ranks
from .rows import Rows
from .source import Source, Summary, chunks_of, held_by
from .store import NotKept, OnDisk, Store, row_blocks

# chunks after which what was freed is given back: the next ones would use it, and taking it anew
# for each of them made fits up to 5 % slower
_GIVEN_BACK = 8


class Stream:
    """A (n, d), checked, of which chunk_rows rows are in hand and as many are being read.

    here: which rows of A this process has; the others' are with the other ranks. summary: of all.
    resident: all rows are in memory, and so may be a residual (n, d). squared_data: ‖A‖²,
    squared_here: of the rows here. passes: how often all rows were read, the checks included.
    """

    def __init__(
        self,
        source: Source,
        summary: Summary,
        ahead: Ahead,
        device: torch.device,
        chunk_rows: int,
        ranks: Ranks,
        here: slice,
        squared_here: float,
        resident: bool = False,
    ) -> None:
        self.n, self.d, self.dtype = summary.n, summary.d, summary.dtype
        self.squared_data, self.squared_here = summary.squares, squared_here
        self.summary = summary
        self.ranks, self.first, self.n_here = ranks, here.start, here.stop - here.start
        self.device = device
        self.passes, self.resident = 1, resident
        self._source, self._ahead = source, ahead
        # all rows here (n, d), where they are in memory
        none = torch.empty(0, self.d, dtype=self.dtype, device=device)
        self.A = held_by(source, self.dtype, device) if self.n_here else none
        self.take_chunks(chunk_rows)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def take_chunks(self, rows: int) -> None:
        """From now on have so many rows in hand."""
        self.chunk_rows = rows
        self._rooms = [] if self.A is not None else [self._room(), self._room()]

    def chunks(
        self, codes: Store | None = None, save: bool = True
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """One pass: (which of the rows here, X, their codes) on the device; what became of the
        codes is kept unless save is False. A chunk is valid until the next one is asked for."""
        chunks = self._read(codes, save)
        # what is in memory need not be waited for
        waits = self.A is None or isinstance(codes, OnDisk)
        for part, (room, host), loaded in self._ahead(chunks) if waits else chunks:
            X = self._on_device(room, host)
            Z = None if codes is None else self._codes(codes, X, loaded)
            yield part, X, Z
            if isinstance(codes, OnDisk):
                done = (codes.save, part, Z.cpu()) if save else (codes.let_go, part)
                self._ahead.later(*done)
        self._ahead.settle()
        self.passes += 1

    def pieces(
        self, codes: Store | None, piece_rows: int, save: bool = True, E: Tensor | None = None
    ) -> Pieces:
        """What the engine goes through in each iteration. E (n, d): where the residual is kept."""
        return Pieces(self, codes, piece_rows, save, E)

    def _read(self, codes: Store | None, save: bool) -> Iterator:
        """In the thread: a chunk, the room it is in, and its codes as they are stored."""
        load = _loading(codes, save)
        if self.A is not None:
            for part in row_blocks(self.n_here, self.chunk_rows):
                yield part, (None, self.A[part]), load(part)
            return
        turn = -1

        def room() -> Tensor:
            nonlocal turn
            turn = (turn + 1) % 2
            if self._rooms[turn].copied is not None:
                self._rooms[turn].copied.synchronize()
            return self._rooms[turn].host

        chunks = chunks_of(self._source, self.chunk_rows, room)
        for number, (part, host) in enumerate(chunks):
            if number % _GIVEN_BACK == 0:
                give_back()
            yield part, (self._rooms[turn], host), load(part)

    def _room(self) -> _Room:
        pinned = self.device.type == "cuda"
        shape = self.chunk_rows, self.d
        return _Room(torch.empty(shape, dtype=self.dtype, pin_memory=pinned))

    def _on_device(self, room: _Room | None, host: Tensor) -> Tensor:
        """The chunk where it is computed with; the room may be filled again when `copied`."""
        if self._copies is None or room is None:
            return host.to(self.device)
        here = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            X = host.to(self.device, non_blocking=True)
            room.copied = self._copies.record_event()
        here.wait_event(room.copied)
        X.record_stream(here)
        return X

    def _codes(self, codes: Store, X: Tensor, loaded: Tensor | None) -> Tensor:
        return codes.encode(X) if isinstance(codes, NotKept) else loaded.to(self.device)


def _loading(codes: Store | None, save: bool) -> Callable[[slice], Tensor | None]:
    """What gives the codes of a chunk as they are stored."""
    if isinstance(codes, OnDisk):
        return functools.partial(codes.hold, writes=save)
    return lambda part: None if codes is None else codes.load(part)


@dataclass
class _Room:
    """Memory for a chunk, and the event after which its copy to the device is complete."""

    host: Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class Pieces:
    """X (m, d), its codes (m, K) and its residual, if it is kept, of each piece of rows; read anew
    every time."""

    stream: Stream
    codes: Store | None
    piece_rows: int
    save: bool = True
    E: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for part, X, Z in self.stream.chunks(self.codes, self.save):
            E = None if self.E is None else self.E[part]
            for i in range(0, len(X), self.piece_rows):
                rows = slice(i, i + self.piece_rows)
                yield X[rows], *(None if M is None else M[rows] for M in (Z, E))


def pieces_of(
    rows: Rows | Stream,
    codes: Tensor | Store | None,
    piece_rows: int | None = None,
    save: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """X (m, d), widened, and its codes (m, K) if there are any, of each piece of the rows here.
    piece_rows: None is as many as there are in hand. save: whether what becomes of the codes is
    kept; else they are to be read only."""
    if isinstance(rows, Stream):
        pieces = rows.pieces(codes, piece_rows or rows.chunk_rows, save)
        return ((X, Z) for X, Z, _ in pieces)
    chunks = rows.chunks(piece_rows)
    return ((X, None if codes is None else codes[part]) for part, X in chunks)
