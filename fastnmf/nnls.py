"""fastnmf.nnls: exact non-negative least squares with a given dictionary."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .active_set import nnls_
from .rows import read_rows

# numbers in the largest scratch array
_SCRATCH = 1 << 22


def nnls(A: Tensor | np.ndarray, D: Tensor | np.ndarray, Z0: Tensor | np.ndarray | None = None):
    """Z = argmin ‖A − Z D‖² over Z ≥ 0, exactly, for every row of A.

    A (n, d) and D (K, d), of any signs, are NumPy arrays or tensors; it is computed on A's device,
    in float64. Z0 (n, K) is where the search starts: it changes the time, not the loss. Returns a
    tensor Z (n, K), float64 if A or D is, else float32. A zero row has zero codes and a zero
    concept is not used. Raises InvalidInput for wrong shapes and non-finite entries. Source: Lawson
    & Hanson, 1974; on the Gram matrix: Bro & de Jong, 1997.
    """
    device = A.device if isinstance(A, Tensor) else torch.device("cpu")
    D = read_rows(D, device=device, name="D", signed=True).A
    A = read_rows(A, device=device, features=D.shape[1], signed=True).A
    dtype = torch.promote_types(A.dtype, D.dtype)
    n, K = A.shape[0], D.shape[0]
    Z = torch.zeros(n, K, dtype=torch.float64, device=device)
    if Z0 is not None:
        Z.copy_(read_rows(Z0, device=device, name="Z0", features=K, columns="concepts").A)
    D = D.double()
    G = D @ D.T
    # a zero concept would keep the value it starts from
    Z[:, G.diagonal() == 0] = 0
    chunk_rows = max(1, _SCRATCH // max(D.shape))
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for first in range(0, n, chunk_rows):
        chunk = slice(first, first + chunk_rows)
        nnls_(Z[chunk].T, D @ A[chunk].double().T, G, sums)
    return Z.to(dtype)
