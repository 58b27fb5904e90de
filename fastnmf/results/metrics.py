"""Statistics of codes and concepts: how well they explain the data, sparsity, energy, dead concepts
and near-duplicates. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.products import Rebuilt, dense_tiles
from ..data.dataset import Data
from ..distributed import ALONE, Processes
from ..engine.codes import FreshTiles
from ..engine.dead_concepts import alike
from ..engine.state import Method, State
from ..numerics import squared_norm, widened
from ..precision import products_in

# bars of the histogram of active concepts per row, at most
_BARS = 32
# entries at a time
_ENTRIES = 1 << 20


@dataclass(frozen=True)
class CodesInfo:
    """Statistics of codes and concepts.

    mean_l0: mean number of non-zero codes per row. l0_most: the largest. l0_histogram: rows by that
    number, from 0, in bars of ⌈(l0_most + 1) / bars⌉ numbers each. hoyer: mean Hoyer sparsity of
    the rows that have codes, 0 (equal codes) to 1 (one code). energy: ‖Z_k‖² ‖D_k‖² of each
    concept, as a share of their sum. dead_concepts: concepts whose codes or dictionary row are all
    zero. near_duplicates: concepts with a cosine of at least 0.99 to an earlier one.
    """

    mean_l0: float
    l0_histogram: tuple[int, ...]
    l0_most: int
    hoyer: float
    energy: tuple[float, ...]
    dead_concepts: int
    near_duplicates: int


class Measured(NamedTuple):
    """‖A − Z D‖² and ‖A‖², R², the statistics of codes and concepts, and the penalties of both."""

    squared_error: float
    squared_norm: float
    r_squared: float
    codes: CodesInfo
    penalty: float


@torch.no_grad()
def measure(data: Data, state: State, method: Method, rows: int) -> Measured:
    """How well the factors of a State explain the data, from tiles of `rows` rows.

    The error is computed from the residual.
    """
    D, processes, total = state.D, data.processes, float(data.squared_norm)
    on_codes = method.penalties.of_codes(data.d)
    on_dictionary = method.penalties.of_dictionary(data.n)
    # not as a difference of sums of chunks in float32
    seen = _observed_rows(data)
    plain = data.scale is None and data.weights is None
    sums_spread, mean = not data.in_memory_here and plain, data.mean_row
    # of rows as tiles have them
    mean = (mean if data.offset is None else mean - data.offset).to(D)
    sums, rebuilt = torch.zeros(3, dtype=torch.float64, device=D.device), Rebuilt(D)

    def codes() -> Iterator[Tensor]:
        first = 0
        for X, Z, _ in FreshTiles(data, state.Z, D, method, rows):
            X, part = widened(X), slice(first, first + len(Z))
            if data.weights is None:
                sums[0] += rebuilt.squared_error(X, Z)
            else:
                sums[0] += data.weights.beside(part, X).squared_error(Z, D)
            sums[1] += on_codes.value(Z)
            if sums_spread:
                sums[2] += sum(squared_norm(some - mean) for _, some in dense_tiles(X))
            first = part.stop
            yield Z if seen is None else Z[seen[part].to(Z.device)]

    with products_in("highest"):
        info = describe(codes(), D, processes)
        processes.sum_(sums)
        error, penalty, summed = sums.tolist()
        explained = r_squared(summed if sums_spread else data.squared_spread, error, total)
        return Measured(error, total, explained, info, penalty + float(on_dictionary.value(D)))


def _observed_rows(data: Data) -> Tensor | None:
    """Which rows here have a weight above 0 (n,); None for all."""
    weighted = data.scale if data.weights is None else data.weights
    return None if weighted is None else weighted.observed_rows


def describe(tiles: Iterable[Tensor], D: Tensor, processes: Processes = ALONE) -> CodesInfo:
    """Statistics of codes (n, K), given in tiles, with those of other processes, and of D (K, d).

    The near-duplicates take 2 K² d flops.
    """
    K = D.shape[0]
    used = torch.zeros(K, dtype=torch.int64, device=D.device)
    squares = torch.zeros(K, dtype=torch.float64, device=D.device)
    # rows by their number of active concepts; Hoyer sparsities, and rows that have one
    rows = torch.zeros(K + 1, dtype=torch.int64, device=D.device)
    hoyer = torch.zeros(2, dtype=torch.float64, device=D.device)
    split = (part for Z in tiles for part in Z.split(max(1, _ENTRIES // K)))
    # Z ≥ 0: its signs are counted, in a small copy; count_nonzero takes 8 bytes an entry
    for tile in split:
        signs = tile.sign()
        used += signs.sum(0).long()
        # bincount would wait for the device
        rows.scatter_add_(0, signs.sum(1).long(), rows.new_ones(len(tile)))
        squares += torch.linalg.vector_norm(tile, dim=0, dtype=torch.float64).square()
        sparsity = _hoyer(tile)
        hoyer += torch.stack([sparsity.nansum(), (~sparsity.isnan()).sum()])
    processes.sum_(used, squares, rows, hoyer)
    lengths = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    energy = squares * lengths.square()
    energy = energy / energy.sum().clamp(min=1e-300)
    dead, near = ((used == 0) | (D == 0).all(1)).sum(), (alike(D) >= 0).sum()
    counts = torch.stack((used.sum(), dead, near)).double()
    # one transfer; counts are exact in float64
    read = torch.cat((counts, hoyer, energy, rows.double())).tolist()
    (active, dead, near), (sparsity, defined) = map(int, read[:3]), read[3:5]
    counted = [int(count) for count in read[5 + K :]]
    most = max(l0 for l0, count in enumerate(counted) if count)
    width = -(-(most + 1) // _BARS)
    histogram = [0] * -(-(most + 1) // width)
    for l0, count in enumerate(counted[: most + 1]):
        histogram[l0 // width] += count
    return CodesInfo(
        mean_l0=active / sum(counted),
        l0_histogram=tuple(histogram),
        l0_most=most,
        hoyer=sparsity / max(1.0, defined),
        energy=tuple(read[5 : 5 + K]),
        dead_concepts=dead,
        near_duplicates=near,
    )


def r_squared(spread: float, squared_error: float, squared_norm: float) -> float:
    """1 − ‖A − Z D‖² / spread, with spread = ‖A − its mean row‖².

    Where all rows of A are alike it is 1 without an error, else 0.
    """
    # rows that are alike still differ by the rounding of their mean
    if spread <= 1e-24 * squared_norm:
        return 1.0 if squared_error == 0 else 0.0
    return 1 - squared_error / spread


def _hoyer(Z: Tensor) -> Tensor:
    """(√K − ‖z‖₁ / ‖z‖₂) / (√K − 1) of every row; NaN for rows of zeros. Source: Hoyer, 2004."""
    root = Z.shape[1] ** 0.5
    if root == 1:
        return torch.where(Z[:, 0] > 0, 1.0, torch.nan).double()
    # by the largest entry: squares of small codes would vanish
    Z = Z / Z.amax(1, keepdim=True)
    return ((root - Z.sum(1) / torch.linalg.vector_norm(Z, dim=1)) / (root - 1)).double()


def as_plain(info: Any) -> dict[str, Any]:
    """The attributes of a summary as plain Python values, by name: those in a tuple, too."""
    # not dataclasses.asdict, which copies every number: 40 µs for each iteration of a history
    return {field.name: _plain(getattr(info, field.name)) for field in fields(info)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_plain, value))
    return as_plain(value) if hasattr(value, "__dataclass_fields__") else value
