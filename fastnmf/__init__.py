"""fastnmf: non-negative matrix factorization A ≈ Z D, fast from 10 to 10,000 concepts and more.

A drop-in for the class NMF of the package Overcomplete.
"""

from ._version import __version__
from .backends import backends
from .errors import BackendUnavailable, InvalidInput, NotFitted
from .nmf import NMF
from .nnls import nnls
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
