"""The cost model: predicted and measured times over forms, blocks and chunks, and its loss."""

from __future__ import annotations

import itertools
import math

import pytest
from support.candidate import (
    checked,
    iteration,
    machine_of,
    method_of,
    planned,
    planning_problem,
)
from support.measure import Bench, called
from support.workloads import GRID

from fastnmf.planning.hardware import BLOCKS
from fastnmf.planning.plan import FORMS, REFRESH, Candidate, Plan, predict

CHUNKS = (256, 1024, 4096)
# plans that are predicted to take longer than this many times the least are not run
HOPELESS = 2.0
FINALISTS, TURNS = 4, 3


def plans(bench: Bench, backend: str) -> list[Plan]:
    """The plan that a fit takes, then those of the grid that are not predicted to be slow."""
    n, _, K = bench.problem.sizes
    problem, on = planning_problem(bench.problem, "hals"), machine_of(backend)
    choice = planned(bench.problem, "hals", backend)
    found = {choice: None}
    for codes, dictionary, block, chunk in itertools.product(FORMS, FORMS, BLOCKS, CHUNKS):
        one = Candidate(codes, dictionary, min(block, K), min(chunk, n))
        found[predict(problem, one, on)] = None
    limit = HOPELESS * min(candidate.seconds for candidate in found)
    return [candidate for candidate in found if candidate.seconds <= limit]


def measured(bench: Bench, candidates: list[Plan], backend: str) -> dict[Plan, float]:
    """Seconds of an iteration by each plan, the mean over those that share a residual.

    At the end the plan that a fit takes and the fastest others are timed again in turns.
    """
    seconds = dict.fromkeys(candidates, math.inf)

    def run(candidate: Plan) -> None:
        timing = iteration(bench.problem, "hals", backend, candidate, REFRESH)
        seconds[candidate] = min(seconds[candidate], timing.scale * called(timing)[1])

    for candidate in candidates:
        run(candidate)
    # all equally often: more rounds alone would make the first plan look faster
    fastest = sorted(candidates[1:], key=seconds.get)[:FINALISTS]
    for candidate in TURNS * (candidates[0], *fastest):
        run(candidate)
    return seconds


@pytest.mark.parametrize("workload", GRID)
def bench_plan(bench):
    backend = method_of("hals", "auto").backend
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
            # results files keep the former name
            "piece_rows": candidate.tile_rows,
            "predicted": candidate.seconds,
            "measured": seconds[candidate],
            "chosen": candidate is candidates[0],
        }
        for candidate in ranked
    ]
    bench.note(plans=rows, loss=seconds[candidates[0]] / seconds[ranked[0]])
