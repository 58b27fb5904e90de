"""Starts (Z, D) for data that are read in passes: those of init.py, by sums over chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from . import init
from .errors import InvalidInput
from .exemplars import draw_any, draw_spread
from .init import cold_start, folded_normal, given_factor, resolve
from .store import InMemory, OnDisk, row_blocks
from .stream import Stream
from .svd import ByColumns, ByRows, piece_rows, right_vectors, tiny, wide

# rows drawn at once: torch draws numbers in groups of 16, so pieces of whole groups continue each
# other, and all but the last must hold such
_GROUP = 16
_DRAWN_BYTES = 16 << 20

Codes = InMemory | OnDisk | None


@torch.no_grad()
def start(
    stream: Stream, codes: Codes, K: int, asked: Any, generator: Generator | None = None
) -> Tensor:
    """D (K, d) to start from, and its codes into the store; None: codes are not kept, and are not
    part of the start.

    The numbers of init.start for the same data in memory, up to the rounding of sums. asked: a name
    in STARTS, or (Z0, D0), where Z0 is None for codes that are not kept.
    """
    kind = resolve(asked, stream.n, stream.d, K)
    if kind == "given":
        return _given(stream, codes, K, asked)
    if kind == "nndsvda" and min(stream.n, stream.d) >= K:
        D = _nndsvda(stream, codes, K, generator)
    elif kind == "random":
        if codes is not None:
            _draw_codes(stream, codes, K, generator)
        D = _random_dictionary(stream, K, generator)
    else:
        D = _dictionary_of_rows(stream, K, kind, generator)
        if codes is not None:
            for part, X, _ in stream.chunks():
                codes.save(part, cold_start(X, D))
    if codes is not None:
        _scale_to_data_(stream, codes, D)
    return D


def _given(stream: Stream, codes: Codes, K: int, asked: Any) -> Tensor:
    like = {"dtype": stream.dtype, "device": stream.device}
    if codes is not None:
        Z, D = init.given(asked, stream.n_here, stream.d, K, **like)
        for part in row_blocks(stream.n_here, stream.chunk_rows):
            codes.save(part, Z[part])
        return D
    if asked[0] is not None:
        raise InvalidInput(
            "init=(Z0, D0) gives codes, and codes=None keeps none; give init=(None, D0)"
        )
    return given_factor("D0", asked[1], (K, stream.d), **like)


def _like(stream: Stream) -> Tensor:
    return torch.empty(0, dtype=stream.dtype, device=stream.device)


def _mean(stream: Stream) -> Tensor:
    return _like(stream).new_tensor(stream.summary.mean)


def _draw_codes(stream: Stream, codes: Codes, K: int, generator: Generator | None) -> None:
    """Z = |normal| · sqrt(mean(A) / K), the numbers of one draw of all."""
    like, square = _like(stream), _mean(stream) / K
    first, n_here = stream.first, stream.n_here
    for part in _groups(stream.n, _DRAWN_BYTES // (K * like.itemsize)):
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


def _random_dictionary(stream: Stream, K: int, generator: Generator | None) -> Tensor:
    return folded_normal((K, stream.d), _like(stream), _mean(stream) / K, generator)


def _scale_to_data_(stream: Stream, codes: Codes, D: Tensor) -> None:
    rows = piece_rows(stream.d, 2 * D.itemsize)
    pieces = ((Z, X) for X, Z, _ in stream.pieces(codes, rows, save=False))
    root = init.scale_of(pieces, D, stream.ranks.sum_)
    if root is not None:
        codes.each_(lambda _, Z: Z.mul_(root))
        D *= root


def _nndsvda(stream: Stream, codes: Codes, K: int, generator: Generator | None) -> Tensor:
    """D of NNDSVDa, of which init.nndsvda says more, with its codes where they are kept. The scale
    is that of A / mean(A)."""
    largest = _like(stream).new_tensor(stream.summary.largest)
    tall, sum_ = stream.n >= stream.d, stream.ranks.sum_
    X = _by_rows(stream) if tall else _by_columns(stream)
    shape = (stream.n, stream.d) if tall else (stream.d, stream.n)
    V, inverse = right_vectors(X, shape, K, _like(stream), largest, generator)
    # by rounding, machines might have another basis
    stream.ranks.share_(V, inverse)
    # of the longer side: rows of A as they come, or its features, which are in memory
    if tall:
        squares = torch.zeros(2, K, dtype=wide(stream.device), device=stream.device)
        for part, Xi, _ in stream.chunks():
            U = Xi @ (V * inverse)
            squares += init.part_squares(U)
            if codes is not None:
                codes.save(part, U)
        sum_(squares)
    else:
        U = X.product(V * inverse)
        squares = init.part_squares(U)
    mean, unit = _mean(stream), _mean(stream).clamp(min=tiny(V))
    norms = squares.sum(0).sqrt()
    S = (norms / inverse / unit).to(V.dtype)
    norms = norms.clamp(min=tiny(V))
    of_u = tuple((squares.sqrt() / norms).to(V.dtype))
    parts_of_u, parts_of_v = init.non_negative_parts(S, of_u, init.part_norms(V))

    def take_(_: slice, U: Tensor) -> None:
        U /= norms.to(U)
        init.take_parts_(U, *(given.to(U) for given in parts_of_u), (mean / unit).to(U))

    init.take_parts_(V, *parts_of_v, mean / unit)
    if tall:
        if codes is not None:
            codes.each_(take_)
        return V.T.contiguous()
    take_(slice(None), U)
    for part in row_blocks(stream.n_here, stream.chunk_rows) if codes is not None else ():
        codes.save(part, V[stream.first + part.start : stream.first + part.stop])
    return U.T.contiguous()


def _by_rows(stream: Stream) -> ByRows:
    """Products with A."""

    def pieces(rows: int, every: int) -> Iterator[Tensor]:
        for part, X, _ in stream.chunks():
            yield from X[-(stream.first + part.start) % every :: every].split(rows)

    return ByRows(pieces, stream.ranks.sum_)


def _by_columns(stream: Stream) -> ByColumns:
    """Products with Aᵀ."""

    def pieces() -> Iterator[tuple[slice, Tensor]]:
        for part, X, _ in stream.chunks():
            first = stream.first + part.start
            yield slice(first, first + len(X)), X

    return ByColumns(pieces, stream.d, stream.dtype, stream.ranks.sum_)


def _dictionary_of_rows(stream: Stream, K: int, kind: str, generator: Generator | None) -> Tensor:
    """D (K, d) as init.start makes it of rows: after concepts of NNDSVDa, before random ones."""
    D = _like(stream).new_empty(0, stream.d)
    if kind == "nndsvda":
        D = _nndsvda(stream, None, min(stream.n, stream.d), generator)
        norm = torch.linalg.vector_norm(D).clamp(min=tiny(D))
        D *= stream.squared_data**0.5 / norm * (len(D) / stream.n) ** 0.5
    norms = _of_rows(stream, lambda X: torch.linalg.vector_norm(X.to(wide(X.device)), dim=1))
    candidates = norms.nonzero()[:, 0]
    if kind == "spread":

        def cosine(drawn: Tensor) -> Tensor:
            rays = _take(stream, candidates[drawn]) / norms[candidates[drawn], None].to(D)
            nearest = _of_rows(stream, lambda X: (X @ rays.T).amax(1))
            return (nearest[candidates] / norms[candidates]).clamp(max=1)

        rows = candidates[draw_spread(norms[candidates], cosine, K - len(D), generator)]
    else:
        rows = draw_any(candidates, K - len(D), generator)
    D = torch.cat((D, _take(stream, rows)))
    if len(D) < K:
        D = torch.cat((D, _random_dictionary(stream, K, generator)[len(D) :]))
    return D


def _of_rows(stream: Stream, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """measure(X) of all rows, in float64. Small results of chunks, kept one by one, would lie
    between what each chunk takes and gives back, and keep it from being used again."""
    measured = torch.zeros(stream.n, dtype=wide(stream.device), device=stream.device)
    for part, X, _ in stream.chunks():
        rows = piece_rows(stream.d, 8)
        for i, piece in enumerate(X.split(rows)):
            first = stream.first + part.start + i * rows
            measured[first : first + len(piece)] = measure(piece)
    stream.ranks.sum_(measured)
    return measured


def _take(stream: Stream, rows: Tensor) -> Tensor:
    """These rows of the data, in this order."""
    taken = _like(stream).new_zeros(len(rows), stream.d)
    for part, X, _ in stream.chunks():
        first = stream.first + part.start
        here = ((rows >= first) & (rows < first + len(X))).nonzero()[:, 0]
        taken[here] = X[rows[here] - first]
    stream.ranks.sum_(taken)
    return taken
