"""Problems of exact non-negative least squares at a moderate scale, and their codes back at any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...numerics import exponents, times_power
from .residual import Measure, measure

# largest power of two from 1 that rows and concepts are not scaled by
_NEAR = 32
# multiple of the rounding of ‖D_k‖ ‖a‖ from which a slope at zero is precise enough
_CANCELS = 1e6


@dataclass(frozen=True)
class ScaledRows:
    """Rows A (n, d) and concepts D (K, d), each scaled by 2^−power, with powers (n,) and (K,), to a
    moderate size."""

    A: Tensor
    D: Tensor
    powers: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, A: Tensor, D: Tensor) -> ScaledRows:
        dtype = torch.promote_types(A.dtype, D.dtype)
        powers = exponents(A, _NEAR), exponents(D, _NEAR)
        scaled = [
            (times_power(X, -power[:, None]) if power.any() else X).to(dtype)
            for X, power in zip((A, D), powers, strict=True)
        ]
        return cls(scaled[0], scaled[1], powers)

    def __getitem__(self, rows: Tensor) -> ScaledRows:
        return ScaledRows(self.A[rows], self.D, (self.powers[0][rows], self.powers[1]))

    @property
    def power(self) -> Tensor | None:
        """Codes are those of the scaled problem times 2^power (n, K)."""
        of_rows, of_concepts = self.powers
        same = not (of_rows.any() or of_concepts.any())
        return None if same else of_rows[:, None] - of_concepts

    def cancels(self) -> Tensor:
        """Where D ≥ 0: whether slopes are sums whose terms nearly cancel, so that rounding may be a
        large share of them (n,)."""
        if not bool(self.A.amin() < 0):
            return torch.zeros(len(self.A), dtype=torch.bool, device=self.A.device)
        sizes = self.powers[1] - self.powers[1].max()
        D = times_power(self.D, sizes[:, None].clamp(min=-1022)).to(self.D.dtype)
        C = self.A @ D.T
        slope = torch.maximum(C.amax(1), -C.amin(1))
        norms = torch.linalg.vector_norm(self.A, dim=1) * torch.linalg.vector_norm(D, dim=1).max()
        return slope < _CANCELS * torch.finfo(self.A.dtype).eps * norms

    def measure(self, Z: Tensor) -> Measure:
        """The Measure of codes of the scaled problem; each concept counts with its true size."""
        return measure(self.A, self.D, Z, self.powers[1])

    def scaled(self, Z0: Tensor) -> Tensor:
        """A start of the scaled problem."""
        Z0 = Z0 if self.power is None else times_power(Z0, -self.power)
        return Z0.clamp(max=2.0**100)

    def unscaled(self, Z: Tensor) -> Tensor:
        """The codes. Raises ArithmeticError where they are out of range."""
        if self.power is None:
            return Z
        info, codes = torch.finfo(Z.dtype), times_power(Z, self.power)
        small = (codes < info.tiny) & (Z > 1e-3 * Z.amax(1, keepdim=True))
        # rows that are tiny themselves have codes without all digits
        small &= (self.powers[0] > math.log2(info.tiny) + 24)[:, None]
        if bool((codes > info.max).any() | small.any()):
            size, one = ("small", small) if small.any() else ("large", codes > info.max)
            i = int(one.any(1).byte().argmax())
            more = " or give float64" if Z.dtype == torch.float32 else ""
            raise ArithmeticError(
                f"codes of row {i} are too {size} for {name_of(Z.dtype)}: D is too "
                f"{'large' if size == 'small' else 'small'} for the rows of A; scale D{more}"
            )
        return codes.to(Z.dtype)


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype in messages."""
    return str(dtype).removeprefix("torch.")
