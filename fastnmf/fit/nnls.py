"""Exact non-negative least squares with a given dictionary: the function fastnmf.nnls."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..backends.nnls.result import NnlsInfo
from ..backends.registry import select
from ..data.arrays import Expected, read_matrix
from ..numerics import products_in
from ..planning.plan import Problem, choose
from ..solvers import anls
from ..solvers.half_step import Operations
from ..solvers.working_set import GRAM_BYTES, hold_concepts, working_set_

log = logging.getLogger(__name__)

# numbers in the largest scratch array; every chunk of rows scales the Gram matrix anew
_SCRATCH = 1 << 24


# exact whatever torch.set_float32_matmul_precision allows
@products_in("highest")
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
    float32, and with return_info the infos (Z, NnlsInfo): status, KKT residual and support of
    every row. A zero row has zero codes and a zero concept is not used. The products of A and D are
    computed in the dtype of Z and the search in float64: the KKT residual is some 1e-6 in float32
    and 1e-12 in float64.

    max_iter: searches for concepts that may enter a row's support; None: 3 K + 30, more than was
    ever seen to be needed. Rows that meet it are feasible, not solved: a warning is logged.
    Raises InvalidInput for wrong shapes and non-finite entries, BackendUnavailable. Source: Lawson
    & Hanson, 1974; on the Gram matrix: Bro & de Jong, 1997.
    """
    max_iter = checks.whole("max_iter", max_iter, at_least=0, optional=True)
    device = A.device if isinstance(A, Tensor) else torch.device("cpu")
    D = read_matrix(D, device, Expected("D", signed=True))
    A = read_matrix(A, device, Expected(features=D.shape[1], signed=True))
    dtype = torch.promote_types(A.dtype, D.dtype)
    n, K = A.shape[0], D.shape[0]
    Z = torch.zeros(n, K, dtype=dtype, device=device)
    _, ops = select(anls.SOLVER.operations, device, backend)
    norms = torch.linalg.vector_norm(D, dim=1, dtype=torch.float64)
    # absolute, however small beside the other concepts
    alive = norms > 0
    D = (D / torch.where(alive, norms, 1)[:, None]).to(dtype)
    if Z0 is not None:
        start = read_matrix(Z0, device, Expected("Z0", K, "concepts"))
        # a zero concept would keep the value it starts from
        Z.copy_(start * norms)
    infos = []
    chunk_rows = max(1, _SCRATCH // max(D.shape))
    solve = _solver(D, n, ops, warm=Z0 is not None, max_steps=max_iter)
    for first in range(0, n, chunk_rows):
        chunk = slice(first, first + chunk_rows)
        infos.append(solve(Z[chunk], A[chunk].to(dtype)))
    Z /= torch.where(alive, norms, 1)
    info = NnlsInfo.join(infos)
    if info.capped:
        log.warning("nnls: %d of %d rows are not solved: %s", info.capped, n, info)
    return (Z, info) if return_info else Z


def _solver(D: Tensor, n: int, ops: Operations, **options) -> Callable[[Tensor, Tensor], NnlsInfo]:
    """solve(Z, A) for rows at a time: with the Gram matrix of all concepts if n rows are worth it,
    else on working sets."""
    sums = torch.zeros(3, dtype=torch.float64, device=D.device)
    K, d = D.shape
    problem = Problem(n, d, K, D.element_size(), anls.SOLVER, learns=False)
    form = choose(problem).codes
    if form == "normal" and K * K * D.element_size() <= GRAM_BYTES:
        G = D @ D.T
        return lambda Z, A: ops["nnls_"](Z.T, (A @ D.T).T, G, sums, **options)
    held = hold_concepts(D, n)
    return lambda Z, A: working_set_(Z.T, A.T, held, sums, ops["nnls_on_"], **options)
