"""Inputs that fastnmf takes and scikit-learn's checks do not: sparse tensors, tensors that need a
conversion, AnnData, arrays of other libraries by DLPack."""

from __future__ import annotations

from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

from ..data.arrays import Expected
from ..data.sparse.arrays import is_sparse, sparse_matrix
from ..data.sparse.files import loaded
from ..frames import refuse_transformed

# values are checked by scikit-learn, where X is an array
_UNCHECKED = Expected("X")


def readable(X: Any) -> Any:
    """X as scikit-learn's checks take it; all that they take is returned as it is.

    A sparse tensor becomes a csr_array, any other tensor an array, and of an AnnData X is taken. A
    tensor that requires a gradient has none here, as everywhere in scikit-learn.
    """
    # lists are of numbers there
    X = X if isinstance(X, list | tuple) else loaded(X)
    if hasattr(X, "__dlpack__") and not hasattr(X, "__array__"):
        X = torch.from_dlpack(X)
    if not isinstance(X, Tensor):
        return X
    refuse_transformed(X, "X")
    X = X.detach()
    if not (X.is_floating_point() or X.is_complex()):
        # scikit-learn's dtype for them
        X = X.double()
    X = X.float() if X.dtype == torch.bfloat16 else X
    if not is_sparse(X):
        return X.cpu().numpy()
    matrix = sparse_matrix(X, _UNCHECKED, "cpu", checks=False)
    values, col, crow = (part.numpy() for part in (matrix.values, matrix.col, matrix.crow))
    return csr_array((values, col, crow), matrix.shape)
