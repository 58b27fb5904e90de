"""fastnmf.nnls: exact non-negative least squares with a given dictionary."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from .active_set import NnlsInfo
from .backends import select
from .options import whole
from .rows import read_rows

log = logging.getLogger(__name__)

# numbers in the largest scratch array
_SCRATCH = 1 << 22


def nnls(
    A: Tensor | np.ndarray,
    D: Tensor | np.ndarray,
    Z0: Tensor | np.ndarray | None = None,
    *,
    max_iter: int | None = None,
    backend: str = "auto",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, NnlsInfo]:
    """Z = argmin ‖A − Z D‖² over Z ≥ 0, exactly, for every row of A.

    A (n, d) and D (K, d), of any signs, are NumPy arrays or tensors; it is computed on A's device.
    Z0 (n, K) is where the search starts: it changes the time, not the loss, and saves some only if
    it solves nearly the same problem. Returns a tensor Z (n, K), float64 if A or D is, else
    float32, and with return_info the account (Z, NnlsInfo): status, KKT residual and support of
    every row. A zero row has zero codes and a zero concept is not used. The products of A and D are
    computed in the dtype of Z and the search in float64: the KKT residual is some 1e-6 in float32
    and 1e-12 in float64.

    max_iter: searches for concepts that may enter a row's support; None: 3 K + 30, more than was
    ever seen to be needed. Rows that meet it are feasible, not solved: a warning is logged.
    Raises InvalidInput for wrong shapes and non-finite entries, BackendUnavailable. Source: Lawson
    & Hanson, 1974; on the Gram matrix: Bro & de Jong, 1997.
    """
    max_iter = whole("max_iter", max_iter, at_least=0, optional=True)
    device = A.device if isinstance(A, Tensor) else torch.device("cpu")
    D = read_rows(D, device=device, name="D", signed=True).A
    A = read_rows(A, device=device, features=D.shape[1], signed=True).A
    dtype = torch.promote_types(A.dtype, D.dtype)
    n, K = A.shape[0], D.shape[0]
    Z = torch.zeros(n, K, dtype=dtype, device=device)
    _, ops = select("anls", device, backend)
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    # absolute, however small beside the other concepts
    alive = norms > 0
    D = (D / torch.where(alive, norms, 1)[:, None]).to(dtype)
    if Z0 is not None:
        start = read_rows(Z0, device=device, name="Z0", features=K, columns="concepts").A
        # a zero concept would keep the value it starts from
        Z.copy_(start * norms)
    G = D @ D.T
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    account = []
    chunk_rows = max(1, _SCRATCH // max(D.shape))
    for first in range(0, n, chunk_rows):
        chunk = slice(first, first + chunk_rows)
        C = A[chunk].to(dtype) @ D.T
        account.append(
            ops["nnls_"](Z[chunk].T, C.T, G, sums, warm=Z0 is not None, max_steps=max_iter)
        )
    Z /= torch.where(alive, norms, 1)
    info = NnlsInfo.join(account)
    if info.capped:
        log.warning("nnls: %d of %d rows are not solved: %s", info.capped, n, info)
    return (Z, info) if return_info else Z
