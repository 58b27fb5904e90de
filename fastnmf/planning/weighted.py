"""The memory of a fit on data that are read in passes, with a weight for each entry."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import InvalidInput
from .memory import Budget, size_of


def with_weights(budget: Budget, n: int, d: int, dtype: torch.dtype) -> tuple[Budget, int]:
    """The budget of a fit on A (n, d) and its weights, and the features whose Gram matrices are in
    memory at a time: in half of what small chunks leave. Raises InvalidInput where that is too
    little for one.
    """
    K, itemsize = budget.K, dtype.itemsize
    # weights and their products with the data, both also in the dtype of the file
    beside = replace(budget, beside=4 * itemsize)
    # raises where not even small chunks fit
    beside.rows(n, d, dtype, n)
    # 'auto' may choose the start with the largest workspace
    start = "nndsvda" if budget.start == "auto" else budget.start
    least = beside.needs(n, d, dtype, start, n).least()
    # triangles, cross products, and changes of the concepts
    each = (K * (K + 1) // 2 + 3 * K) * itemsize
    features = min(d, max(0, budget.limit() - least) // 2 // each)
    if features < 1:
        limit = "free memory" if budget.requested is None else "max_memory"
        raise InvalidInput(
            f"{limit} of {size_of(budget.limit())} is too little for weights of entries with "
            f"{K:,} concepts: at least {size_of(least + 2 * each)} are needed, of which the Gram "
            f"matrix of one feature takes {size_of(each)}; fewer concepts need less"
        )
    return replace(beside, grams=features * each), features
