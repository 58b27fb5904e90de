"""Powers of two by which data, dictionaries and codes are scaled where their squares could be out
of the range of the dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends.products import Matrix, times_powers
from ..data.dataset import Data
from ..engine.state import Method
from ..errors import InvalidInput
from ..numerics import times_power, widened

# powers of two up to which the largest entries of A, D and codes have sums of squares that are far
# from the ends of the range
_SAFE = {torch.float32: 45, torch.float64: 400}


@dataclass(frozen=True)
class Powers:
    """Powers of two by which A and D are divided, and codes multiplied, where squares of any of
    them could be out of the range of the dtype; 0 elsewhere, where nothing changes."""

    A: int = 0
    D: int = 0

    @classmethod
    def of(cls, data: Data, D: Tensor, method: Method) -> Powers:
        # D is checked where it is given; what was written into it, or .half() made of it, is not
        low, high = torch.stack(torch.aminmax(D)).tolist()
        signed = method.constraint.signed
        if not (low > -math.inf if signed else low >= 0) or math.isinf(high):
            raise InvalidInput(
                f"the dictionary D has entries from {low:g} to {high:g}; they must be "
                f"finite{'' if signed else ' and ≥ 0'}: load it again by load_dictionary"
            )
        A, D = (math.frexp(largest)[1] for largest in (data.largest, max(high, -low)))
        powers, most = cls(A, D), torch.finfo(data.dtype).max ** 0.75
        # beside a penalty that is so much larger than D the squares of D do not count
        dominated = max(powers._weights(method)) > most
        return cls() if powers.are_safe(data.dtype) or dominated else powers

    def are_safe(self, dtype: torch.dtype) -> bool:
        """Whether nothing needs to be scaled: all squares are far from the ends of the range."""
        return max(abs(self.A), abs(self.D), abs(self.A - self.D)) <= _SAFE[dtype]

    def of_data(self, A: Matrix) -> Matrix:
        return times_powers(widened(A), torch.tensor(-self.A, device=A.device)) if self.A else A

    def of_dictionary(self, D: Tensor) -> Tensor:
        return _scaled(D, -self.D)

    def of_start(self, Z0: Tensor | None) -> Tensor | None:
        return None if Z0 is None else _scaled(Z0, self.D - self.A)

    def of_codes(self, Z: Tensor) -> Tensor:
        """The codes of A and D themselves. Raises ArithmeticError if they overflow or vanish."""
        codes = _scaled(Z, self.A - self.D)
        if codes is Z or not len(Z):
            return codes
        vanish = bool(Z.any()) and not codes.amax() >= torch.finfo(Z.dtype).tiny
        if vanish or not codes.isfinite().all():
            raise ArithmeticError(
                f"codes are too {'small' if vanish else 'large'} for "
                f"{str(Z.dtype).removeprefix('torch.')}: the largest entry of A is about "
                f"2^{self.A}, that of the dictionary D 2^{self.D}; scale D "
                "(D / D.max()), or pass A as float64"
            )
        return codes

    def _weights(self, method: Method) -> tuple[float, float]:
        """The weights alpha_Z of l1 and of l2 for codes that are scaled."""
        penalties = method.penalties
        powers = -self.A - self.D, -2 * self.D
        shares = penalties.l1_ratio, 1 - penalties.l1_ratio
        l1, l2 = (
            penalties.alpha_Z * share * 2.0 ** max(-1000, min(power, 1000))
            for share, power in zip(shares, powers, strict=True)
        )
        return l1, l2

    def penalised(self, method: Method) -> Method:
        """The method with the penalties of codes that are scaled."""
        l1, l2 = self._weights(method)
        if not (self.A or self.D) or not l1 + l2:
            return method
        scaled = replace(method.penalties, alpha_Z=l1 + l2, l1_ratio=l1 / (l1 + l2))
        return replace(method, penalties=scaled)


def _scaled(X: Tensor, power: int) -> Tensor:
    """X 2^power in its dtype; X itself for 0."""
    if power == 0:
        return X
    return times_power(X, torch.tensor(power, device=X.device)).to(X.dtype)
