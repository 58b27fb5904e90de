"""Iterations on the kernels, repeated from a recording: the same launches on the same addresses."""

from __future__ import annotations

import pytest
import torch
from half_steps import method_of
from oracle import problem
from tape import Tape

from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import State, Stopping
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
        pytest.param("hals", "plain", (1, 2), marks=pytest.mark.compiles),
        ("mu", "unit norm", None),
        pytest.param("mu", "penalised", None, marks=pytest.mark.compiles),
        ("pgd", "penalised", None),
    ],
)
def test_repeats_give_the_same_bits(solver, penalties, inner, launches_on_tape):
    tape = Tape()
    A, Z, D = (torch.tensor(M, dtype=torch.float32) for M in problem(7, 5, 3))
    options = {"accelerates": inner is not None, "inner": inner or (1, 1)}
    chosen = Plan("normal", "normal", 16, 7, 0.0, **options)
    method = method_of(solver, backend="triton", penalties=PENALTIES[penalties])
    states = []
    for recorder in (tape, None):
        state = State(InMemory(Z.clone()), D.clone())
        with torch.no_grad():
            factorize_(state, Data(A), method, chosen, Stopping(4, 1e-30), recorder=recorder)
        states.append(state)
    repeated, plain = states
    assert torch.equal(repeated.codes, plain.codes)
    assert torch.equal(repeated.D, plain.D)
    assert tape.left == set()
    assert repeated.repeats == tape.repeats >= 2
    # the norms, too
    changes = [[i.relative_change for i in state.history] for state in states]
    assert changes[0] == changes[1]
