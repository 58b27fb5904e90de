"""The penalty of codes that are to have a mean number of active concepts, for a dictionary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...backends.products import dense
from ...data.dataset import Data
from ...data.storage import Compressed, InMemory, NotKept, Storage
from ...engine.state import Method
from ...errors import ConvergenceWarning, warn
from ...exact.encoder import ExactEncoder
from ...exact.powers import Powers
from ...exact.sparsity.penalty import CLOSE, find_penalty
from ...init.rows import take_rows
from ...numerics import wide
from ...solvers.penalties import Penalties
from ..options import Options

# rows on which the penalty is found, at most: the mean of as many differs by 1 to 2 % from that of
# all
ROWS = 1024
# of the norms of a row and of a concept: the penalty that is tried first
_FIRST = 0.01
# the share of the target by which the mean may be off
_REACHED = 0.05


class Near(NamedTuple):
    """Where a search for the penalty begins: the penalty l1 of a fit, and its codes where all are
    in the memory of one process. most: rows on which it is found. close: the share of the target by
    which their mean may be off."""

    l1: float
    Z: Storage = NotKept()
    most: int = ROWS
    close: float = CLOSE

    def codes_of(self, rows: Tensor, powers: Powers) -> Tensor | None:
        """Those of these rows (m,), to start from."""
        Z = self.Z
        if isinstance(Z, InMemory) and len(Z.Z) > int(rows[-1]):
            return powers.of_start(Z.Z[rows])
        if isinstance(Z, Compressed) and Z.shape[0] > int(rows[-1]):
            return powers.of_start(Z.matrix().take(rows).to_dense())
        return None


@torch.no_grad()
def penalties_for(
    target: float, data: Data, D: Tensor, method: Method, *, near: Near | None = None
) -> tuple[Penalties, float]:
    """The penalties at which exact codes of the data for D (K, d) have `target` active concepts per
    row on average, and the mean that they have; found on up to ROWS rows, or those of `near`, at
    equal distances.
    method: as ExactEncoder has it. near: where to begin. A collective call."""
    most = ROWS if near is None else near.most
    rows = torch.arange(0, data.n, -(-data.n // most), device=data.device)
    X, powers = take_rows(data, rows), Powers.of(data, D, method)
    signed, d = method.constraint.signed, D.shape[1]
    D = powers.of_dictionary(D.to(data.dtype))
    D = D.to(wide(D.device)) if signed else D
    scaled, start, close = dense(powers.of_data(X)).to(D.dtype), None, CLOSE
    if near is not None:
        start, close = near.codes_of(rows, powers), near.close
    seen: dict[float, float] = {}

    def mean_l0(l1: float) -> float:
        nonlocal start
        penalised = powers.penalised(method.with_penalties(_of(l1, d)))
        encoder = ExactEncoder(D, len(X), penalised, 300)
        start, _ = encoder(scaled, start)
        seen[l1] = float(torch.count_nonzero(start)) / len(X)
        return seen[l1]

    size = float(torch.linalg.vector_norm(X, dtype=torch.float64)) / len(X) ** 0.5
    first = max(_FIRST * size, torch.finfo(torch.float32).tiny) if near is None else near.l1
    l1 = find_penalty(target, mean_l0, first, close)
    # what follows from rounding may differ between processors
    agreed = torch.tensor([l1, seen[l1]], dtype=torch.float64, device=data.device)
    data.processes.broadcast_(agreed)
    l1, mean = agreed.tolist()
    return _of(l1, d), mean


def encoding_penalties(options: Options, data: Data, D: Tensor, top_k: int | None) -> Penalties:
    """The penalties of an encoding: those of the options, or with target_l0 those that are found
    for the data; none for codes with up to top_k concepts. Warns where the mean is not reached."""
    target = options.target_l0
    if target is None or top_k is not None:
        return options.penalties
    penalties, mean = penalties_for(target, data, D, options.method_of_codes(D.device))
    if abs(mean - target) > max(_REACHED * target, 1 / data.n):
        warn(
            f"encode: target_l0={target:g} is not reached: with the best penalty, alpha_Z="
            f"{penalties.alpha_Z:.3g}, {mean:.4g} concepts are active per row; the dictionary and "
            "the rows allow no other mean: give another target_l0",
            ConvergenceWarning,
        )
    return penalties


def _of(l1: float, d: int) -> Penalties:
    return Penalties(l1 / d, 0.0, 1.0, True)
