"""The plan of a fit in which each entry has a weight."""

from __future__ import annotations

from ...data.dataset import Data
from ...engine.weighted.step import GRAMS
from ...planning.memory import refuse_too_large
from ...planning.plan import Plan, Problem
from ..options import Options

# half-steps of the codes, and of the dictionary, on the same Gram matrices
INNER = 3, 3
# entries of the Gram matrices of a tile of rows
_TILE = 1 << 22


def weighted_plan(data: Data, problem: Problem, options: Options) -> Plan:
    """Products with pairs of concepts, 2 n d K (K + 3) flops for both halves. Raises InvalidInput
    where the Gram matrices of all features do not fit in memory."""
    n, d, K = problem.n, problem.d, problem.K
    pairs = K * (K + 1) // 2
    sizes = {"Gram matrices of the features": 3 * pairs * d * problem.itemsize}
    refuse_too_large(sizes, data.device, "give fewer concepts, or weights of rows or features")
    rows = min(n, max(64, _TILE // pairs))
    share = 1.0 if problem.stored is None else problem.stored
    flops = 4 * share * n * d * (pairs + K) + 2 * (n + d) * sum(INNER) * K**2
    return Plan(GRAMS, GRAMS, K, rows, flops, accelerates(options), INNER)


def accelerates(options: Options) -> bool:
    """Whether to extrapolate: where nothing is penalised, and no pair is given to start from."""
    if options.accelerate != "auto":
        return options.accelerate is True
    return isinstance(options.init, str) and not options.penalties
