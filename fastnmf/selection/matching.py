"""Concepts of several dictionaries, matched one to one by their cosine, and how alike the matched
ones are."""

# scipy's types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# rounds of matching and new centres, at most; a handful is usual
_ROUNDS = 20
# the share of the other runs whose nearest concepts tell how dense a place is (Kotliar et al.)
_NEIGHBOURS = 0.3


def require_scipy() -> None:
    """Raise ModuleNotFoundError, saying what to install, where nothing can be matched."""
    if importlib.util.find_spec("scipy") is None:
        raise ModuleNotFoundError("concepts are matched by SciPy: pip install scipy")


def directions(D: Tensor) -> Tensor:
    """The concepts (…, K, d) of D at norm 1, in float64; zero ones stay zero."""
    D = D.double()
    # by the largest entry: squares of small entries would vanish
    D = D / D.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(D.dtype).tiny)
    lengths = torch.linalg.vector_norm(D, dim=-1, keepdim=True)
    return D / lengths.clamp(min=torch.finfo(D.dtype).tiny)


def match(U: Tensor, V: Tensor) -> Tensor:
    """For each concept of U (K, d) the number of its own concept of V (K, d), so that the sum of
    their cosines is the largest. Both have norm 1. Source: Crouse, "On implementing 2D rectangular
    assignment algorithms", 2016, by scipy.optimize.linear_sum_assignment."""
    from scipy.optimize import linear_sum_assignment

    _, chosen = linear_sum_assignment((U @ V.T).numpy(), maximize=True)
    return torch.as_tensor(chosen, dtype=torch.int64, device="cpu")


def mean_cosine(dictionaries: Sequence[Tensor]) -> float:
    """The mean cosine of matched concepts, over all pairs of dictionaries; 1 for a single one."""
    units = [directions(D) for D in dictionaries]
    pairs = [(U, V) for i, U in enumerate(units) for V in units[:i]]
    found = [float((U * V[match(U, V)]).sum(1).mean()) for U, V in pairs]
    return sum(found) / len(found) if found else 1.0


def aligned(units: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Concepts (R, K, d) of R runs, of norm 1, in one order: `order` (R, K), and the medians (K, d)
    of the concepts in that order, of norm 1.

    Concepts are matched to those of run `first`, then to the medians until no match changes.
    """
    runs, K, _ = units.shape
    centres, order = units[first], torch.full((runs, K), -1, dtype=torch.int64, device="cpu")
    for _ in range(_ROUNDS):
        found = torch.stack([match(centres, U) for U in units])
        if torch.equal(found, order):
            break
        order = found
        centres = directions(median(in_order(units, order)))
    return order, centres


def in_order(units: Tensor, order: Tensor) -> Tensor:
    """Concepts (R, K, d), those of each run in its order (R, K)."""
    return torch.stack([U[own] for U, own in zip(units, order, strict=True)])


def median(concepts: Tensor) -> Tensor:
    """The median (…) of the entries of concepts (R, …); of an even number, the mean of two."""
    return torch.from_numpy(np.median(concepts.numpy(), axis=0))


def distances_of_neighbours(ordered: Tensor) -> Tensor:
    """How far each concept (R, K, d) is from those of other runs that match it: the mean Euclidean
    distance to the nearest third of them, (R, K). 2 R² K d flops."""
    runs = len(ordered)
    nearest = max(1, round(_NEIGHBOURS * (runs - 1)))
    out = ordered.new_zeros(ordered.shape[:2])
    for k in range(ordered.shape[1]):
        cosines = ordered[:, k] @ ordered[:, k].T
        distances = (2 - 2 * cosines).clamp(min=0).sqrt().fill_diagonal_(torch.inf)
        out[:, k] = distances.topk(nearest, largest=False).values.mean(1)
    return out


def silhouettes(ordered: Tensor) -> Tensor:
    """The silhouette of each concept (R, K, d) in the cluster of those that match it, (R, K), from
    −1 to 1, with distances 1 − cosine; of one concept its mean cosine. 2 R K² d flops.

    Source: P. Rousseeuw, "Silhouettes: a graphical aid", 1987.
    """
    runs, K, _ = ordered.shape
    # the mean cosine to the members of a cluster is the product with their mean
    means = ordered.mean(0)
    found = ordered.new_zeros(runs, K)
    for r, own in enumerate(ordered):
        cosines = own @ means.T
        # without itself
        inside = (runs * cosines.diagonal() - (own * own).sum(1)) / (runs - 1)
        if K == 1:
            found[r] = inside
            continue
        nearest = cosines.fill_diagonal_(-torch.inf).amax(1)
        within, apart = (1 - inside).clamp(min=0), (1 - nearest).clamp(min=0)
        larger = torch.maximum(within, apart)
        found[r] = torch.where(larger > 0, (apart - within) / larger, 0.0)
    return found
