"""Starts (Z, D) for data that are read in passes: those of init.py, by sums over chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from ..data.dataset import Data
from ..data.storage import Storage, row_blocks
from ..errors import InvalidInput
from ..numerics import tiny, wide
from . import start as in_memory
from .rows import draw_any, draw_spread
from .start import cold_start, folded_normal, given_factor, resolve
from .svd import ByColumns, ByRows, piece_rows, right_vectors

# rows drawn at once: torch draws numbers in groups of 16, so pieces of whole groups continue each
# other, and all but the last must hold such
_GROUP = 16
_DRAWN_BYTES = 16 << 20
Codes = Storage | None


@torch.no_grad()
def start(
    data: Data, codes: Codes, K: int, asked: Any, generator: Generator | None = None
) -> Tensor:
    """D (K, d) to start from, and its codes into the store; None: codes are not kept, and are not
    part of the start.

    The numbers of in_memory.start for the same data in memory, up to the rounding of sums. asked: a name
    in STARTS, or (Z0, D0), where Z0 is None for codes that are not kept.
    """
    kind = resolve(asked, data.n, data.d, K)
    if kind == "given":
        return _given(data, codes, K, asked)
    if kind == "nndsvda" and min(data.n, data.d) >= K:
        D = _nndsvda(data, codes, K, generator)
    elif kind == "random":
        if codes is not None:
            _draw_codes(data, codes, K, generator)
        D = _random_dictionary(data, K, generator)
    else:
        D = _dictionary_of_rows(data, K, kind, generator)
        if codes is not None:
            for part, X, _ in data.chunks():
                codes.save(part, cold_start(X, D))
    if codes is not None:
        _scale_to_data_(data, codes, D)
    return D


def _given(data: Data, codes: Codes, K: int, asked: Any) -> Tensor:
    like = {"dtype": data.dtype, "device": data.device}
    if codes is not None:
        Z, D = in_memory.given(asked, data.n_here, data.d, K, **like)
        for part in row_blocks(data.n_here, data.chunk_rows):
            codes.save(part, Z[part])
        return D
    if asked[0] is not None:
        raise InvalidInput(
            "init=(Z0, D0) gives codes, and codes=None keeps none; give init=(None, D0)"
        )
    return given_factor("D0", asked[1], (K, data.d), **like)


def _draw_codes(data: Data, codes: Codes, K: int, generator: Generator | None) -> None:
    """Z = |normal| · sqrt(mean(A) / K), the numbers of one draw of all."""
    like, square = data.like, data.mean / K
    first, n_here = data.first, data.n_here
    for part in _groups(data.n, _DRAWN_BYTES // (K * like.itemsize)):
        drawn = folded_normal((part.stop - part.start, K), like, square, generator)
        start, stop = (min(max(at - first, 0), n_here) for at in (part.start, part.stop))
        if start < stop:
            skipped = start + first - part.start
            codes.save(slice(start, stop), drawn[skipped : skipped + stop - start])


def _groups(n: int, rows: int) -> Iterator[slice]:
    """Slices of whole groups of rows, the last with up to a group more, never with less."""
    step = max(_GROUP, rows // _GROUP * _GROUP)
    bounds = [*range(0, max(1, n - _GROUP + 1), step), n]
    return (slice(first, last) for first, last in itertools.pairwise(bounds))


def _random_dictionary(data: Data, K: int, generator: Generator | None) -> Tensor:
    return folded_normal((K, data.d), data.like, data.mean / K, generator)


def _scale_to_data_(data: Data, codes: Codes, D: Tensor) -> None:
    rows = piece_rows(data.d, 2 * D.itemsize)
    pieces = ((Z, X) for X, Z, _ in data.tiles(codes, rows))
    root = in_memory.scale_of(pieces, D, data.processes.sum_)
    if root is not None:
        codes.each_(lambda _, Z: Z.mul_(root))
        D *= root


def _nndsvda(data: Data, codes: Codes, K: int, generator: Generator | None) -> Tensor:
    """D of NNDSVDa, of which in_memory.nndsvda says more, with its codes where they are kept. The scale
    is that of A / mean(A)."""
    largest = data.like.new_tensor(data.largest)
    tall, sum_ = data.n >= data.d, data.processes.sum_
    X = _by_rows(data) if tall else _by_columns(data)
    shape = (data.n, data.d) if tall else (data.d, data.n)
    V, inverse = right_vectors(X, shape, K, data.like, largest, generator)
    # by rounding, machines might have another basis
    data.processes.broadcast_(V, inverse)
    # of the longer side: rows of A as they come, or its features, which are in memory
    if tall:
        squares = torch.zeros(2, K, dtype=wide(data.device), device=data.device)
        for part, Xi, _ in data.chunks():
            U = Xi @ (V * inverse)
            squares += in_memory.part_squares(U)
            if codes is not None:
                codes.save(part, U)
        sum_(squares)
    else:
        U = X.product(V * inverse)
        squares = in_memory.part_squares(U)
    mean, unit = data.mean, data.mean.clamp(min=tiny(V))
    norms = squares.sum(0).sqrt()
    S = (norms / inverse / unit).to(V.dtype)
    norms = norms.clamp(min=tiny(V))
    of_u = tuple((squares.sqrt() / norms).to(V.dtype))
    parts_of_u, parts_of_v = in_memory.non_negative_parts(S, of_u, in_memory.part_norms(V))

    def take_(_: slice, U: Tensor) -> None:
        U /= norms.to(U)
        in_memory.take_parts_(U, *(given.to(U) for given in parts_of_u), (mean / unit).to(U))

    in_memory.take_parts_(V, *parts_of_v, mean / unit)
    if tall:
        if codes is not None:
            codes.each_(take_)
        return V.T.contiguous()
    take_(slice(None), U)
    for part in row_blocks(data.n_here, data.chunk_rows) if codes is not None else ():
        codes.save(part, V[data.first + part.start : data.first + part.stop])
    return U.T.contiguous()


def _by_rows(data: Data) -> ByRows:
    """Products with A."""

    def pieces(rows: int, every: int) -> Iterator[Tensor]:
        for part, X, _ in data.chunks():
            yield from X[-(data.first + part.start) % every :: every].split(rows)

    return ByRows(pieces, data.processes.sum_)


def _by_columns(data: Data) -> ByColumns:
    """Products with Aᵀ."""

    def pieces() -> Iterator[tuple[slice, Tensor]]:
        for part, X, _ in data.chunks():
            first = data.first + part.start
            yield slice(first, first + len(X)), X

    return ByColumns(pieces, data.d, data.dtype, data.processes.sum_)


def _dictionary_of_rows(data: Data, K: int, kind: str, generator: Generator | None) -> Tensor:
    """D (K, d) as in_memory.start makes it of rows: after concepts of NNDSVDa, before random ones."""
    D = data.like.new_empty(0, data.d)
    if kind == "nndsvda":
        D = _nndsvda(data, None, min(data.n, data.d), generator)
        norm = torch.linalg.vector_norm(D).clamp(min=tiny(D))
        D *= float(data.squared_norm) ** 0.5 / norm * (len(D) / data.n) ** 0.5
    norms = _of_rows(data, lambda X: torch.linalg.vector_norm(X.to(wide(X.device)), dim=1))
    candidates = norms.nonzero()[:, 0]
    if kind == "spread":

        def cosine(drawn: Tensor) -> Tensor:
            rays = _take(data, candidates[drawn]) / norms[candidates[drawn], None].to(D)
            nearest = _of_rows(data, lambda X: (X @ rays.T).amax(1))
            return (nearest[candidates] / norms[candidates]).clamp(max=1)

        rows = candidates[draw_spread(norms[candidates], cosine, K - len(D), generator)]
    else:
        rows = draw_any(candidates, K - len(D), generator)
    D = torch.cat((D, _take(data, rows)))
    if len(D) < K:
        D = torch.cat((D, _random_dictionary(data, K, generator)[len(D) :]))
    return D


def _of_rows(data: Data, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """measure(X) of all rows, in float64. Small results of chunks, kept one by one, would lie
    between what each chunk takes and gives back, and keep it from being used again."""
    measured = torch.zeros(data.n, dtype=wide(data.device), device=data.device)
    for part, X, _ in data.chunks():
        rows = piece_rows(data.d, 8)
        for i, piece in enumerate(X.split(rows)):
            first = data.first + part.start + i * rows
            measured[first : first + len(piece)] = measure(piece)
    data.processes.sum_(measured)
    return measured


def _take(data: Data, rows: Tensor) -> Tensor:
    """These rows of the data, in this order."""
    taken = data.like.new_zeros(len(rows), data.d)
    for part, X, _ in data.chunks():
        first = data.first + part.start
        here = ((rows >= first) & (rows < first + len(X))).nonzero()[:, 0]
        taken[here] = X[rows[here] - first]
    data.processes.sum_(taken)
    return taken
