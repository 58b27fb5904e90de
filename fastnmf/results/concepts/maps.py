"""Maps of concepts: places in two dimensions, those of similar concepts near each other."""

# libraries without types
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidInput


class Map(NamedTuple):
    """A kind of map. place(units): from the concepts (K, d) in double precision, each of norm 1 or
    0, to (K, 2). title: what the page calls it. module, package: what has to be installed for it.
    least, most: numbers of concepts that it is for."""

    place: Callable[[Tensor], Any]
    title: str
    module: str | None = None
    package: str | None = None
    least: int = 1
    most: float = float("inf")


def places(D: Tensor, kind: str = "svd") -> Tensor:
    """A map (K, 2) of the directions of the concepts, each axis from −1 to 1; the same in each
    call. Raises InvalidInput for a number of concepts that it is not for, and
    ModuleNotFoundError, which says what to install."""
    made, K = MAPS[kind], len(D)
    if made.module is not None and importlib.util.find_spec(made.module) is None:
        raise ModuleNotFoundError(
            f"map={kind!r} needs {made.package}: pip install {made.package}, or take map='svd'"
        )
    if not made.least <= K <= made.most:
        raise InvalidInput(
            f"map={kind!r} is for {made.least:,} to {made.most:,} concepts, the model has {K:,}; "
            "take map='svd'"
        )
    units = torch.nn.functional.normalize(D.double(), dim=1)
    # of fewer the libraries fail, t-SNE by a crash
    if made.least > 1 and (found := len(units.unique(dim=0))) < made.least:
        raise InvalidInput(
            f"map={kind!r} is for {made.least:,} or more concepts that differ, {found:,} of the "
            f"{K:,} do; take map='svd'"
        )
    xy = torch.as_tensor(made.place(units), dtype=torch.float64, device="cpu")
    middle = (xy.amax(0) + xy.amin(0)) / 2 if kind != "svd" else 0.0
    xy = xy - middle
    return xy / xy.abs().amax(0).clamp(min=1e-12)


def _svd(units: Tensor) -> Tensor:
    """On the two leading singular vectors, by subspace iterations from a fixed start."""
    units = units - units.mean(0)
    drawn = torch.Generator("cpu").manual_seed(0)
    V = torch.randn(units.shape[1], 4, dtype=torch.float64, generator=drawn, device="cpu")
    for _ in range(30):
        V = torch.linalg.qr(units.T @ (units @ V)).Q
    _, _, W = torch.linalg.svd(units @ V, full_matrices=False)
    xy = units @ (V @ W.T)[:, :2]
    if xy.shape[1] < 2:
        xy = torch.nn.functional.pad(xy, (0, 2 - xy.shape[1]))
    return xy


def _tsne(units: Tensor) -> Any:
    """By t-SNE (van der Maaten and Hinton, 2008)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(units) - 1) / 3)
    # a start from principal components, and no thread beside: the same in each call
    options = {"init": "pca", "random_state": 0, "n_jobs": 1}
    return TSNE(perplexity=perplexity, **options).fit_transform(units.numpy())


def _umap(units: Tensor) -> Any:
    """By UMAP (McInnes, Healy and Melville, 2018)."""
    from umap import UMAP

    neighbours = min(15, len(units) - 1)
    # a seed makes it the same in each call
    options = {"init": "pca", "random_state": 0, "n_jobs": 1}
    return UMAP(n_neighbors=neighbours, **options).fit_transform(units.numpy())


# for 5,000 concepts t-SNE and UMAP take about a minute
MAPS = {
    "svd": Map(_svd, "two leading singular vectors of the concepts"),
    "tsne": Map(_tsne, "t-SNE", "sklearn", "scikit-learn", least=5, most=5_000),
    "umap": Map(_umap, "UMAP", "umap", "umap-learn", least=5, most=5_000),
}
