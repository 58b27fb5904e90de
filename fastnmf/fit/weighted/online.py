"""Online learning from batches whose rows or features have weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...data.arrays import Expected
from ...data.sparse.files import loaded
from ...data.weights.scaled import Scale, scaled
from ...distributed import Processes
from ...errors import InvalidInput
from .. import online
from ..online import Learned
from ..options import Options
from .request import Weighted


def partial_fit(
    A: Any,
    options: Options,
    before: Learned,
    half_life: float | None,
    device: torch.device,
    processes: Processes,
) -> Learned:
    """What online.partial_fit learns from a batch A, with the weights of the options from scaled
    rows and features."""
    how = half_life, device, processes
    if options.weights is None:
        return online.partial_fit(A, options, before, *how)
    with processes.agreed():
        if options.weights.entries is not None or options.weights.stored:
            raise InvalidInput(
                "weights of entries do not go with partial_fit, which would need a Gram matrix of "
                "the concepts for each feature; use fit, or weights of rows or features"
            )
        by = Weighted(options).scale or Scale()
        known = {} if before.D is None else {"features": before.D.shape[1], "dtype": before.D.dtype}
        expected = Expected(empty=not processes.alone, signed=options.constraint.signed, **known)
        A = scaled(loaded(A), by, expected)
        init = options.init if isinstance(options.init, str) else by.of_pair(options.init)
    known = replace(before, D=by.of_dictionary(before.D), cross=by.of_dictionary(before.cross))
    learned = online.partial_fit(A, replace(options, weights=None, init=init), known, *how)
    D = by.dictionary_of(learned.D, before.D)
    return replace(learned, D=D, cross=by.dictionary_of(learned.cross, before.cross))
