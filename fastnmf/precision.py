"""The precision of float32 products: both interfaces of torch, saved, set and restored.

torch stores it for the whole process. 'highest' is float32; 'high' lets products on CUDA be tf32.
On a CPU products are always in float32.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

# types of devices whose products may be tf32
TF32_ON = ("cuda",)

# the newer interface, of torch 2.9 and later: a value for each backend and operation, which inherit
# it where it is 'none'
_get = getattr(torch._C, "_get_fp32_precision_getter", None)
_set = getattr(torch._C, "_set_fp32_precision_setter", None)
_PRODUCTS = {
    backend: ((backend, "matmul"), (backend, "all"), ("generic", "all"))
    for backend in ("cuda", "mkldnn")
}
_FLOAT32 = ("none", "ieee")


@dataclass(frozen=True)
class _Settings:
    """What torch stores for products: by the older interface, and by the newer one for every
    backend, where there is one."""

    older: str
    newer: dict[str, str]

    @classmethod
    def of_torch(cls) -> _Settings:
        """The present settings."""
        newer = {} if _get is None else {name: _stored(*keys) for name, keys in _PRODUCTS.items()}
        try:
            return cls(torch.get_float32_matmul_precision(), newer)
        except RuntimeError:
            # torch does not tell one where the other contradicts it
            for backend in newer:
                _set(backend, "matmul", "ieee")
            settings = cls(torch.get_float32_matmul_precision(), newer)
            settings.restore()
            return settings

    def restore(self) -> None:
        """Make them the present ones."""
        # which changes the newer ones, too
        torch.set_float32_matmul_precision(self.older)
        for backend, value in self.newer.items():
            _set(backend, "matmul", value)


def _stored(key: tuple[str, str], *parents: tuple[str, str]) -> str:
    """The value of the newer interface as it was set, 'none' where it is inherited from `parents`.

    torch tells what follows from both. Where that is the value of the parent, the parent is changed
    for a moment, to 'ieee' if possible.
    """
    value = _get(*key)
    if not parents or value == "none" or value != _get(*parents[0]):
        return value
    kept = _stored(*parents)
    try:
        _set(*parents[0], "tf32" if value == "ieee" else "ieee")
        return value if _get(*key) == value else "none"
    finally:
        _set(*parents[0], kept)


def _allowed_by_torch() -> str:
    if _get is None:
        return "highest" if torch.get_float32_matmul_precision() == "highest" else "high"
    return "high" if _get("cuda", "matmul") == "tf32" else "highest"


def _present(precision: str) -> bool:
    """Whether both interfaces say so, and products on a CPU are in float32."""
    if _get is None:
        return torch.get_float32_matmul_precision() == precision
    if _allowed_by_torch() != precision or _get("mkldnn", "matmul") not in _FLOAT32:
        return False
    try:
        return torch.get_float32_matmul_precision() == precision
    except RuntimeError:
        return False


# contexts of all threads in the order in which they were entered → thread, precision; and the
# settings before the first change, none while torch has what is needed
_entered: dict[object, tuple[int, str]] = {}
_before: list[_Settings] = []
_lock = threading.RLock()


class products_in:
    """Compute products of this thread in this precision, 'highest' or 'high', in the context; None
    keeps the present one.

    Contexts of several threads may overlap. While one of them needs float32, products of all
    threads are in float32. The last context restores what torch had before the first.
    """

    # a class: a generator takes three times as long, and a call enters several
    def __init__(self, precision: str | None) -> None:
        self._precision = precision

    def __enter__(self) -> None:
        with _lock:
            precision = allowed() if self._precision is None else self._precision
            _entered[self] = threading.get_ident(), precision
            _take_up()

    def __exit__(self, *_: object) -> None:
        with _lock:
            del _entered[self]
            _take_up()


def _take_up() -> None:
    """Set what the innermost contexts of all threads need, or else what there was before."""
    if not _entered:
        if _before:
            _before.pop().restore()
        return
    needed = dict(_entered.values()).values()
    precision = "highest" if "highest" in needed else "high"
    if _present(precision):
        return
    if not _before:
        _before.append(_Settings.of_torch())
    torch.set_float32_matmul_precision(precision)
    if _get is not None:
        _set("mkldnn", "matmul", "ieee")


def allowed() -> str:
    """The precision of products of this thread: 'high' where those on CUDA may be tf32."""
    with _lock:
        innermost = dict(_entered.values()).get(threading.get_ident())
    return innermost or _allowed_by_torch()


def allowed_for(X: Tensor) -> str:
    """The same for products of X, which are tf32 only of float32 and on CUDA."""
    may_be = X.dtype == torch.float32 and X.device.type in TF32_ON
    return allowed() if may_be else "highest"


def in_tf32(X: Tensor) -> bool:
    """Whether products of X are computed in tf32."""
    return allowed_for(X) == "high"
