"""torch.cuda, as far as a pretended device has it: properties, streams, events, generators and
graphs."""

from __future__ import annotations

import contextlib
import itertools

import torch
from tape import Tape
from torch.utils._python_dispatch import _disable_current_modes

from .order import Seen, Stream, merge_


class TorchStream:
    """torch.cuda.Stream. of: the stream of the device's order."""

    def __init__(self, device=None, priority=0, *, of: Stream | None = None) -> None:
        from .device import current

        self._device = current()
        self.of = of or self._device.order.new_stream()
        self.device = torch.device("cuda", 0)
        # where none is 0, the current stream is told from no stream
        self.cuda_stream = self.stream_id = self.of.number

    def wait_event(self, event: Event) -> None:
        merge_(self.of.seen, event.reached)

    def wait_stream(self, other: TorchStream) -> None:
        merge_(self.of.seen, other.of.reached())

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._device.wait("synchronize a stream", self.of.reached())

    def query(self) -> bool:
        return self._device.order.host.get(self.of.number, 0) >= self.of.launches

    def __enter__(self) -> TorchStream:
        self._outer = getattr(self, "_outer", [])
        self._outer.append(self._device.stream)
        self._device.stream = self.of
        return self

    def __exit__(self, *_) -> None:
        self._device.stream = self._outer.pop()

    def __eq__(self, other) -> bool:
        return isinstance(other, TorchStream) and other.of is self.of

    def __hash__(self) -> int:
        return hash(self.of.number)


class Event:
    """torch.cuda.Event. reached: what had been launched where it was recorded."""

    _clock = itertools.count()

    def __init__(self, *_, **__) -> None:
        from .device import current

        self._device, self.reached = current(), {}
        self._time = 0

    def record(self, stream: TorchStream | None = None) -> None:
        of = self._device.stream if stream is None else stream.of
        self.reached: Seen = of.reached()
        self._time = next(self._clock)

    def wait(self, stream: TorchStream | None = None) -> None:
        merge_((self._device.stream if stream is None else stream.of).seen, self.reached)

    def synchronize(self) -> None:
        """A wait, unless the host knows that what it stands for has ended."""
        self._device.wait("synchronize an event", self.reached)

    def query(self) -> bool:
        return all(self._device.order.host.get(n, 0) >= t for n, t in self.reached.items())

    def elapsed_time(self, other: Event) -> float:
        # milliseconds, of nothing
        return float(other._time - self._time)


class _AnyGenerator(type(torch._C.Generator)):
    def __instancecheck__(cls, found) -> bool:
        return isinstance(found, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=_AnyGenerator):
    """torch.Generator, also on the pretended device, where a seed gives other numbers."""

    def __new__(cls, device="cpu"):
        if torch.device(device).type != "cuda":
            return torch._C.Generator(device)
        from .device import current

        made = super().__new__(cls, "cpu")
        current().generators.add(made._cdata)
        return made

    def __init__(self, device="cpu") -> None:
        self.manual_seed(0)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def manual_seed(self, seed: int) -> Generator:
        self._seed = seed
        # the numbers of a seed are not those of the CPU
        super().manual_seed((seed * 0x9E3779B97F4A7C15 + 1) % 2**63)
        return self

    def initial_seed(self) -> int:
        return self._seed


def generator_on(device) -> Generator:
    made = torch._C.Generator.__new__(Generator, "cpu")
    device.generators.add(made._cdata)
    return made.manual_seed(0)


class Graph:
    """torch.cuda.CUDAGraph: what is launched while it captures is done at each replay only."""

    def __init__(self, *_, **__) -> None:
        from .device import current

        self._device, self._tape, self._capturing = current(), Tape(), None

    def capture_begin(self, pool=None, capture_error_mode="global") -> None:
        if self._device.stream is self._device.order.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        self._begin_()

    def _begin_(self) -> None:
        self._tape.begin()
        self._device.capture = self

    def capture_end(self) -> None:
        self._device.capture = None
        with _disable_current_modes():
            self._tape.end()

    def do(self, func, args, kwargs):
        with self._tape:
            return func(*args, **kwargs)

    def launch(self, kernel, given, options) -> None:
        self._tape.launch(kernel, given, options)

    def replay(self) -> None:
        with _disable_current_modes():
            self._tape.replay()

    def pool(self):
        return 0, id(self)

    def reset(self) -> None:
        self._tape = Tape()


def install(patch, device) -> None:
    """Put these in the place of torch's."""
    card, memory = device.card, device.memory

    def stream_of(_=None) -> TorchStream:
        return TorchStream(of=device.stream)

    def out_of_memory(_=None) -> tuple[int, int]:
        return memory.total - memory.live, memory.total

    @contextlib.contextmanager
    def place(_=None):
        yield

    def synchronize(_=None) -> None:
        reached: Seen = {}
        for stream in device.order.streams:
            merge_(reached, stream.reached())
        device.wait("synchronize the device", reached)

    functions = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_properties": lambda _=None: card,
        "get_device_capability": lambda _=None: (card.major, card.minor),
        "get_device_name": lambda _=None: card.name,
        "mem_get_info": out_of_memory,
        "memory_allocated": lambda _=None: memory.live,
        "memory_reserved": lambda _=None: memory.live,
        "max_memory_allocated": lambda _=None: memory.peak,
        "max_memory_reserved": lambda _=None: memory.peak,
        "reset_peak_memory_stats": lambda _=None: memory.reset_peak(),
        "empty_cache": lambda: None,
        "Stream": TorchStream,
        "Event": Event,
        "CUDAGraph": Graph,
        "current_stream": stream_of,
        "default_stream": lambda _=None: TorchStream(of=device.order.default),
        "stream": lambda stream: contextlib.nullcontext() if stream is None else stream,
        "synchronize": synchronize,
        "is_current_stream_capturing": lambda: device.capture is not None,
        "device": place,
        "device_of": place,
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed": lambda seed: device.generator.manual_seed(seed),
        "manual_seed_all": lambda seed: device.generator.manual_seed(seed),
    }
    for name, function in functions.items():
        patch.setattr(torch.cuda, name, function)
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch.Tensor, "pin_memory", lambda X, *_: torch.ops.aten._pin_memory(X))
    patch.setattr(torch.Tensor, "is_pinned", lambda X, *_: device.is_pinned(X))
