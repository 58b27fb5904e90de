"""fastnmf: non-negative matrix factorization A ≈ Z D, fast from 10 to 10,000 concepts and more.

A drop-in for the class NMF of the package Overcomplete. Modules are loaded at first use.

    from fastnmf import NMF

    nmf = NMF(nb_concepts=20)
    Z, D = nmf.fit(A)
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import (
    BackendUnavailable,
    ConvergenceWarning,
    FastnmfWarning,
    FitsFailed,
    InvalidInput,
    NotFitted,
)

if TYPE_CHECKING:
    from . import files
    from .backends.registry import available_backends
    from .fit.nnls import nnls, nnls_gram
    from .models.convex_nmf import ConvexNMF
    from .models.nmf import NMF
    from .models.semi_nmf import SemiNMF
    from .overcomplete import is_patched, patch_overcomplete, unpatch_overcomplete
    from .planning.plan import Tuning
    from .selection.choice import choose_concepts
    from .selection.many import fit_many
    from .selection.stability import stability

__all__ = [
    "NMF",
    "BackendUnavailable",
    "ConvergenceWarning",
    "ConvexNMF",
    "FastnmfWarning",
    "FitsFailed",
    "InvalidInput",
    "NotFitted",
    "SemiNMF",
    "Tuning",
    "__version__",
    "available_backends",
    "choose_concepts",
    "files",
    "fit_many",
    "is_patched",
    "nnls",
    "nnls_gram",
    "patch_overcomplete",
    "stability",
    "unpatch_overcomplete",
]

# name → its module
_AT_FIRST_USE = {
    "ConvexNMF": "models.convex_nmf",
    "NMF": "models.nmf",
    "SemiNMF": "models.semi_nmf",
    "Tuning": "planning.plan",
    "available_backends": "backends.registry",
    "choose_concepts": "selection.choice",
    "fit_many": "selection.many",
    "is_patched": "overcomplete",
    "nnls": "fit.nnls",
    "nnls_gram": "fit.nnls",
    "patch_overcomplete": "overcomplete",
    "stability": "selection.stability",
    "unpatch_overcomplete": "overcomplete",
}


def __getattr__(name: str) -> Any:
    if name == "files":
        return importlib.import_module(".files", __name__)
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_AT_FIRST_USE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
