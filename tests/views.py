"""Arguments of the compiled extension: matrices inside others, and views that are wrong."""

from __future__ import annotations

import numpy as np
import torch

from fastnmf.backends.pointers import NnlsLimits, view


class Matrix:
    """A (K, m) matrix inside a larger one of NaN; rows, columns or nothing contiguous."""

    def __init__(self, values, dtype, layout="rows"):
        K, m = values.shape
        shape, self.inside = {
            "rows": ((K + 2, m + 5), np.s_[1:-1, 3:-2]),
            "columns": ((m + 2, K + 5), np.s_[1:-1, 3:-2]),
            "apart": ((2 * K + 1, 3 * m + 2), np.s_[1::2, 2::3]),
        }[layout]
        self.whole = torch.full(shape, torch.nan, dtype=getattr(torch, dtype))
        inside = self.whole[self.inside]
        self.tensor = inside.T if layout == "columns" else inside
        self.tensor.copy_(torch.from_numpy(values))
        self.view = view(self.tensor)

    def values(self):
        """The matrix in float64, after checking that nothing around it was written to."""
        outside = self.whole.clone()
        outside[self.inside] = torch.nan
        assert outside.isnan().all()
        return self.tensor.double().numpy()


def changed(given, changes):
    """The arguments of a call with parts of its views, or of its limits, replaced."""
    given = dict(given)
    for name, parts in changes.items():
        if isinstance(given[name], NnlsLimits):
            given[name] = given[name]._replace(**parts)
        elif isinstance(parts, dict):
            fields = dict(zip(("address", "shape", "strides", "dtype"), given[name], strict=True))
            given[name] = tuple((fields | parts).values())
        else:
            given[name] = parts
    return given
