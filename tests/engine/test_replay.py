"""Iterations that are repeated from a recording: the same bits as without, and what may stand in
the way. There is no CUDA device here: operations are recorded on the CPU (tape.py)."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from half_steps import dtype_name
from oracle import problem
from tape import Broken, Tape

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.backends.registry import select
from fastnmf.data.arrays import Rows
from fastnmf.engine import iteration as engine
from fastnmf.engine.loop import factorize_, varies
from fastnmf.fit import batch as fitting
from fastnmf.planning.plan import Plan
from fastnmf.solvers.half_step import Workspace
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties

ITERATIONS = 24
PENALTIES = {
    "plain": NO_PENALTIES,
    "penalised": Penalties(0.02, 0.01, 0.5),
    "l2": Penalties(0.02, 0.01, 0.0),
    "unit norm": Penalties(0.02, 0, 1.0, True),
    "unit norm alone": Penalties(0, 0, 0.0, True),
}


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """Scratch that a recording may know of stays where it is, also between the steps: on a device
    its memory would be another's."""

    class Steady(Workspace):
        def __init__(self, *given):
            super().__init__(*given)
            self.earlier = Tape.of_all

        def __call__(self, name, *shape):
            before, recorded = self._kept.get(name), Tape.of_all > self.earlier
            given = super().__call__(name, *shape)
            assert not recorded or before is None or self._kept[name] is before
            return given

    monkeypatch.setattr(engine, "Workspace", Steady)


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


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
@pytest.mark.parametrize("accelerates", [False, True])
def test_repeats_give_the_same_bits_with_blocks_and_data_in_16_bits(solver, accelerates):
    """More concepts than a block has, and A that is widened in pieces."""
    A, Z, D = drawn(K=9, d=30, dtype=torch.float32)
    check(solver, (A.bfloat16(), Z, D), block=4, accelerates=accelerates)


@pytest.mark.parametrize("block", [16, 2])
@pytest.mark.parametrize("penalties", ["plain", "unit norm"])
@pytest.mark.parametrize("solver", ["hals", "mu"])
def test_repeats_give_the_same_bits_where_concepts_are_revived(solver, penalties, block):
    A, Z, D = drawn(K=8, n=60)
    D[1:4], Z[:, 1:4] = 0, 0
    options = {"revive": True, "penalties": PENALTIES[penalties], "block": block}
    outcome, _ = check(solver, (A, Z, D), **options)
    assert outcome.revived > 0


@pytest.mark.parametrize("solver", ["hals", "pgd"])
def test_a_fit_that_settles_ends_in_the_same_iteration(solver):
    outcome, _ = check(solver, drawn(), tol=1e-3, max_iter=500, accelerates=solver == "hals")
    assert outcome.stopped_by == "tol"
    assert 5 < len(outcome.history) < 500


@pytest.mark.parametrize("kind", ["plain", "unit norm", "accelerated"])
def test_a_fit_that_is_left_and_resumed_gives_the_same_bits(kind):
    """The state is asked for at the end of every iteration, as a checkpoint may."""
    factors, accelerates = drawn(), kind == "accelerated"
    options = {"accelerates": accelerates, "penalties": PENALTIES.get(kind, NO_PENALTIES)}
    states = []
    kept = {"keep": lambda state: states.append(copy.deepcopy(state()))}
    whole = run("hals", Tape(), factors, **kept, **options)
    assert_same(whole, run("hals", None, factors, **kept, **options))
    left, tape = states[9], Tape()
    given = run("hals", tape, (factors[0], left.Z, left.D), resumed=left, **options)
    assert_same(given, whole)
    assert tape.repeats >= ITERATIONS - 10 - 2


def test_what_cannot_be_recorded_is_done_as_it_is():
    broken = Broken()
    given, expected = (run("hals", by, drawn()) for by in (broken, None))
    assert_same(given, expected)
    assert given[2].repeats == 0
    assert broken.repeats == 0


class Interrupting(Tape):
    """Ctrl-C between two repeats."""

    def replay(self):
        super().replay()
        if self.repeats == 3:
            raise KeyboardInterrupt


def test_a_recording_is_forgotten_where_a_fit_is_interrupted():
    recorder = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run("hals", recorder, drawn())
    assert recorder.released


def test_too_few_iterations_record_nothing():
    tape = Tape()
    *_, outcome = run("hals", tape, drawn(), max_iter=2)
    assert (outcome.repeats, tape.recordings) == (0, 0)


@pytest.mark.parametrize(
    ("solver", "form", "why"),
    [("hals", "residual", "computed anew"), ("anls", "normal", "depends on what it finds")],
)
def test_iterations_that_differ_are_known(solver, form, why):
    A, *_ = drawn()
    chosen = Plan(form, form, 16, 23, 0.0)
    assert why in varies(solver, chosen, Rows(A))
    assert (
        varies("hals", dataclasses.replace(chosen, codes="normal", dictionary="normal"), Rows(A))
        is None
    )


@pytest.mark.parametrize("form", ["residual", "normal"])
def test_a_tape_finds_iterations_that_differ(form):
    """Of a residual that every eighth iteration computes anew: the check itself is checked."""
    A, Z, D = drawn()
    chosen = Plan(form, form, 16, 40, 0.0)
    _, ops = select("hals", A.device, "torch")
    fits = []
    for recorder in (Tape(), None):
        F = A.clone(), Z.clone(), D.clone()
        options = {"solver": "hals", "ops": ops, "plan": chosen, "max_iter": 20, "tol": 0}
        with torch.no_grad():
            factorize_(F[1], F[2], Rows(F[0]), recorder=recorder, **options)
        fits.append(F)
    assert torch.equal(fits[0][1], fits[1][1]) == (form == "normal")


@pytest.fixture
def recorded(monkeypatch):
    """Let fits on the CPU be recorded; gives the tapes of all."""
    tapes = []

    def make(device, *, must):
        tapes.append(Tape())
        tapes[-1].must = must
        return tapes[-1]

    monkeypatch.setattr(fitting, "CudaGraph", make)
    monkeypatch.setattr(fitting, "refuses", lambda device: None)
    return tapes


def fitted(A, **options):
    model = NMF(4, backend="torch", seed=0, tol=0, **{"max_iter": 30, **options})
    return (*model.fit(A), model.fit_info_)


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_a_small_fit_is_repeated_from_a_graph_and_says_so(solver, recorded):
    A, *_ = drawn(dtype=torch.float32)
    Z, D, info = fitted(A, solver=solver)
    Z_plain, D_plain, plain = fitted(A, solver=solver, cuda_graph=False)
    assert torch.equal(Z, Z_plain)
    assert torch.equal(D, D_plain)
    assert info.accelerated
    assert info.cuda_graph == recorded[0].repeats > 0
    assert "CUDA graph" in str(info)
    assert plain.cuda_graph == 0
    assert "CUDA graph" not in str(plain)
    assert [tape.must for tape in recorded] == [False]


@pytest.mark.parametrize(
    "options",
    [{"max_iter": 5}, {"form": "residual"}, {"solver": "anls"}, {"cuda_graph": False}],
    ids=str,
)
def test_auto_takes_no_graph_where_it_does_not_pay(options, recorded):
    *_, info = fitted(drawn(dtype=torch.float32)[0], **options)
    assert info.cuda_graph == 0
    assert recorded == []


def test_auto_takes_no_graph_for_large_data(recorded, monkeypatch):
    monkeypatch.setattr(fitting, "_MOST_SECONDS", 1e-12)
    A, *_ = drawn(dtype=torch.float32)
    assert fitted(A)[2].cuda_graph == 0
    assert fitted(A, cuda_graph=True)[2].cuda_graph > 0
    assert [tape.must for tape in recorded] == [True]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"form": "residual"}, "residual form"),
        ({"solver": "anls"}, "anls"),
    ],
    ids=str,
)
def test_a_graph_that_is_asked_for_is_taken_or_refused(options, why, recorded):
    A, *_ = drawn(dtype=torch.float32)
    with pytest.raises(InvalidInput, match=f"cuda_graph=True is not possible: .*{why}"):
        fitted(A, cuda_graph=True, **options)
    assert fitted(A, cuda_graph=True, max_iter=3)[2].cuda_graph > 0


def test_a_graph_on_the_cpu_is_refused():
    with pytest.raises(InvalidInput, match="there are none on cpu"):
        fitted(drawn()[0], cuda_graph=True)
    with pytest.raises(InvalidInput, match="'auto', True or False"):
        NMF(4, tuning=Tuning(cuda_graph="yes"))


def test_data_that_are_read_in_passes_are_not_recorded(recorded, small_budgets, tmp_path):
    A = torch.rand(4000, 30)
    np.save(tmp_path / "A.npy", A.numpy())
    with pytest.raises(InvalidInput, match="read in passes"):
        fitted(tmp_path / "A.npy", cuda_graph=True, max_memory=300_000)
