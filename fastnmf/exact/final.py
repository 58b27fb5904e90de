"""Exact codes at the end of a fit with more concepts than features."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..backends.products import dense
from ..data.dataset import Data
from ..data.sparse.codes import compressed
from ..data.storage import NotKept, row_blocks
from ..engine.codes import chunk_rows
from ..engine.state import Method, State, Stopping
from ..solvers.penalties import Penalty
from .encoder import ExactEncoder

# exact codes take as long as 10 to 35 iterations (docs/notes/exact_codes.md)
LEAST_ITERATIONS = 50
# where one of so many codes is active, or fewer, products with these take less time
_FEW = 20
# codes that are widened at a time
_WIDENED = 1 << 20


def ends_exactly(
    state: State, data: Data, method: Method, stopping: Stopping, begun: float
) -> bool:
    """Whether a fit gains by exact codes at its end, and has as much time left as it took. begun:
    when, on the clock of time.perf_counter."""
    now = time.perf_counter()
    return gains(state, data, method, stopping) and now - begun <= stopping.deadline - now


def gains(state: State, data: Data, method: Method, stopping: Stopping) -> bool:
    """Whether exact codes lower the error of a fit by more than iterations do in their time: where
    it has converged with more concepts than features. On a GPU, and for a dictionary of any signs,
    that was not measured. Codes of solvers that keep zeros could not go on from there."""
    solver, many = method.solver, len(state.D) > data.d
    unsuited = state.exact_codes or solver.exact or solver.keeps_zeros or method.constraint.signed
    unsuited |= isinstance(state.Z, NotKept) or data.device.type != "cpu"
    unsuited |= data.weights is not None
    converged = state.stopped_by == stopping.converged_by and len(state.history) >= LEAST_ITERATIONS
    return many and converged and not unsuited


@torch.no_grad()
def take_exact_codes_(state: State, data: Data, method: Method, *, warm: bool = False) -> None:
    """Z ← the exact codes for D, of the rows whose objective they lower, at the end of a fit.
    method: as ExactEncoder has it. warm: whether from Z, where few codes are active. One pass over
    the rows of this process."""
    D, penalty = state.D, method.penalties.of_codes(data.d)
    encoder = ExactEncoder(D, data.n, method, 1, sweeps=False)
    for X, Z, _ in data.tiles(state.Z, chunk_rows(D, method), save=True):
        assert Z is not None
        found, _ = encoder(X, Z if warm else None)
        rows = dense(X).double()
        lower = _objective(rows, found, D, penalty) < _objective(rows, Z, D, penalty)
        Z.copy_(torch.where(lower[:, None], found, Z))
    state.exact_codes = True


def _objective(A: Tensor, Z: Tensor, D: Tensor, penalty: Penalty) -> Tensor:
    """½ ‖a − z D‖² and the penalty of each row (m,), in float64."""
    few = torch.count_nonzero(Z) * _FEW < Z.numel()
    codes = compressed(Z).to(torch.float64) if few else None
    rebuilt = Z.double() @ D.double() if codes is None else codes.dot(D.double())
    rows = 0.5 * (A - rebuilt).square().sum(1)
    # of few rows at a time
    for part in row_blocks(len(Z), max(1, _WIDENED // Z.shape[1])):
        some = Z[part].double()
        rows[part] += penalty.l1 * some.sum(1)
        rows[part] += 0.5 * penalty.l2 * some.square().sum(1)
    return rows
