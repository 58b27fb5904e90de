"""The penalty of codes that are to have a mean number of active concepts, for a dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends.products import dense
from ...data.dataset import Data
from ...engine.state import Method
from ...errors import ConvergenceWarning, warn
from ...exact.encoder import ExactEncoder
from ...exact.powers import Powers
from ...exact.sparsity.penalty import find_penalty
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


@torch.no_grad()
def penalties_for(
    target: float, data: Data, D: Tensor, method: Method, *, guess: float | None = None
) -> tuple[Penalties, float]:
    """The penalties at which exact codes of the data for D (K, d) have `target` active concepts per
    row on average, and the mean that they have; found on up to ROWS rows, at equal distances.
    method: as ExactEncoder has it. guess: of l1. A collective call."""
    rows = torch.arange(0, data.n, -(-data.n // ROWS), device=data.device)
    X, powers = take_rows(data, rows), Powers.of(data, D, method)
    signed, d = method.constraint.signed, D.shape[1]
    D = powers.of_dictionary(D.to(data.dtype))
    D = D.to(wide(D.device)) if signed else D
    scaled, start = dense(powers.of_data(X)).to(D.dtype), None
    seen: dict[float, float] = {}

    def mean_l0(l1: float) -> float:
        nonlocal start
        penalised = powers.penalised(method.with_penalties(_of(l1, d)))
        encoder = ExactEncoder(D, len(X), penalised, 300)
        start, _ = encoder(scaled, start)
        seen[l1] = float(torch.count_nonzero(start)) / len(X)
        return seen[l1]

    size = float(torch.linalg.vector_norm(X, dtype=torch.float64)) / len(X) ** 0.5
    first = guess or max(_FIRST * size, torch.finfo(torch.float32).tiny)
    l1 = find_penalty(target, mean_l0, first)
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
