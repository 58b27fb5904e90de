"""The processes that share a fit, each with rows of its own: what is summed over rows is summed
over them. All of torch.distributed that the package uses."""

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

# for so long a process that waits for others handles no signals
_UNINTERRUPTED = timedelta(seconds=1)
# seconds that it spins for others: to block and be woken takes about as long as what is
# waited for, and longer where the one that is woken waits for a processor
_SPIN = 2e-3
_give_way = getattr(os, "sched_yield", functools.partial(time.sleep, 0))


class Processes:
    """Number `rank` of `size` processes; alone there is nothing to do. All of them make the same
    calls in the same order.

    device: where collectives of numbers lie. group: of torch.distributed; None is the default one.
    exchanged: bytes that were summed, shared or gathered so far.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu", group: Any = None
    ) -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.group = group
        self.exchanged = 0

    @classmethod
    def present(cls, device: torch.device) -> Processes:
        """Those of the default group. Raises InvalidInput where there is no group, or one that
        cannot bring what is on the device."""
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InvalidInput(
                "distributed=True needs the processes of torch.distributed: call "
                "torch.distributed.init_process_group() first and run by torchrun"
            )
        if distributed.get_backend() == "nccl" and device.type != "cuda":
            raise InvalidInput(
                f"a group with backend 'nccl' cannot bring what is on device {str(device)!r}; give "
                "NMF(device=f'cuda:{LOCAL_RANK}'), or init_process_group('gloo')"
            )
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device) -> Iterator[Processes]:
        """The same, within a group of their own that ends with the context: where one leaves by an
        error the others need not wait for it. It takes some 20 ms to make."""
        processes = cls.present(device)
        # a group with one that is gone is waited for until the timeout
        processes.any(False)
        with processes._waiting():
            backend = distributed.get_backend()
            group = distributed.new_group(timeout=_timeout(device), backend=backend)
        processes.group = group
        try:
            yield processes
        finally:
            # connections close when nobody holds the group any more
            processes.group = None
            distributed.destroy_process_group(group)
            del group

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def on_host(self) -> int:
        """How many of them share the memory of this machine, as far as torchrun said."""
        return 1 if self.alone else int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def sum_(self, *tensors: Tensor) -> None:
        """Every tensor becomes its sum over the processes; the same bits in all of them."""
        self._each_(tensors, functools.partial(distributed.all_reduce, **self._of_group))

    def broadcast_(self, *tensors: Tensor) -> None:
        """Every tensor becomes that of process 0."""
        self._each_(tensors, functools.partial(distributed.broadcast, src=0, **self._of_group))

    def _each_(self, tensors: tuple[Tensor, ...], collective: Callable[[Tensor], Any]) -> None:
        if self.alone:
            return
        for tensor in tensors:
            # NCCL takes nothing else
            packed = tensor.contiguous()
            with self._waiting():
                self._wait(collective(packed))
            if packed is not tensor:
                tensor.copy_(packed)
            self.exchanged += tensor.numel() * tensor.itemsize

    def columns(self, matrix: Tensor) -> Tensor:
        """Those of a matrix (K, d) that this process works on: a copy; alone, the matrix."""
        if self.alone:
            return matrix
        return matrix[:, self._columns(matrix.shape[1], self.rank)].contiguous()

    def join_columns_(self, matrix: Tensor, mine: Tensor, sums: Tensor) -> None:
        """The matrix becomes what all processes made of the columns they have, and float64 `sums`
        become those over all: to wait for the others takes longer than to send so little."""
        if self.alone:
            return
        K, d = matrix.shape
        # all send as many
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
        """Whether each is true in some process."""
        if self.alone:
            return flags
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        with self._waiting():
            most = distributed.ReduceOp.MAX
            self._wait(distributed.all_reduce(found, most, **self._of_group))
        return tuple(map(bool, found.tolist()))

    def gather(self, thing: Any) -> list:
        """What every process gives, in their order."""
        if self.alone:
            return [thing]
        things = [None] * self.size
        with self._waiting():
            distributed.all_gather_object(things, thing, group=self.group)
        return things

    def agree(self, options: dict[str, Any]) -> None:
        """Raises InvalidInput in all processes where their options, or what else they must have
        alike, differ."""
        first, *others = self.gather(options)
        for number, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise InvalidInput(
                        f"{name} is {value!r} in process 0 and {other[name]!r} in process {number}"
                        "; give the same to all processes"
                    )

    def own(self, path: str | os.PathLike[str]) -> Path:
        """The file of this process, beside those of the others."""
        path = Path(path)
        if self.alone:
            return path
        return path.with_name(f"{path.stem}-{self.rank:05d}-of-{self.size:05d}{path.suffix}")

    def of_other_numbers(self, path: str | os.PathLike[str]) -> list[Path]:
        """The files there that another number of processes calls its own."""
        path = Path(path)
        named = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-(\d{{5}}){re.escape(path.suffix)}")
        found = [] if self.alone or not path.exists() else [path]
        for other in sorted(path.parent.iterdir()):
            match = named.fullmatch(other.name)
            if match and int(match[1]) != self.size:
                found.append(other)
        return found

    def generator(self) -> torch.Generator | None:
        """One that draws the same in all processes, seeded by process 0; None alone."""
        if self.alone:
            return None
        seed = torch.randint(2**62, (1,)).to(self.device)
        self.broadcast_(seed)
        return torch.Generator().manual_seed(int(seed))

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A context without collectives: what fails in one process fails in all of them."""
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
                raise InvalidInput(f"process {rank} of {self.size} cannot go on: {failure}")

    @property
    def _of_group(self) -> dict[str, Any]:
        return {"group": self.group, "async_op": True}

    def _wait(self, work: Any) -> None:
        """Wait for a collective; not so long at a time that signals are not handled meanwhile."""
        # NCCL takes a timeout for one of the collective, and is waited for by the device anyway
        if distributed.get_backend(self.group) != "gloo":
            work.wait()
            return
        blocks_at = time.perf_counter() + _SPIN
        while not work.is_completed() and time.perf_counter() < blocks_at:
            _give_way()
        while not work.is_completed():
            # that it took longer, or what went wrong, which is raised below
            with suppress(RuntimeError):
                work.wait(_UNINTERRUPTED)
        work.wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        # objects that are gathered go through the device that is current
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
    """That of the default group, which new groups do not take by themselves."""
    held = distributed.group.WORLD._get_backend(device)
    return getattr(getattr(held, "options", None), "_timeout", None)


@contextmanager
def together(device: str, seconds: float) -> Iterator[Processes]:
    """The processes that torchrun started, joined in a group of torch.distributed: NCCL on CUDA,
    else gloo. seconds: how long one waits for the others at most."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
