"""Processes that share a fit, each with rows of its own: sums over rows are sums over processes.
All uses of torch.distributed are here."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from .errors import InvalidInput

# the longest time that a process which waits for others handles no signals
_UNINTERRUPTED = timedelta(seconds=1)
# seconds that a process spins while it waits for others: to block and be woken takes as long as
# most collectives, and longer where no processor is free
_SPIN = 2e-3
_give_way = getattr(os, "sched_yield", functools.partial(time.sleep, 0))


class Processes:
    """Process `rank` of `size`, and its collective calls, which all of them make in the same order;
    of one process they do nothing.

    device: that of tensors in collectives. group: of torch.distributed, None for the default one.
    exchanged: bytes that were summed, broadcast or gathered so far.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu", group: Any = None
    ) -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.group = group
        self.exchanged = 0

    @classmethod
    def present(cls, device: torch.device) -> Processes:
        """The processes of the default group. Raises InvalidInput if there is no group, or it does
        not support the device."""
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InvalidInput(
                "distributed=True needs the processes of torch.distributed: call "
                "torch.distributed.init_process_group() first and run by torchrun"
            )
        if distributed.get_backend() == "nccl" and device.type != "cuda":
            raise InvalidInput(
                f"a group with backend 'nccl' cannot exchange data on device {str(device)!r}; give "
                "NMF(device=f'cuda:{LOCAL_RANK}'), or init_process_group('gloo')"
            )
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device) -> Iterator[Processes]:
        """The same, in a new group that ends with the context: if one process leaves by an error,
        the others get an error, too, and need not wait. It takes some 20 ms to make."""
        processes = cls.present(device)
        # a process that has ended is noticed here at once, and by new_group after the timeout
        processes.any(False)
        with processes._waiting():
            backend = distributed.get_backend()
            group = distributed.new_group(timeout=_timeout(device), backend=backend)
        processes.group = group
        try:
            yield processes
        finally:
            # connections close when there is no reference to the group
            processes.group = None
            distributed.destroy_process_group(group)
            del group

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def on_host(self) -> int:
        """The number of them on this machine, which share its memory, as torchrun reports it."""
        return 1 if self.alone else int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def sum_(self, *tensors: Tensor) -> None:
        """Every tensor becomes its sum over the processes, with the same bits in all of them."""
        self._each_(tensors, functools.partial(distributed.all_reduce, **self._of_group))

    def broadcast_(self, *tensors: Tensor) -> None:
        """Every tensor becomes that of process 0."""
        self._each_(tensors, functools.partial(distributed.broadcast, src=0, **self._of_group))

    def _each_(self, tensors: tuple[Tensor, ...], collective: Callable[[Tensor], Any]) -> None:
        if self.alone:
            return
        for tensor in tensors:
            # NCCL needs contiguous tensors
            packed = tensor.contiguous()
            with self._waiting():
                self._wait(collective(packed))
            if packed is not tensor:
                tensor.copy_(packed)
            self.exchanged += tensor.numel() * tensor.itemsize

    def columns(self, matrix: Tensor) -> Tensor:
        """The columns of a matrix (K, d) that this process works on, as a copy; all of one process,
        without a copy."""
        if self.alone:
            return matrix
        return matrix[:, self._columns(matrix.shape[1], self.rank)].contiguous()

    def join_columns_(self, matrix: Tensor, mine: Tensor, sums: Tensor) -> None:
        """The matrix becomes that of the columns of all processes, `mine` here, and float64 `sums`
        become sums over the processes, in one call: waiting takes longer than sending."""
        if self.alone:
            return
        K, d = matrix.shape
        # all send the same number
        own = matrix.new_zeros(K, -(-d // self.size))
        own[:, : mine.shape[1]] = mine
        # sums as their bytes
        sent = torch.cat((own.flatten(), sums.flatten().view(matrix.dtype)))
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with self._waiting():
            self._wait(distributed.all_gather(received, sent, **self._of_group))
        self.exchanged += matrix.numel() * matrix.itemsize + sums.numel() * sums.itemsize
        sums.zero_()
        for rank, part in enumerate(received):
            where = self._columns(d, rank)
            matrix[:, where] = part[: own.numel()].view_as(own)[:, : where.stop - where.start]
            # aligned as float64 is
            sums += part[own.numel() :].clone().view(torch.float64).view_as(sums)

    def _columns(self, d: int, rank: int) -> slice:
        return slice(d * rank // self.size, d * (rank + 1) // self.size)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is true in any process."""
        if self.alone:
            return flags
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        with self._waiting():
            most = distributed.ReduceOp.MAX
            self._wait(distributed.all_reduce(found, most, **self._of_group))
        return tuple(map(bool, found.tolist()))

    def gather(self, thing: Any) -> list:
        """The objects of all processes, in their order."""
        if self.alone:
            return [thing]
        things = [None] * self.size
        with self._waiting():
            distributed.all_gather_object(things, thing, group=self.group)
        return things

    def agree(self, options: dict[str, Any]) -> None:
        """Raise InvalidInput in all processes if their options differ."""
        first, *others = self.gather(options)
        for number, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise InvalidInput(
                        f"{name} is {value!r} in process 0 and {other[name]!r} in process {number}"
                        "; give the same to all processes"
                    )

    def own(self, path: str | os.PathLike[str]) -> Path:
        """The path of this process for a path that all are given."""
        path = Path(path)
        if self.alone:
            return path
        return path.with_name(f"{path.stem}-{self.rank:05d}-of-{self.size:05d}{path.suffix}")

    def of_other_numbers(self, path: str | os.PathLike[str]) -> list[Path]:
        """The files there are for this path of another number of processes."""
        path = Path(path)
        named = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-(\d{{5}}){re.escape(path.suffix)}")
        found = [] if self.alone or not path.exists() else [path]
        for other in sorted(path.parent.iterdir()):
            match = named.fullmatch(other.name)
            if match and int(match[1]) != self.size:
                found.append(other)
        return found

    def draw_seed(self) -> int:
        """A seed below 2³² from torch's global generator, that of process 0 in all processes."""
        seed = torch.randint(2**32, (1,), dtype=torch.int64, device="cpu").to(self.device)
        self.broadcast_(seed)
        return int(seed)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A context, without collective calls in it, that fails in all processes if it fails in
        one."""
        try:
            yield
        except Exception as error:
            self.any(True)
            self.gather(f"{type(error).__name__}: {error}")
            raise
        if not any(self.any(False)):
            return
        for rank, failure in enumerate(self.gather(None)):
            if failure is not None:
                raise InvalidInput(f"process {rank} of {self.size} failed: {failure}")

    @property
    def _of_group(self) -> dict[str, Any]:
        return {"group": self.group, "async_op": True}

    def _wait(self, work: Any) -> None:
        """Wait for a collective, in intervals after which signals are handled."""
        # with NCCL the device waits, and a timeout here would end the collective
        if distributed.get_backend(self.group) != "gloo":
            work.wait()
            return
        blocks_at = time.perf_counter() + _SPIN
        while not work.is_completed() and time.perf_counter() < blocks_at:
            _give_way()
        while not work.is_completed():
            # a timeout, or an error of the collective, which is raised below
            with suppress(RuntimeError):
                work.wait(_UNINTERRUPTED)
        work.wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        # gathered objects use the current device
        cuda = self.device.type == "cuda"
        try:
            with torch.cuda.device(self.device) if cuda else nullcontext():
                yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConnectionError(
                f"process {self.rank} of {self.size} cannot reach the others ({error}): one has "
                "failed or ended, or did not answer within the timeout of init_process_group"
            ) from error


ALONE = Processes()


def _timeout(device: torch.device) -> timedelta | None:
    """The timeout of the default group, which new groups do not inherit."""
    held = distributed.group.WORLD._get_backend(device)
    return getattr(getattr(held, "options", None), "_timeout", None)


@contextmanager
def together(device: str, seconds: float) -> Iterator[Processes]:
    """The processes that torchrun started, as the default group of torch.distributed: NCCL on CUDA,
    else gloo. seconds: the timeout of collectives."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
