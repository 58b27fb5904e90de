"""The cost model: predicted and measured seconds over forms, blocks and pieces; what it loses."""

from __future__ import annotations

import itertools
import math

import pytest
from contenders import CPU, checked, iteration, machine_of, planned
from measure import Bench, called
from workloads import GRID

from fastnmf.backends import select
from fastnmf.plan import BLOCKS, FORMS, REFRESH, Plan, predict

PIECES = (256, 1024, 4096)
# plans predicted to take this many times the least are not run
HOPELESS = 2.0
FINALISTS, TURNS = 4, 3


def plans(bench: Bench, backend: str) -> list[Plan]:
    """The plan's own choice first, then the grid, without what is hopeless."""
    n, d, K = bench.problem.sizes
    choice = planned(bench.problem, "hals", backend)
    found = {choice: None}
    for codes, dictionary, block, piece in itertools.product(FORMS, FORMS, BLOCKS, PIECES):
        one = (codes, dictionary, min(block, K), min(piece, n))
        found[predict(n, d, K, 4, "hals", *one, on=machine_of(backend))] = None
    limit = HOPELESS * min(candidate.seconds for candidate in found)
    return [candidate for candidate in found if candidate.seconds <= limit]


def measured(bench: Bench, candidates: list[Plan], backend: str) -> dict[Plan, float]:
    """Seconds of an iteration by each plan, on average over those that share a residual; at last
    the choice and the fastest in turns."""
    seconds = dict.fromkeys(candidates, math.inf)

    def run(candidate: Plan) -> None:
        timing = iteration(bench.problem, "hals", backend, candidate, REFRESH)
        seconds[candidate] = min(seconds[candidate], timing.scale * called(timing)[1])

    for candidate in candidates:
        run(candidate)
    # as often as the choice, or the noise of the machine would speak for it
    fastest = sorted(candidates[1:], key=seconds.get)[:FINALISTS]
    for candidate in TURNS * (candidates[0], *fastest):
        run(candidate)
    return seconds


@pytest.mark.parametrize("workload", GRID)
def bench_plan(bench):
    backend, _ = select("hals", CPU, "auto")
    candidates = plans(bench, backend)
    choice = iteration(bench.problem, "hals", backend, candidates[0])
    checked(bench.problem, "hals", choice.step(*choice.fresh()))
    seconds = measured(bench, candidates, backend)
    choice.label["kind"] = "plan"
    bench.record(choice, (seconds[candidates[0]], 0.0))
    ranked = sorted(candidates, key=seconds.get)
    rows = [
        {
            "form": candidate.form,
            "block": candidate.block,
            "piece_rows": candidate.piece_rows,
            "predicted": candidate.seconds,
            "measured": seconds[candidate],
            "chosen": candidate is candidates[0],
        }
        for candidate in ranked
    ]
    bench.note(plans=rows, loss=seconds[candidates[0]] / seconds[ranked[0]])
