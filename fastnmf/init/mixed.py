"""Starts of a factorization whose concepts are mixtures of rows of the data, D = W A."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from ..backends.products import dense
from ..data.dataset import Data
from ..data.storage import Kept, row_blocks
from ..errors import InvalidInput
from ..numerics import wide
from ..solvers.supports.rows import Mixture
from .drawn import draw_codes_
from .factors import given_codes, given_factor
from .rows import any_rows, spread_rows
from .signed import cold_start, mean_size

STARTS = ("auto", "random", "rows", "spread")
# rows of A in each concept of a random start
_MIXED = 10
# rows of A that a concept of a given start may have
MOST_GIVEN = 1000


def resolve(init: str) -> str:
    """Name the start that `init` means, one of STARTS but not 'auto'."""
    return "spread" if init == "auto" else init


@torch.no_grad()
def start(
    data: Data,
    codes: Kept | None,
    K: int,
    init: Any,
    generator: Generator | None,
    *,
    convex: bool = False,
) -> tuple[Tensor, Mixture]:
    """Return D (K, d) to start from and the mixture that it is, and write its codes into `codes`,
    unless that is None.

    'spread' and 'rows' take rows of A, such as differ from each other or any, and the same again
    where there are too few. 'random' mixes some rows in each concept, and draws Overcomplete's
    codes, |normal| · sqrt(mean |A| / K). A pair (Z0, W0) is taken as it is, Z0 None for codes that
    are not kept. convex: weights sum to 1.
    """
    if not isinstance(init, str):
        return _given(data, codes, K, init, convex=convex)
    dtype, kind = wide(data.device), resolve(init)
    if kind == "random":
        if codes is not None:
            draw_codes_(codes, data, (mean_size(data) / K).sqrt(), generator)
        mixture = _random(data, K, generator)
        return mixed(data, mixture), mixture
    draw = spread_rows if kind == "spread" else any_rows
    numbers = draw(data, K, generator)
    if not len(numbers):
        # rows of zeros are as good as any
        numbers = torch.zeros(1, dtype=torch.int64, device=data.device)
    mixture = Mixture.of_single(numbers[torch.arange(K, device=data.device) % len(numbers)], dtype)
    D = mixed(data, mixture)
    for _, X, Z in () if codes is None else data.chunks(codes):
        cold_start(X, D, out=Z)
    return D, mixture


def mixed(data: Data, mixture: Mixture) -> Tensor:
    """D (K, d) = W A, computed in float64."""
    numbers, weights, _ = mixture.packed()
    rows = [w @ data.take(some).to(w.dtype) for some, w in zip(numbers, weights, strict=True)]
    return torch.stack(rows).to(data.dtype)


@torch.no_grad()
def random_weights(A: Tensor, K: int, generator: Generator | None = None) -> Tensor:
    """W (K, n) of a random start, dense."""
    data = Data(A)
    return _random(data, K, generator).sparse(data.n, data.dtype).to_dense()


def _random(data: Data, K: int, generator: Generator | None) -> Mixture:
    place = data.device if generator is None else generator.device
    most, drawn = min(_MIXED, data.n), range(K)
    numbers = torch.stack(
        [torch.randperm(data.n, generator=generator, device=place)[:most] for _ in drawn]
    )
    weights = torch.randn(K, most, generator=generator, dtype=wide(place), device=place).abs_()
    weights /= weights.sum(1, keepdim=True)
    return Mixture(numbers.to(data.device), weights.to(data.device))


def _given(
    data: Data, codes: Kept | None, K: int, init: Any, *, convex: bool
) -> tuple[Tensor, Mixture]:
    """The given pair, with a cold start where Z0 is None. Raises InvalidInput unless the shapes
    fit, every entry is finite and ≥ 0, and no concept has too many rows; or, if convex, weights do
    not sum to 1."""
    Z0, W0 = init
    if codes is None and Z0 is not None:
        raise InvalidInput(
            "init=(Z0, W0) gives codes, and codes=None keeps none; give init=(None, W0)"
        )
    Z = None if codes is None or Z0 is None else given_codes(Z0, (data.n_here, K), data.like)
    if isinstance(W0, Tensor) and W0.layout != torch.strided:
        W0 = W0.to_dense()
    elif hasattr(W0, "toarray"):
        W0 = W0.toarray()
    W = given_factor("W0", W0, (K, data.n), data.like).to(wide(data.device))
    most = int((W > 0).sum(1).amax())
    if most > MOST_GIVEN:
        raise InvalidInput(
            f"W0 mixes {most:,} rows of A in a concept; give at most {MOST_GIVEN:,}, of which a "
            "fit keeps some dozens"
        )
    if convex:
        sums = W.sum(1, keepdim=True)
        off = float((sums - 1).abs().max())
        if off > 1e-3:
            raise InvalidInput(
                f"a row of W0 sums to {float(sums[(sums - 1).abs().argmax()]):.4g}, and "
                "strict_convex=True needs sums of 1; give W0 / W0.sum(1, keepdim=True)"
            )
        W /= sums
    weights, numbers = W.topk(max(1, most), dim=1)
    mixture = Mixture(numbers, weights)
    for part in () if Z is None else row_blocks(data.n_here, data.chunk_rows):
        codes.save(part, dense(Z[part]))
    D = mixed(data, mixture)
    for _, X, some in data.chunks(codes) if codes is not None and Z is None else ():
        cold_start(X, D, out=some)
    return D, mixture
