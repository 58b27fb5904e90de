"""The plan of a fit in which each entry has a weight."""

from __future__ import annotations

from ...data.dataset import Data
from ...engine.weighted.step import WEIGHTED
from ...planning.plan import Plan, Problem
from ..options import Options

# half-steps of the codes, and of the dictionary, on the same problems
INNER = 3, 3
# entries of the codes of a tile, which are extrapolated at a time
_TILE = 1 << 22


def weighted_plan(data: Data, problem: Problem, options: Options) -> Plan:
    """Half-steps in which each row, and each feature, is a problem of its own. The flops are those
    of Gram matrices, or of residuals where these have fewer."""
    n, d, K = problem.n, problem.d, problem.K
    share = 1.0 if problem.stored is None else problem.stored
    of_entry = min(2 * K * (K + 3), 8 * K * (1 + sum(INNER)))
    flops = share * n * d * of_entry + 2 * (n + d) * sum(INNER) * K**2
    rows = min(n, max(64, _TILE // K)) if data.in_memory_here else data.chunk_rows
    return Plan(WEIGHTED, WEIGHTED, K, rows, flops, accelerates(data, options), INNER)


def accelerates(data: Data, options: Options) -> bool:
    """Whether to extrapolate: where nothing is penalised, no pair is given to start from, and all
    is in memory."""
    if options.accelerate != "auto" or not data.in_memory_here:
        return options.accelerate is True
    return isinstance(options.init, str) and not options.penalties
