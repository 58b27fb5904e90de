"""Data in memory whose entries have weights: what is not observed is filled, so that products with
it are finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidInput
from ...numerics import compute_dtype
from ..arrays import (
    Expected,
    ValueCheck,
    as_matrix,
    batches_in,
    check_values,
    tensor_of,
    two_dimensional,
)
from ..shards import Shards, open_paths, paths_of
from ..sparse.arrays import is_sparse
from ..sparse.files import loaded
from .given import KINDS, Weights, whole


def observed(
    A: Any, weights: Weights, expected: Expected, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A (n, d) on the device, a copy in the dtype to compute in, in which entries of weight 0 are
    estimated by the means of their row and feature; and the weights (n, d), bool or in that dtype.

    A: what arrays.read_matrix takes, or files, which are read. Raises InvalidInput where the
    weights do not suit A, and for entries with a weight above 0 that cannot be used.
    """
    X = whole_of(A, expected).to(device)
    expected.check_shape(tuple(X.shape))
    dtype = torch.promote_types(expected.dtype or torch.float32, compute_dtype(X))
    X = X.to(dtype)
    W = _expanded(weights, X)
    seen = W if W.dtype == torch.bool else W > 0
    if bool(seen.all()):
        check_values(X, ValueCheck(expected))
        return X, W
    X = torch.where(seen, X, 0)
    check_values(X, ValueCheck(expected))
    return Means.of(X.sum(0), seen.sum(0)).filled(X, seen, signed=expected.signed), W


def whole_of(A: Any, expected: Expected) -> Tensor:
    """A, which is dense, in memory, as it is stored."""
    A, name = loaded(A), expected.name
    if is_sparse(A):
        refuse_sparse(name)
    paths = paths_of(A)
    if paths:
        A = Shards(open_paths(paths), name, paths=paths)
    if isinstance(A, Shards):
        if A.stored is not None:
            refuse_sparse(name)
        parts: Iterator[Any] = (values for values, _, _ in A.parts())
    elif (matrix := as_matrix(A, name)) is not None:
        matrix = two_dimensional(matrix, name)
        return tensor_of(np.asarray(matrix) if isinstance(matrix, np.memmap) else matrix)
    else:
        parts = batches_in(A, name)
    return torch.cat([tensor_of(part) for part in parts])


def refuse_sparse(name: str) -> NoReturn:
    """Raise InvalidInput for a sparse matrix beside weights of entries."""
    raise InvalidInput(
        f"{name} is sparse, and weights of its entries, or of its rows with a penalty, are dense; "
        f"give sparse weights, which are 0 where they store nothing, or a dense {name}"
    )


def _expanded(weights: Weights, X: Tensor) -> Tensor:
    """The weights as a matrix of the shape of X, bool or in its dtype, on its device."""
    n, d = X.shape
    if weights.entries is not None:
        W = whole(weights.entries).to(X.device)
        if tuple(W.shape) != (n, d):
            raise InvalidInput(f"weights have shape {tuple(W.shape)}, A has {(n, d)}; give {KINDS}")
        return W if W.dtype == torch.bool else W.to(X.dtype)
    rows = torch.ones(1, 1, device="cpu") if weights.rows is None else weights.rows[:, None]
    features = torch.ones(1, 1, device="cpu") if weights.features is None else weights.features
    W = (rows * features).to(X)
    if len(W) not in (1, n) or W.shape[1] not in (1, d):
        shape = (len(W), 1) if weights.features is None else (1, W.shape[1])
        raise InvalidInput(f"weights have shape {shape}, A has {(n, d)}; give {KINDS}")
    return W.expand(n, d)


@dataclass(frozen=True)
class Means:
    """Means of what is observed, from which the rest is estimated. of_feature (d,), and of all: the
    latter also where nothing is observed."""

    of_feature: Tensor
    of_all: Tensor

    @classmethod
    def of(cls, sums: Tensor, counts: Tensor) -> Means:
        """From the sum of each feature (d,), and of how many entries that is."""
        middle = sums.sum() / counts.sum().clamp(min=1)
        return cls(torch.where(counts > 0, sums / counts.clamp(min=1), middle), middle)

    def filled(self, X: Tensor, seen: Tensor, *, signed: bool) -> Tensor:
        """X (m, d), zero where it is not `seen`, with estimates there: the mean of the row and that
        of the feature, minus that of all."""
        rows, middle = seen.sum(1), self.of_all.to(X)
        of_row = torch.where(rows > 0, X.sum(1) / rows.clamp(min=1), middle)
        found = of_row[:, None] + self.of_feature.to(X) - middle
        found = found if signed else found.clamp_(min=0)
        return torch.where(seen, X, found)
