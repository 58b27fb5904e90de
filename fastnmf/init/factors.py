"""Factors that a caller gives to start from, checked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..backends.products import Matrix, largest
from ..data.arrays import Expected
from ..data.sparse.arrays import is_sparse, sparse_matrix
from ..errors import InvalidInput
from ..numerics import largest_entry, square_is_normal


def given_codes(Z0: object, shape: tuple[int, int], like: Tensor) -> Matrix:
    """Z0 as given_factor has it; a sparse one stays so."""
    if not is_sparse(Z0):
        return given_factor("Z0", Z0, shape, like)
    Z = sparse_matrix(Z0, Expected("Z0", empty=True), like.device).to(like.dtype)
    if Z.shape != shape:
        raise InvalidInput(f"Z0 has shape {Z.shape}; expected {shape}")
    _refuse_extreme("Z0", float(largest(Z)), like)
    return Z


def given_factor(
    name: str, value: object, shape: tuple[int, int], like: Tensor, *, signed: bool = False
) -> Tensor:
    """The factor on the device and in the dtype of `like`; itself where it is a tensor of these."""
    try:
        F = (
            value.detach()
            if isinstance(value, Tensor)
            else torch.tensor(np.asarray(value), device="cpu")
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} is a {type(value).__name__}, no tensor: {error}") from error
    if tuple(F.shape) != shape or F.is_complex():
        raise InvalidInput(
            f"{name} is {F.dtype} of shape {tuple(F.shape)}; expected real numbers of shape {shape}"
        )
    F = F.to(like)
    bad = ~(F.isfinite() & ((F >= 0) | signed))
    if bad.any():
        i, j = bad.nonzero()[0].tolist()
        raise InvalidInput(
            f"{name} has {int(bad.sum())} entries that are {'' if signed else 'negative or '}not "
            f"finite, the first at row {i}, column {j}: {F[i, j].item()}; a start must be "
            f"{'' if signed else '≥ 0 and '}finite"
        )
    _refuse_extreme(name, float(largest_entry(F)) if F.numel() else 0.0, F)
    return F


def _refuse_extreme(name: str, largest: float, like: Tensor) -> None:
    """Refuse a factor of this largest entry, whose square overflows or vanishes."""
    if not square_is_normal(largest, like.dtype):
        raise InvalidInput(
            f"the largest entry of the start {name} is {largest:.3g}, too "
            f"{'small' if largest < 1 else 'large'} to be squared; give Z0 and D0 of about the "
            "size of √A"
        )
