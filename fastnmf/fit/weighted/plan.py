"""The plan of a fit in which each entry has a weight."""

from __future__ import annotations

from torch import Tensor

from ...data.dataset import Data
from ...data.weights.entries import EntryWeights
from ...engine.weighted.step import IMPUTED, WEIGHTED
from ...planning.plan import Plan, Problem
from ..options import Options

# half-steps of the codes, and of the dictionary, on the same problems
INNER = 3, 3
# concepts from which on imputation is faster, and the least share of what is observed: with 20
# concepts 1.9 to 2.3 times with half or more, 1.2 times with a fifth; with 50, 5.8 and 1.6 times
# with 0.8 and 0.3; with 8 no more than 1.1 times, and 0.6 times with 0.3 (docs/missing_values.md)
_LEAST_IMPUTED, _LEAST_SHARE = 12, 0.3
# entries of the codes of a tile, which are extrapolated at a time
_TILE = 1 << 22


def weighted_plan(data: Data, problem: Problem, options: Options) -> Plan:
    """Half-steps that impute what is missing, or in which each row, and each feature, is a problem
    of its own. The flops of these are those of Gram matrices, or of residuals where these have
    fewer."""
    n, d, K = problem.n, problem.d, problem.K
    rows = min(n, max(64, _TILE // K)) if data.in_memory_here else data.chunk_rows
    if imputes(data, K):
        flops = 10.0 * n * d * K + 2 * (n + d) * sum(INNER) * K**2
        return Plan(IMPUTED, IMPUTED, K, rows, flops, accelerates(data, options), INNER)
    share = 1.0 if problem.stored is None else problem.stored
    of_entry = min(2 * K * (K + 3), 8 * K * (1 + sum(INNER)))
    flops = share * n * d * of_entry + 2 * (n + d) * sum(INNER) * K**2
    return Plan(WEIGHTED, WEIGHTED, K, rows, flops, accelerates(data, options), INNER)


def imputes(data: Data, K: int) -> bool:
    """Whether half-steps impute what is missing: where they take less time to the same error."""
    weights = data.weights
    if not isinstance(weights, EntryWeights) or not isinstance(weights.X, Tensor):
        return False
    # many concepts need no matrix K × K the other way
    some = _LEAST_IMPUTED <= K <= min(data.n, data.d)
    return some and weights.least_share >= _LEAST_SHARE


def accelerates(data: Data, options: Options) -> bool:
    """Whether to extrapolate: where nothing is penalised, no pair is given to start from, and all
    is in memory."""
    if options.accelerate != "auto" or not data.in_memory_here:
        return options.accelerate is True
    return isinstance(options.init, str) and not options.penalties
