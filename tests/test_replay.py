"""Iterations that are repeated from a recording: the same bits as without, and what may stand in
the way. There is no CUDA device here: operations are recorded on the CPU (tape.py)."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from half_steps import dtype_name
from oracle import problem
from tape import Tape

from fastnmf.backends import select
from fastnmf.engine import factorize_, varies
from fastnmf.penalties import NO_PENALTIES, Penalties
from fastnmf.plan import Plan
from fastnmf.rows import Rows

ITERATIONS = 24
PENALTIES = {
    "plain": NO_PENALTIES,
    "penalised": Penalties(0.02, 0.01, 0.5),
    "l2": Penalties(0.02, 0.01, 0.0),
    "unit norm": Penalties(0.02, 0, 1.0, True),
    "unit norm alone": Penalties(0, 0, 0.0, True),
}


def drawn(K=5, n=40, d=17, dtype=torch.float64, seed=0, kind="plain"):
    return [torch.tensor(M, dtype=dtype) for M in problem(n, d, K, seed=seed, kind=kind)]


def run(solver, recorder, factors, *, accelerates=False, block=16, tol=0.0, **options):
    """(Z, D, outcome) of a fit in two pieces of rows."""
    A, Z, D = (M.clone() for M in factors)
    inner = (2, 3) if accelerates else (1, 1)
    chosen = Plan("normal", "normal", block, 23, 0.0, accelerates=accelerates, inner=inner)
    options = {"max_iter": ITERATIONS, **options}
    _, ops = select(solver, A.device, "torch")
    with torch.no_grad():
        outcome = factorize_(
            Z, D, Rows(A), solver=solver, ops=ops, plan=chosen, tol=tol, recorder=recorder,
            **options,
        )  # fmt: skip
    return Z, D, outcome


def history(outcome):
    return [dataclasses.replace(iteration, seconds=0.0) for iteration in outcome.history]


def assert_same(given, expected):
    for F, known in zip(given[:2], expected[:2], strict=True):
        assert torch.equal(F, known)
    # NaN, where there is one, is equal to itself by identity only
    assert str(history(given[2])) == str(history(expected[2]))
    assert given[2].stopped_by == expected[2].stopped_by


def check(solver, factors, **options):
    tape = Tape()
    given, expected = (run(solver, by, factors, **options) for by in (tape, None))
    assert_same(given, expected)
    assert tape.left == set()
    assert tape.recordings == 1
    assert given[2].repeats == tape.repeats
    assert expected[2].repeats == 0
    assert tape.released
    return given[2], tape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_repeats_give_the_same_bits(solver, penalties, watched, dtype):
    options = {"penalties": PENALTIES[penalties], "tol": 1e-30 if watched else 0.0}
    outcome, _ = check(solver, drawn(dtype=dtype, kind="zero_concepts"), **options)
    assert outcome.repeats == ITERATIONS - 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_repeats_give_the_same_bits_where_factors_are_extrapolated(solver, dtype):
    outcome, _ = check(solver, drawn(dtype=dtype), accelerates=True, max_iter=60)
    # an iteration that was taken back is another repeat
    assert outcome.repeats > 60 - 2
