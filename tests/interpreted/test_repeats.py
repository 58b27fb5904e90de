"""Iterations on the kernels, repeated from a recording: the same launches on the same addresses."""

from __future__ import annotations

import pytest
import torch
from oracle import problem
from tape import Tape

from fastnmf.backends.registry import select
from fastnmf.data.arrays import Rows
from fastnmf.engine.loop import factorize_
from fastnmf.planning.plan import Plan
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties

PENALTIES = {
    "plain": NO_PENALTIES,
    "penalised": Penalties(0.02, 0.01, 0.5),
    "unit norm": Penalties(0.02, 0, 1.0, True),
}


@pytest.mark.parametrize(
    ("solver", "penalties", "inner"),
    [
        ("hals", "plain", (1, 2)),
        ("mu", "unit norm", None),
        ("mu", "penalised", None),
        ("pgd", "penalised", None),
    ],
)
def test_repeats_give_the_same_bits(solver, penalties, inner, launches_on_tape):
    tape = Tape()
    A, Z, D = (torch.tensor(M, dtype=torch.float32) for M in problem(7, 5, 3))
    options = {"accelerates": inner is not None, "inner": inner or (1, 1)}
    chosen = Plan("normal", "normal", 16, 7, 0.0, **options)
    _, ops = select(solver, A.device, "triton")
    fits = []
    for recorder in (tape, None):
        factors = Z.clone(), D.clone()
        with torch.no_grad():
            outcome = factorize_(
                *factors, Rows(A), solver=solver, ops=ops, plan=chosen, max_iter=4, tol=1e-30,
                penalties=PENALTIES[penalties], recorder=recorder,
            )  # fmt: skip
        fits.append((*factors, outcome))
    assert all(map(torch.equal, fits[0][:2], fits[1][:2]))
    assert tape.left == set()
    assert fits[0][2].repeats == tape.repeats >= 2
    # the norms, too
    assert [i.relative_change for i in fits[0][2].history] == [
        i.relative_change for i in fits[1][2].history
    ]
