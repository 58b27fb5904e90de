"""Codes of a few rows with little delay: what depends on the dictionary alone is computed in the
first call, and kept as long as the dictionary has the same entries."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends.nnls.result import NnlsInfo
from ..planning.codes import CodesCost
from ..planning.hardware import machine_of
from ..precision import products_in
from ..solvers.half_step import Operations
from ..solvers.penalties import Penalty
from .powers import Powers
from .rows import ExactRows

# rows of a call, and entries of a dictionary and of its Gram matrix, at most: three times as many
# are kept
_ROWS, _ENTRIES = 16, 1 << 18
# dtypes → integers of their size, whose equality is that of bits
_BITS: dict[torch.dtype, Any] = {torch.float32: np.int32, torch.float64: np.int64}


class Means(NamedTuple):
    """How codes are computed: operations of solver anls, what supplies them, and the penalty."""

    ops: Operations
    backend: str
    penalty: Penalty


@torch.no_grad()
def codes_of_few(
    A: Any,
    D: Tensor,
    means: Callable[[], Means],
    made_for: Hashable,
    *,
    sweeps: bool,
) -> tuple[Tensor, NnlsInfo] | None:
    """The codes Z (m, K) that ExactEncoder computes for A (m, d), a few rows on a CPU, and the info
    of the search; or None where this is no case for it, and nothing is checked or reported.

    made_for: all that the means depend on. sweeps: whether rows are swept first where that is
    faster, which is such a case.
    """
    if not (_is_plain(A) and _is_plain(D) and _are_few(A, D)):
        return None
    kept = _kept.get(D)
    if kept is None or not kept.suits(D, made_for):
        # what another thread writes into D from here on shows in the next call
        copy = D.clone()
        if not _is_usable(copy):
            return None
        kept = _kept[D] = KeptRows(copy, means(), made_for)
    return None if sweeps and kept.sweeps(len(A)) else kept.codes(A)


# what was computed for a dictionary goes with it
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class KeptRows:
    """What the codes of few rows need of a dictionary D (K, d), a copy that nothing else writes to;
    any number of threads may use it."""

    D: Tensor
    means: Means
    made_for: Hashable

    def suits(self, D: Tensor, made_for: Hashable) -> bool:
        """Whether D has the same bits, however they were written, and the rest is the same."""
        if D.shape != self.D.shape or D.dtype != self.D.dtype or made_for != self.made_for:
            return False
        return bool((_bits(D) == self._copy).all())

    def sweeps(self, m: int) -> bool:
        """Whether m rows are swept, until they converge or for a start."""
        return self._cost.sweeps_first(m) or self._cost.sweeps_start(m)

    def codes(self, A: Tensor) -> tuple[Tensor, NnlsInfo] | None:
        """The codes Z (m, K) of A (m, d), and the info of the search; None where A cannot be used
        or must be scaled, or they may not be exact."""
        low, high = (bound.item() for bound in torch.aminmax(A))
        if not (low >= 0 and high < math.inf):
            return None
        if not Powers(math.frexp(high)[1], self._power).are_safe(A.dtype):
            return None
        Z = A.new_zeros(len(A), len(self.D))
        with products_in("highest"):
            info = self._rows.solve_(Z, A, self._rows.cross(A), warm=False)
        return (Z, info) if self._rows.surely_exact(info) else None

    @functools.cached_property
    def _copy(self) -> np.ndarray:
        return _bits(self.D)

    @functools.cached_property
    def _power(self) -> int:
        return math.frexp(float(self.D.amax()))[1]

    @functools.cached_property
    def _rows(self) -> ExactRows:
        return ExactRows(self.D, _ROWS, self.means.ops, self.means.penalty, form="normal")

    @functools.cached_property
    def _cost(self) -> CodesCost:
        K, d = self.D.shape
        return CodesCost(d, K, self.D.element_size(), machine_of(self.D, self.means.backend))


def _is_plain(X: Any) -> bool:
    """Whether X is a matrix in the memory of the CPU, whose entries are what torch computes
    with."""
    return (
        type(X) is Tensor
        and X.dim() == 2
        and X.dtype in _BITS
        and X.device.type == "cpu"
        and X.layout == torch.strided
        and X.stride(1) == 1
        and not X.is_neg()
    )


def _are_few(A: Tensor, D: Tensor) -> bool:
    (m, d), (K, _) = A.shape, D.shape
    suited = A.dtype == D.dtype and d == D.shape[1] and not D.requires_grad
    return suited and 0 < m <= _ROWS and 0 < K * max(K, d) <= _ENTRIES


def _is_usable(D: Tensor) -> bool:
    low, high = (bound.item() for bound in torch.aminmax(D))
    return low >= 0 and high < math.inf


def _bits(X: Tensor) -> np.ndarray:
    return X.numpy().view(_BITS[X.dtype])
