"""Problems of exact non-negative least squares at a moderate scale, and their codes back at any."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...numerics import exponents, times_power
from .residual import NO_TERMS, Measure, Terms, measure

# largest power of two from 1 that rows and concepts are not scaled by
_NEAR = 32
# largest weight of l1 that has an effect: slopes without it are at most 2^64 times √d
_LARGEST_WEIGHT = 2.0**100
# multiple of the rounding of ‖D_k‖ ‖a‖ from which a slope at zero is precise enough
_CANCELS = 1e6


@dataclass(frozen=True)
class ScaledRows:
    """Rows A (n, d) and concepts D (K, d), each scaled by 2^−power, with powers (n,) and (K,), to a
    moderate size.

    dtype: that of the codes. A and D are float64 where that dtype could not hold them. terms: the
    weights l1 and l2 of scaled codes; with any of them all concepts have one power, and only rows
    of `groups` have one l1.
    """

    A: Tensor
    D: Tensor
    powers: tuple[Tensor, Tensor]
    dtype: torch.dtype
    terms: Terms = NO_TERMS

    @classmethod
    def of(cls, A: Tensor, D: Tensor, terms: Terms = NO_TERMS) -> ScaledRows:
        dtype = torch.promote_types(A.dtype, D.dtype)
        if not terms.none:
            return cls._penalised(A, D, dtype, terms)
        powers = exponents(A, _NEAR), exponents(D, _NEAR)
        return cls(*_scaled(A, D, powers, dtype), powers, dtype)

    @classmethod
    def _penalised(cls, A: Tensor, D: Tensor, dtype: torch.dtype, terms: Terms) -> ScaledRows:
        sizes, alive = exponents(D), D.any(1)
        largest = int(torch.where(alive, sizes, sizes[alive].min() if alive.any() else 0).max())
        if terms.l2:
            largest = max(largest, math.frexp(math.sqrt(terms.l2))[1])
        power = largest if abs(largest) > _NEAR else 0
        near = ((sizes - power).abs() <= _NEAR) | ~alive
        of_rows = exponents(A, _NEAR)
        if terms.l1:
            # few values, as rows of each are solved by themselves
            of_rows = (of_rows + _NEAR).div(2 * _NEAR, rounding_mode="floor") * (2 * _NEAR)
        powers = of_rows, torch.full_like(sizes, power)
        at = dtype if bool(near.all()) else torch.float64
        scaled = Terms(terms.l1, _times(terms.l2, -2 * power))
        return cls(*_scaled(A, D, powers, at), powers, dtype, scaled)

    def groups(self) -> Iterator[tuple[Tensor | slice, ScaledRows]]:
        """Which rows, and they with their weight l1; they have one power unless it is zero."""
        if not self.terms.l1:
            yield slice(None), self
            return
        concepts = int(self.powers[1][0])
        for power in self.powers[0].unique().tolist():
            l1 = min(_times(self.terms.l1, -power - concepts), _LARGEST_WEIGHT)
            which = self.powers[0] == power
            some = slice(None) if which.all() else which
            yield some, replace(self[some], terms=self.terms._replace(l1=l1))

    def __getitem__(self, rows: Tensor | slice) -> ScaledRows:
        return replace(self, A=self.A[rows], powers=(self.powers[0][rows], self.powers[1]))

    @property
    def power(self) -> Tensor | None:
        """Codes are those of the scaled problem times 2^power (n, K)."""
        of_rows, of_concepts = self.powers
        same = not (of_rows.any() or of_concepts.any())
        return None if same else of_rows[:, None] - of_concepts

    @functools.cached_property
    def signed(self) -> bool:
        """Whether A has negative entries."""
        return bool(self.A.amin() < 0)

    def cancels(self) -> Tensor:
        """Where D ≥ 0: whether slopes are sums whose terms nearly cancel, so that rounding may be a
        large share of them (n,)."""
        if not self.signed:
            return torch.zeros(len(self.A), dtype=torch.bool, device=self.A.device)
        sizes = self.powers[1] - self.powers[1].max()
        D = times_power(self.D, sizes[:, None].clamp(min=-1022)).to(self.D.dtype)
        C = self.A @ D.T
        slope = torch.maximum(C.amax(1), -C.amin(1))
        norms = torch.linalg.vector_norm(self.A, dim=1) * torch.linalg.vector_norm(D, dim=1).max()
        return slope < _CANCELS * torch.finfo(self.A.dtype).eps * norms

    def measure(self, Z: Tensor) -> Measure:
        """The Measure of codes of the scaled problem; each concept counts with its true size."""
        return measure(self.A, self.D, Z, self.powers[1], self.terms)

    def scaled(self, Z0: Tensor) -> Tensor:
        """A start of the scaled problem."""
        Z0 = Z0 if self.power is None else times_power(Z0, -self.power)
        return Z0.clamp(max=2.0**100)

    def unscaled(self, Z: Tensor, first: int = 0) -> Tensor:
        """The codes. Raises ArithmeticError where they are out of range; first: the number of the
        first row in its message."""
        if self.power is None:
            return Z
        names = "D", "the rows of A", "D"
        return unscaled_codes(Z, self.powers, names, first)


def unscaled_codes(
    Z: Tensor, powers: tuple[Tensor, Tensor], names: tuple[str, str, str], first: int
) -> Tensor:
    """Z (n, K) times 2^(of its row − of its concept). Raises ArithmeticError where that is out of
    range. names: of what is too large for what, and of what to scale; first: the number of the
    first row in the message."""
    of_rows, of_concepts = powers
    info, codes = torch.finfo(Z.dtype), times_power(Z, of_rows[:, None] - of_concepts)
    small = (codes < info.tiny) & (Z > 1e-3 * Z.amax(1, keepdim=True))
    # rows that are tiny themselves have codes without all digits
    small &= (of_rows > math.log2(info.tiny) + 24)[:, None]
    if bool((codes > info.max).any() | small.any()):
        size, one = ("small", small) if small.any() else ("large", codes > info.max)
        i = int(one.any(1).byte().argmax())
        more = " or give float64" if Z.dtype == torch.float32 else ""
        raise ArithmeticError(
            f"codes of row {first + i} are too {size} for {name_of(Z.dtype)}: {names[0]} is too "
            f"{'large' if size == 'small' else 'small'} for {names[1]}; scale {names[2]}{more}"
        )
    return codes.to(Z.dtype)


def _scaled(
    A: Tensor, D: Tensor, powers: tuple[Tensor, Tensor], dtype: torch.dtype
) -> list[Tensor]:
    return [
        (times_power(X, -power[:, None]) if power.any() else X).to(dtype)
        for X, power in zip((A, D), powers, strict=True)
    ]


def _times(weight: float, power: int) -> float:
    """weight 2^power; infinity is replaced by the largest number."""
    try:
        return math.ldexp(weight, power)
    except OverflowError:
        return math.ldexp(1.0, 1023)


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype in messages."""
    return str(dtype).removeprefix("torch.")
