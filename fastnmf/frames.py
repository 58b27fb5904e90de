"""Data frames, nested lists and arrays of other libraries as NumPy arrays or tensors. None of these
libraries is imported."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidInput

# kinds of NumPy's dtypes that hold real numbers
REAL = "fiub"
# DLPack's numbers of memory that a processor can read
_ON_HOST = (1, 3)


def array_of(A: Any, name: str) -> np.ndarray | Tensor | None:
    """A as an array or, if it is on a GPU or has no other way, a tensor; None for what is no
    matrix, such as batches.

    A: an array, an object with `__array__` or `__dlpack__`, a memoryview, a data frame (pandas,
    polars), or lists of rows of numbers. Copied only where the kind of A demands it. Raises
    TypeError for a frame with columns that hold no real numbers, with the first of them.
    """
    if isinstance(A, np.ndarray):
        return A
    if _is_nested(A):
        return _of_lists(A, name)
    if hasattr(A, "columns") and hasattr(A, "dtypes") and hasattr(A, "to_numpy"):
        return _of_frame(A, name)
    if hasattr(A, "__dlpack__") and (not hasattr(A, "__array__") or not _is_on_host(A)):
        return torch.from_dlpack(A)
    if hasattr(A, "__array__") or isinstance(A, memoryview):
        return np.asarray(A)
    return None


def names_of_columns(A: Any) -> list[str] | None:
    """The names of the columns of a data frame, or of the variables of an AnnData; None where there
    are none, or only numbers."""
    named = getattr(A, "var_names", getattr(A, "columns", None))
    names = [] if named is None or not hasattr(A, "shape") else list(named)
    return names if names and all(isinstance(name, str) for name in names) else None


def _is_on_host(A: Any) -> bool:
    return not hasattr(A, "__dlpack_device__") or int(A.__dlpack_device__()[0]) in _ON_HOST


def _is_nested(A: Any) -> bool:
    """Whether A is a list of lists of numbers, or of text, and not of batches."""
    first = A[0] if isinstance(A, list | tuple) and A else None
    return isinstance(first, list | tuple) and bool(first) and isinstance(first[0], Number | str)


def _of_lists(A: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(A)
    except ValueError as error:
        raise InvalidInput(f"the rows of {name} are not of one length: {error}") from error


def _of_frame(A: Any, name: str) -> np.ndarray:
    kinds = list(A.dtypes)
    for column, dtype in zip(A.columns, kinds, strict=True):
        if hasattr(dtype, "subtype") and hasattr(A, "sparse"):
            raise TypeError(f"{name} has sparse columns; give {name}.sparse.to_coo()")
        if not _holds_numbers(dtype):
            raise TypeError(
                f"column {column!r} of {name} has dtype {dtype}; it must hold real numbers: leave "
                "it out, or convert it"
            )
    plain = all(isinstance(dtype, np.dtype) for dtype in kinds)
    if not plain and hasattr(A, "iloc"):
        # pandas' own dtypes would be an array of objects; what is missing becomes NaN
        return A.to_numpy(dtype=np.float64, na_value=np.nan)
    if plain and len(set(kinds)) > 1:
        # booleans beside numbers would be an array of objects
        return A.to_numpy(dtype=np.result_type(*kinds))
    return A.to_numpy()


def _holds_numbers(dtype: Any) -> bool:
    kind = getattr(dtype, "kind", None)
    if kind is not None:
        return kind in REAL
    return dtype.is_numeric() or str(dtype) == "Boolean"


def is_transformed(A: Any) -> bool:
    """Whether A is a tensor inside a transform of torch.func."""
    return isinstance(A, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(A)


def refuse_transformed(A: Any, name: str) -> None:
    """Raise InvalidInput for a tensor inside vmap, grad and other transforms of torch.func, whose
    values cannot be read."""
    if is_transformed(A):
        raise InvalidInput(
            f"{name} is inside a transform of torch.func (vmap, grad, jacrev, jvp …), where its "
            "values cannot be read; call it with the whole matrix, and take derivatives by "
            "torch.autograd.grad or torch.autograd.functional.jacobian"
        )
