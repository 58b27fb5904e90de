"""What a fit found, for the model that called it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .info import FitInfo


class Fitted(NamedTuple):
    """What a fit found: the codes, D (K, d) and the summary; the rows of A that concepts are
    mixtures of, W (K, n), sparse, where they are; and the offset (d,), where there is one."""

    Z: Tensor | None
    D: Tensor
    info: FitInfo
    W: Tensor | None = None
    offset: Tensor | None = None
