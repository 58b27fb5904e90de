"""The order of what happens on streams: what a stream or the host reads or overwrites must have
been written, and read, before; an event that is waited for, or a synchronisation, says so.

Each stream counts what is launched on it, and knows how far each other had come at what it has
waited for. Use of memory is ordered if the stream knows of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from .waits import here

# how far each stream had come, by its number
Seen = dict[int, int]


class Unordered(RuntimeError):
    """Memory is used before what must come first has ended, or is known to end."""


def merge_(seen: Seen, other: Seen) -> None:
    for number, launches in other.items():
        seen[number] = max(seen.get(number, 0), launches)


@dataclass(eq=False)
class Stream:
    """A stream: its number, what was launched on it, and what that comes after."""

    number: int
    launches: int = 0
    seen: Seen = field(default_factory=dict)

    def reached(self) -> Seen:
        """All that has ended once everything on this stream has."""
        return {**self.seen, self.number: self.launches}


@dataclass(eq=False)
class Block:
    """The memory of a storage, and its uses: on the device, or pinned on the host.

    home: the number of the stream it was allocated on. written, read: the last use by each stream,
    as (number, launches). shared: streams that record_stream named.
    """

    order: Order
    address: int
    bytes: int
    home: int
    on_device: bool
    pinned: bool = False
    written: tuple[int, int] | None = None
    read: Seen = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)

    def __del__(self) -> None:
        self.order.freed(self)


@dataclass(frozen=True, eq=False)
class _Copy:
    """A copy from pinned memory that the host does not know the end of: its source now and then."""

    source: torch.Tensor
    values: torch.Tensor
    stream: int
    launches: int

    def unchanged(self) -> bool:
        now, then = (X.contiguous().view(-1).view(torch.uint8) for X in (self.source, self.values))
        return torch.equal(now, then)


class Order:
    """The streams of a device, and the host, which launches on them.

    faults: what was freed while another stream used it, which nobody can be told of by raising.
    """

    def __init__(self, memory) -> None:
        self._memory = memory
        self.streams: list[Stream] = []
        self.default = self.new_stream()
        self.host: Seen = {}
        self.faults: list[str] = []
        self._blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        self._copies: list[_Copy] = []

    def new_stream(self) -> Stream:
        self.streams.append(Stream(len(self.streams)))
        return self.streams[-1]

    def block(self, storage, stream: Stream, *, on_device: bool) -> Block:
        """The record of a storage; a new one is allocated on the stream."""
        found = getattr(storage, "block", None)
        if found is None or found.order is not self:
            found = storage.block = Block(
                self, storage.data_ptr(), storage.nbytes(), stream.number, on_device
            )
            if on_device:
                try:
                    self._memory.add(found.bytes)
                    self._blocks.add(found)
                except RuntimeError:
                    found.on_device = False
                    raise
        return found

    def at(self, address: int, bytes_: int) -> Block:
        """The memory of the device that bytes at an address are in. Raises LookupError for others,
        and for memory that was freed."""
        for block in list(self._blocks):
            if block.address <= address and address + bytes_ <= block.address + block.bytes:
                return block
        raise LookupError(f"{bytes_} bytes at {address:#x} are not on the device, or were freed")

    def freed(self, block: Block) -> None:
        if not block.on_device:
            return
        self._memory.remove(block.bytes)
        # the next that is allocated on its stream may get this memory at once
        home = self.streams[block.home].reached()
        merge_(home, self.host)
        used = [*block.read.items(), *([block.written] if block.written else [])]
        for number, launches in used:
            if number not in block.shared and home.get(number, 0) < launches:
                self.faults.append(
                    f"memory of stream {block.home} was freed while stream {number} used it"
                )

    def launch(
        self, stream: Stream, reads: Iterable[Block], writes: Iterable[Block], what: str
    ) -> None:
        """Use memory on a stream. Raises Unordered."""
        merge_(stream.seen, self.host)
        stream.launches += 1
        seen = stream.reached()
        writes = list(writes)
        for block in (*reads, *writes):
            self._check_written(block, seen, what)
        for block in writes:
            self._check_read(block, seen, what)
            block.written, block.read = (stream.number, stream.launches), {}
        for block in reads:
            block.read[stream.number] = stream.launches

    def on_host(self, reads: Iterable[Block], writes: Iterable[Block], what: str) -> None:
        """Use pinned memory on the host. Raises Unordered."""
        writes = list(writes)
        for block in (*reads, *writes):
            self._check_written(block, self.host, what)
        for block in writes:
            self._check_read(block, self.host, what)

    def copies_from(self, source: torch.Tensor, stream: Stream) -> None:
        """Remember what a copy on the stream reads from pinned memory."""
        self._copies.append(_Copy(source, source.clone(), stream.number, stream.launches))

    def host_waits(self, reached: Seen) -> None:
        """Let the host know that all this has ended. Raises Unordered where the source of a copy
        was overwritten before, in a way that is not seen when it happens."""
        merge_(self.host, reached)
        ended = [copy for copy in self._copies if self.host.get(copy.stream, 0) >= copy.launches]
        self._copies = [copy for copy in self._copies if copy not in ended]
        if not all(copy.unchanged() for copy in ended):
            raise Unordered("pinned memory was overwritten while it was copied to the device")

    def finish(self) -> None:
        """Raise Unordered for what was not seen when it happened."""
        copies, self._copies = self._copies, []
        if not all(copy.unchanged() for copy in copies):
            raise Unordered("pinned memory was overwritten while it was copied to the device")
        if self.faults:
            raise Unordered("; ".join(self.faults))

    def _check_written(self, block: Block, seen: Seen, what: str) -> None:
        if block.written is not None and seen.get(block.written[0], 0) < block.written[1]:
            raise Unordered(
                f"{what} at {here()} uses what stream {block.written[0]} may not have written yet"
            )

    def _check_read(self, block: Block, seen: Seen, what: str) -> None:
        for number, launches in block.read.items():
            if seen.get(number, 0) < launches:
                raise Unordered(
                    f"{what} at {here()} overwrites what stream {number} may not have read yet"
                )
