"""The pretended device: what it is like, what happened on it, and that torch takes it for a GPU."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from tape import tensors, written
from torch.utils._python_dispatch import _disable_current_modes

from . import launches, stand_ins
from .guard import set_guard
from .memory import Memory
from .order import Order, Stream
from .tensors import Mode, OnCuda
from .waits import Crossed, Wait, here


@dataclass(frozen=True)
class Card:
    """torch.cuda.get_device_properties: those of an H200."""

    name: str = "pretended H200"
    total_memory: int = 141 << 30
    multi_processor_count: int = 132
    major: int = 9
    minor: int = 0
    L2_cache_size: int = 50 << 20
    shared_memory_per_block_optin: int = 227 << 10
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    warp_size: int = 32
    gcnArchName: str = ""


class Device:
    """What happened on a pretended device since it was made.

    waits: each time the host waited. crossed: what was copied to the host. launched: operations of
    torch and kernels of Triton, in order. memory, order: as in their modules. generators: the
    addresses of generators on the device; generator: its own.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.memory = Memory(card.total_memory)
        self.order = Order(self.memory)
        self.waits: list[Wait] = []
        self.crossed: list[Crossed] = []
        self.launched: list[str] = []
        self.generators: set[int] = set()
        self.generator = stand_ins.generator_on(self)
        self.capture: stand_ins.Graph | None = None
        self._streams = threading.local()

    @property
    def stream(self) -> Stream:
        """The current stream of this thread."""
        return getattr(self._streams, "now", self.order.default)

    @stream.setter
    def stream(self, stream: Stream) -> None:
        self._streams.now = stream

    def is_pinned(self, X: torch.Tensor) -> bool:
        block = getattr(X.untyped_storage(), "block", None)
        return block is not None and block.pinned

    def pin(self, X: torch.Tensor) -> None:
        block = self.order.block(X.untyped_storage(), self.stream, on_device=False)
        block.pinned = True

    def wait(self, what: str, reached=None) -> None:
        """Let the host wait for the current stream, or for what is given."""
        if self.capture is not None:
            raise RuntimeError(f"CUDA error: {what}: operation not permitted when capturing")
        self.waits.append(Wait(what, here()))
        self.order.host_waits(self.stream.reached() if reached is None else reached)

    def do(self, func, args, kwargs):
        """Compute on the CPU, and record what is computed while a graph is captured."""
        if self.capture is None:
            return func(*args, **kwargs)
        return self.capture.do(func, args, kwargs)

    def used(self, func, name, given, targets, out, wraps, crossing, pinned) -> None:
        """Note the memory that an operation used."""
        made = [X.untyped_storage() for X in out]
        if wraps:
            blocks = [self.order.block(s, self.stream, on_device=True) for s in made]
        else:
            blocks = []
        if func.is_view or "empty" in name or name in ("detach", "alias", "set_"):
            return
        self.launched.append(name)
        if self.capture is not None:
            return
        target_blocks = [self._block(X) for X in targets]
        writes = [block for block in (target_blocks or blocks) if block is not None]
        if crossing is not None and crossing.to_host and not targets and crossing.non_blocking:
            # torch makes the memory of such a copy pinned
            for X in out:
                self.pin(X)
            writes = [X.untyped_storage().block for X in out]
        reads = [self._block(X) for X in given if not any(X is one for one in targets)]
        reads = [block for block in reads if block is not None]
        blocks_there = [block for block in reads if block.on_device or block.pinned]
        self.order.launch(self.stream, blocks_there, writes, self._what(name))
        if crossing is not None and not crossing.to_host and self.is_pinned(crossing.source):
            with _disable_current_modes():
                self.order.copies_from(crossing.source, self.stream)
        if crossing is not None and (not crossing.non_blocking or not self._asynchronous(crossing)):
            self.order.host_waits(self.stream.reached())

    def on_host(self, func, args, kwargs) -> None:
        """Check an operation of the host on pinned memory."""
        given = tensors(args, kwargs)
        blocks = [(X, getattr(X.untyped_storage(), "block", None)) for X in given]
        if not any(block is not None and block.pinned for _, block in blocks):
            return
        targets = written(func, args, kwargs)
        pinned = [(X, block) for X, block in blocks if block is not None and block.pinned]
        writes = [block for X, block in pinned if any(X is one for one in targets)]
        reads = [block for X, block in pinned if not any(X is one for one in targets)]
        self.order.on_host(reads, writes, self._what(func.overloadpacket.__name__))

    def launch(self, kernel: str, given: list[OnCuda]) -> None:
        """Note a kernel, which may read and write all that it was given."""
        self.launched.append(kernel)
        if self.capture is None:
            blocks = [X.untyped_storage().block for X in given]
            self.order.launch(self.stream, [], blocks, self._what(kernel))

    def _block(self, X):
        if isinstance(X, OnCuda):
            return self.order.block(X.untyped_storage(), self.stream, on_device=True)
        block = getattr(X.untyped_storage(), "block", None)
        return block if block is not None and block.pinned else None

    def _asynchronous(self, crossing) -> bool:
        return crossing.to_host or self.is_pinned(crossing.source)

    def _what(self, name: str) -> str:
        return f"{name} on stream {self.stream.number}"


_now: list[Device] = []


def current() -> Device:
    if not _now:
        raise RuntimeError("no device is pretended here")
    return _now[-1]


@contextlib.contextmanager
def pretend(card: Card | None = None) -> Iterator[Device]:
    """Let torch find one CUDA device, which is pretended; raises Unordered at the end for memory
    that was freed or overwritten too early."""
    from fastnmf.backends import registry
    from fastnmf.backends import triton as triton_backend
    from fastnmf.engine import cuda_graph

    # torch.tensor(…, device="cuda") makes its tensor on the CPU, and then copies it
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    set_guard()
    device = Device(card or Card())
    cached = (registry._load, registry._probe_cuda, triton_backend.probe, cuda_graph._place)
    with pytest.MonkeyPatch.context() as patch:
        for forget in cached:
            forget.cache_clear()
        _now.append(device)
        try:
            stand_ins.install(patch, device)
            launches.install(patch, device)
            patch.setattr(threading.Thread, "run", _with_mode(threading.Thread.run))
            with Mode():
                yield device
            device.order.finish()
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            _now.remove(device)
            for forget in cached:
                forget.cache_clear()


def _with_mode(run):
    @functools.wraps(run)
    def run_with_mode(thread):
        with Mode():
            return run(thread)

    return run_with_mode
