"""Codes of starts: random numbers, the same for one seed, whatever the chunks and the processes;
and those that follow from each row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from ..data.dataset import Data
from ..data.sparse.stored import Made
from ..data.storage import Compressed, InMemory, Kept

# torch draws numbers in groups of 16, so draws of whole groups continue each other; all draws but
# the last must be of whole groups, and none of less than one
_GROUP = 16
_DRAWN_BYTES = 16 << 20


@torch.no_grad()
def draw_codes_(codes: Kept, data: Data, scale: Tensor, generator: Generator | None) -> None:
    """Z ← |normal| · scale, the numbers of one draw for all rows of all processes. Where codes are
    stored in compressed rows they are drawn again whenever they are read."""
    place = data.device if generator is None else generator.device
    if data.in_memory_here and isinstance(codes, InMemory) and place == data.device:
        codes.Z.normal_(generator=generator).abs_().mul_(scale)
        return
    if isinstance(codes, Compressed) and generator is not None:
        codes.begin_(_drawn_again(data, codes.shape[1], scale, generator))
        return
    for part, numbers in drawn_codes(data, codes.shape[1], generator):
        codes.save(part, numbers.mul_(scale))


def _drawn_again(data: Data, K: int, scale: Tensor, generator: Generator) -> Made:
    """The rows |normal| · scale (n, K) of a draw, after which the generator is."""
    begins = generator.get_state()
    for _ in drawn_codes(data, K, generator):
        pass

    def blocks() -> Iterator[Tensor]:
        again = torch.Generator(generator.device)
        again.set_state(begins)
        return (numbers.mul_(scale) for _, numbers in drawn_codes(data, K, again))

    return Made(blocks)


def drawn_codes(data: Data, K: int, generator: Generator | None) -> Iterator[tuple[slice, Tensor]]:
    """(part, |normal| (m, K)) for all rows here, some at a time, the numbers of one draw for all
    rows of all processes."""
    first, n_here = data.first, data.n_here
    for part in groups(data.n, _DRAWN_BYTES // (K * data.dtype.itemsize)):
        numbers = drawn((part.stop - part.start, K), data, generator).abs_()
        start, stop = (min(max(at - first, 0), n_here) for at in (part.start, part.stop))
        if start < stop:
            skipped = start + first - part.start
            yield slice(start, stop), numbers[skipped : skipped + stop - start]


def codes_by_rows_(codes: Kept, data: Data, made: Callable[..., Tensor]) -> None:
    """Z ← made(X), which may write into `out`, for the rows X of each chunk. Where codes are stored
    in compressed rows, of data in memory, they are made again whenever they are read."""
    if isinstance(codes, Compressed):
        codes.begin_(Made(lambda: (made(X) for _, X, _ in data.chunks())))
        return
    for _, X, Z in data.chunks(codes):
        made(X, out=Z)


def drawn(shape: tuple[int, int], data: Data, generator: Generator | None) -> Tensor:
    """Normal numbers, drawn where the generator lives."""
    place = data.device if generator is None else generator.device
    numbers = torch.empty(shape, dtype=data.dtype, device=place).normal_(generator=generator)
    return numbers.to(data.device)


def groups(n: int, rows: int) -> Iterator[slice]:
    """Slices of whole groups of rows, the last with up to a group more, never with less."""
    step = max(_GROUP, rows // _GROUP * _GROUP)
    bounds = [*range(0, max(1, n - _GROUP + 1), step), n]
    return (slice(first, last) for first, last in itertools.pairwise(bounds))
