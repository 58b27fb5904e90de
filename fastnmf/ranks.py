"""The processes that share a fit, each with rows of its own: what is summed over rows is summed
over them. All of torch.distributed that the package uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from .errors import InvalidInput


class Ranks:
    """Number `rank` of `size` processes; alone there is nothing to do. All of them make the same
    calls in the same order.

    device: where collectives of numbers lie. summed: bytes that were summed or gathered so far.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, device
        self.summed = 0

    @classmethod
    def joined(cls, device: torch.device) -> Ranks:
        """Those of the default group. Raises InvalidInput where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InvalidInput(
                "distributed=True needs the processes of torch.distributed: call "
                "torch.distributed.init_process_group() first and run by torchrun"
            )
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def alone(self) -> bool:
        return self.size == 1

    def sum_(self, *tensors: Tensor) -> None:
        """Every tensor becomes its sum over the processes; the same bits in all of them."""
        if self.alone:
            return
        for tensor in tensors:
            with self._waiting():
                distributed.all_reduce(tensor)
            self.summed += tensor.numel() * tensor.itemsize

    def share_(self, *tensors: Tensor) -> None:
        """Every tensor becomes that of process 0."""
        if self.alone:
            return
        for tensor in tensors:
            with self._waiting():
                distributed.broadcast(tensor, 0)

    def columns(self, matrix: Tensor) -> Tensor:
        """Those of a matrix (K, d) that this process works on: a copy; alone, the matrix."""
        if self.alone:
            return matrix
        return matrix[:, self._columns(matrix.shape[1], self.rank)].contiguous()

    def join_columns_(self, matrix: Tensor, mine: Tensor) -> None:
        """The matrix becomes what all processes made of the columns they have."""
        if self.alone:
            return
        K, d = matrix.shape
        # all send as many
        sent = matrix.new_zeros(K, -(-d // self.size))
        sent[:, : mine.shape[1]] = mine
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with self._waiting():
            distributed.all_gather(received, sent)
        self.summed += matrix.numel() * matrix.itemsize
        for rank, part in enumerate(received):
            where = self._columns(d, rank)
            matrix[:, where] = part[:, : where.stop - where.start]

    def _columns(self, d: int, rank: int) -> slice:
        return slice(d * rank // self.size, d * (rank + 1) // self.size)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each is true in some process."""
        if self.alone:
            return flags
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        with self._waiting():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def gather(self, thing: Any) -> list:
        """What every process gives, in their order."""
        if self.alone:
            return [thing]
        things = [None] * self.size
        with self._waiting():
            distributed.all_gather_object(things, thing)
        return things

    def own(self, path: str | os.PathLike) -> Path:
        """The file of this process, beside those of the others."""
        path = Path(path)
        if self.alone:
            return path
        return path.with_name(f"{path.stem}-{self.rank:05d}-of-{self.size:05d}{path.suffix}")

    def generator(self) -> torch.Generator | None:
        """One that draws the same in all processes, seeded by process 0; None alone."""
        if self.alone:
            return None
        seed = torch.randint(2**62, (1,)).to(self.device)
        self.share_(seed)
        return torch.Generator().manual_seed(int(seed))

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A context without collectives: what fails in one process fails in all of them."""
        try:
            yield
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        for rank, failure in enumerate(self.gather(None)):
            if failure is not None:
                raise InvalidInput(f"process {rank} of {self.size} cannot go on: {failure}")

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConnectionError(
                f"process {self.rank} of {self.size} waited for the others in vain: one has ended, "
                f"or did not answer within the timeout of init_process_group ({error})"
            ) from error


ALONE = Ranks()


def torchrun_size() -> int:
    """How many processes torchrun started together with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def together(device: str, seconds: float) -> Iterator[Ranks]:
    """The processes that torchrun started, joined in a group of torch.distributed: NCCL on CUDA,
    else gloo. seconds: how long one waits for the others at most."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        yield Ranks.joined(torch.device(device))
    finally:
        distributed.destroy_process_group()
