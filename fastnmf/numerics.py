"""Dtypes of computing, norms, powers of two."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# 16-bit dtypes that stay as they are in memory, and the devices where they do
NARROW = (torch.float16, torch.bfloat16)
NARROW_ON = ("cuda", "xpu")
# bytes that are widened at once: a copy of them takes ten times as long as a launch
WIDENED_BYTES = 1 << 27
Part = Tensor | np.ndarray


def compute_dtype(part: Part) -> torch.dtype:
    """The dtype that data are computed in: float64 for floats of 8 bytes or more, else float32."""
    torchs = isinstance(part.dtype, torch.dtype)
    real = part.dtype.is_floating_point if torchs else part.dtype.kind == "f"
    return torch.float64 if real and part.dtype.itemsize >= 8 else torch.float32


def widened(X: Tensor) -> Tensor:
    """X in its compute dtype: itself, or a copy of 16-bit numbers."""
    return X.to(compute_dtype(X))


def wide_tiles(X: Tensor) -> Iterable[Tensor]:
    """X itself, or tiles of its rows, widened, where it holds 16-bit numbers."""
    if X.dtype not in NARROW:
        return [X]
    return map(widened, X.split(max(1, WIDENED_BYTES // (4 * max(1, X.shape[1])))))


def product(X: Tensor, B: Tensor) -> Tensor:
    """X B; 16-bit numbers are widened a tile of rows at a time."""
    products = [tile @ B for tile in wide_tiles(X)]
    return products[0] if len(products) == 1 else torch.cat(products)


# bytes of a norm on a GPU, which is computed in float64, a part at a time, and twice in between
NORM_BYTES = 1 << 28
# entries summed in float32 before float64 takes over
_NORM_ENTRIES = 1 << 12
# entries of matrices whose product is formed whole, and of others at a time
_INNER_WHOLE, _INNER_ENTRIES = 1 << 20, 1 << 18


def add_squares_(sums: Tensor, delta: Tensor, F: Tensor) -> None:
    """sums += (‖delta‖², ‖F‖²), in float64."""
    sums[0].add_(squared_norm(delta))
    sums[1].add_(squared_norm(F))


def squared_norm(X: Tensor) -> Tensor:
    """‖X‖² of a matrix, dense or sparse, a float64 scalar; summed tile by tile, so that X is never
    copied whole."""
    if not isinstance(X, Tensor):
        return X.squared_norm()
    X = X if X.stride(1) == 1 else X.T
    if X.device.type != "cpu" or X.dtype == torch.float64:
        wide = X.split(max(1, (1 << 24) // max(1, X.shape[1])))
        norms = [torch.linalg.vector_norm(tile, dtype=torch.float64) for tile in wide]
        return torch.stack(norms).square().sum() if len(norms) > 1 else norms[0].square()
    if X.numel() <= _NORM_ENTRIES:
        return torch.linalg.vector_norm(widened(X)).double().square_()
    norms = [
        torch.linalg.vector_norm(lines, dim=1).double()
        for tile in wide_tiles(X)
        for lines in _lines(tile)
    ]
    return torch.cat(norms).square_().sum()


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """⟨X, Y⟩ of matrices of one shape, a scalar in the widest float that the device has; of their
    products few are in memory at a time on a CPU."""
    if X.device.type != "cpu" or X.numel() <= _INNER_WHOLE:
        return (X * Y).sum(dtype=wide(X.device))
    # along lines that are contiguous
    X, Y = (X, Y) if X.stride(1) == 1 else (X.T, Y.T)
    total = torch.zeros((), dtype=wide(X.device), device=X.device)
    step = max(1, _INNER_ENTRIES // X.shape[1])
    for i in range(0, len(X), step):
        total += (X[i : i + step] * Y[i : i + step]).sum(dtype=total.dtype)
    return total


def _lines(X: Tensor) -> tuple[Tensor, ...]:
    """The entries of X as matrices of _NORM_ENTRIES columns, and the rest."""
    if not X.is_contiguous():
        return X.split(_NORM_ENTRIES, dim=1)
    flat, lines = X.view(-1), X.numel() // _NORM_ENTRIES
    whole = lines * _NORM_ENTRIES
    return flat[:whole].view(lines, _NORM_ENTRIES), flat[None, whole:]


def largest_entry(X: Tensor) -> Tensor:
    """The largest absolute value of X, a scalar tensor."""
    # in one pass; it would copy what is not contiguous
    low, high = torch.aminmax(X) if X.is_contiguous() else (X.amin(), X.amax())
    return torch.maximum(high, -low)


def exponents(X: Tensor, least: int = 0) -> Tensor:
    """The power e (n,) int64 for each row of X (n, d) with which its largest entry is from 1/2 to 1
    times 2^e; 0 where it is at most `least` from 0, and for rows of zeros."""
    # 20 times as fast as the norm for infinity
    largest = torch.maximum(X.amax(1), -X.amin(1))
    power = largest.double().frexp().exponent.long()
    return torch.where(power.abs() > least, power, 0)


def times_power(X: Tensor, power: Tensor) -> Tensor:
    """X 2^power in float64, exact unless the result is out of range."""
    # a factor may be out of the range where the result is not
    half = power // 2
    return X.double() * _power_of_two(half) * _power_of_two(power - half)


def _power_of_two(power: Tensor) -> Tensor:
    """2^power, float64, for int64 from −1022 to 1023, which larger ones are taken for."""
    # torch.ldexp computes it in the default dtype
    return ((power.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def square_is_normal(largest: float, dtype: torch.dtype) -> bool:
    """Whether the square of a number, or of the largest of many, neither overflows in the dtype nor
    loses digits; 0 does not."""
    limits = torch.finfo(dtype)
    return largest == 0 or limits.tiny <= largest * largest <= limits.max


def tiny(like: Tensor) -> float:
    """The smallest normal number of this dtype, to divide by instead of 0."""
    return torch.finfo(like.dtype).tiny


def wide(device: torch.device) -> torch.dtype:
    """The widest float that the device has."""
    # MPS has no float64
    return torch.float32 if device.type == "mps" else torch.float64


def row_major(F: Tensor) -> Tensor:
    """F, a contiguous matrix, with the strides of one: those of a single row or column may
    be anything, and products choose their order of summation by them."""
    return F.flatten().view(F.shape)


def keep_largest_(Z: Tensor, norms: Tensor, most: int) -> Tensor:
    """Z (m, K) without its codes beyond the `most` largest of each row, where Z_k counts norms_k
    times; norms (K,). Returns Z."""
    if most >= Z.shape[1]:
        return Z
    kept = (Z * norms).topk(most, dim=1).indices
    return Z.copy_(torch.zeros_like(Z).scatter_(1, kept, Z.gather(1, kept)))
