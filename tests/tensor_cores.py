"""Products on the CPU as tensor cores make them: where tf32 is allowed, operands are cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastnmf import precision
from fastnmf.backends.torch import REFERENCE

_aten = torch.ops.aten
# product → the places of its operands
_OPERANDS = {_aten.mm.default: (0, 1), _aten.mm.out: (0, 1), _aten.addmm_.default: (1, 2)}
_OPERANDS |= {_aten.addmm.default: (1, 2), _aten.addmm.out: (1, 2)}


class TensorCores(TorchDispatchMode):
    """products: how many were made in tf32."""

    products = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        places = _OPERANDS.get(function)
        if places is not None and precision.in_tf32(given[places[0]]):
            self.products += 1
            given = [cut(x) if at in places else x for at, x in enumerate(given)]
        return function(*given, **named or {})


def cut(X: Tensor) -> Tensor:
    """X to the 10 bits of mantissa of tf32, towards zero; the products of two such are exact in
    float32."""
    return (X.view(torch.int32) & -8192).view(torch.float32)


def hals_block_(*given) -> None:
    """The reference in float32, with Δ rounded where products are tf32: the kernel rounds what it
    multiplies by Δ."""
    with _disable_current_modes():
        REFERENCE["hals_block_"](*given)


@contextmanager
def tensor_cores() -> Iterator[TensorCores]:
    """In the context products of this thread are tf32 wherever fastnmf allows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "TF32_ON", ("cpu",))
        with precision.products_in("high"), TensorCores() as cores:
            yield cores
