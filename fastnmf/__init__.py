"""fastnmf: non-negative matrix factorization A ≈ Z D, fast from 10 to 10,000 concepts and more.

A drop-in for the class NMF of the package Overcomplete. What takes long to load comes at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .backends import backends
from .errors import BackendUnavailable, InvalidInput, NotFitted
from .nnls import nnls

if TYPE_CHECKING:
    from .nmf import NMF
    from .overcomplete import is_patched, patch_overcomplete, unpatch_overcomplete

__all__ = [
    "NMF",
    "BackendUnavailable",
    "InvalidInput",
    "NotFitted",
    "__version__",
    "backends",
    "is_patched",
    "nnls",
    "patch_overcomplete",
    "unpatch_overcomplete",
]

# name → its module; no module here may have the name of what it holds
_AT_FIRST_USE = {
    "NMF": "nmf",
    "is_patched": "overcomplete",
    "patch_overcomplete": "overcomplete",
    "unpatch_overcomplete": "overcomplete",
}


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    held = getattr(importlib.import_module(f".{_AT_FIRST_USE[name]}", __name__), name)
    globals()[name] = held
    return held


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
