"""Rows that a fit is not trained on: given, read from a file, or drawn from the rows of A."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.sparse.arrays import is_sparse
from ...errors import InvalidInput
from ..options import Options, generator

_RATHER = "give the rows for validation themselves, or a file of them"


class Split(NamedTuple):
    """A without the rows that were drawn, these rows, and the numbers of both in A."""

    training: Any
    held_out: Any
    kept: Tensor
    drawn: Tensor

    def joined(self, of_training: Tensor, of_held_out: Tensor) -> Tensor:
        """Codes of both in the order of A."""
        Z = of_training.new_empty(len(self.kept) + len(self.drawn), of_training.shape[1])
        Z[self.kept.to(Z.device)] = of_training
        Z[self.drawn.to(Z.device)] = of_held_out.to(Z)
        return Z


def check_validation(value: Any) -> Any:
    """The argument `validation`: a fraction between 0 and 1, rows, a path, or None."""
    if isinstance(value, bool) or (isinstance(value, str) and not value):
        raise TypeError(
            f"validation={value!r} must be rows, a file of rows, a fraction of the rows of A, or "
            "None"
        )
    if isinstance(value, Real) and not 0 < value < 1:
        raise InvalidInput(
            f"validation={value!r} is a fraction of the rows of A, and must be between 0 and 1; "
            "or give rows, or a file of them"
        )
    return value


def taken_apart(A: Any, options: Options) -> tuple[Any, Options, Split | None]:
    """A and the options of a fit: where validation is a fraction, of the rows that are left, with
    the others as rows for validation; and the split."""
    check_validation(options.validation)
    if (split := split_of(A, options)) is None:
        return A, options, None
    return split.training, replace(options, validation=split.held_out), split


def split_of(A: Any, options: Options) -> Split | None:
    """A split of A where validation is a fraction, by the seed of the options; None where it is not
    one. Raises InvalidInput for an A, or options, that do not go with a fraction."""
    share = options.validation
    if not isinstance(share, Real):
        return None
    share = float(share)
    given = f"validation={share:g}"
    array = isinstance(A, Tensor | np.ndarray) and A.ndim == 2
    if not array and not (is_sparse(A) and hasattr(A, "tocsr")):
        raise InvalidInput(
            f"{given} draws rows of A, which must be a tensor, an array or a sparse array of "
            f"SciPy; {_RATHER}"
        )
    pair = not isinstance(options.init, str)
    if options.codes != "memory" or pair or options.constraint.of_rows:
        other = f"codes={options.codes!r}"
        if options.constraint.of_rows:
            other = "ConvexNMF, whose concepts are mixtures of rows of A,"
        elif pair:
            other = "a pair (Z0, D0)"
        raise InvalidInput(f"{given} and {other} do not go together; {_RATHER}")
    n = int(A.shape[0])
    drawn = max(1, round(share * n))
    if drawn >= n:
        raise InvalidInput(f"{given} of {n} rows leaves none to learn from; give a smaller one")
    # the same in a fit that resumes, with any seed
    order = torch.randperm(n, generator=generator(options.seed or 0), device="cpu")
    kept, held = order[drawn:].sort().values, order[:drawn].sort().values
    A = A.tocsr() if is_sparse(A) else A
    return Split(_take(A, kept), _take(A, held), kept, held)


def _take(A: Any, numbers: Tensor) -> Any:
    return A[numbers.to(A.device)] if isinstance(A, Tensor) else A[numbers.numpy()]
