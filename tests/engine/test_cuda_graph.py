"""Iterations that are repeated from a recording to the same bits, and how CUDA graphs are recorded.

There is no CUDA device here: fits are recorded on the CPU (tape.py), graphs on a CUDA that only
records the calls it gets.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging

import numpy as np
import pytest
import torch
from fits import method, nmf, run_loop
from oracle import problem
from tape import Broken, Tape

from fastnmf import InvalidInput, Tuning
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine import cuda_graph
from fastnmf.engine import state as state_module
from fastnmf.engine.cuda_graph import CudaGraph, Replay, refuses
from fastnmf.engine.loop import varies
from fastnmf.engine.state import State, Stopping
from fastnmf.fit import batch
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

    monkeypatch.setattr(state_module, "Workspace", Steady)


def drawn(K=5, n=40, d=17, dtype=torch.float64, seed=0, kind="plain"):
    return [torch.tensor(M, dtype=dtype) for M in problem(n, d, K, seed=seed, kind=kind)]


def run(solver, recorder, factors, *, inner=None, block=16, penalties=NO_PENALTIES, **options):
    """(Z, D, State) of a fit in two tiles of rows. inner: half-steps, where it is accelerated;
    state: what it goes on from."""
    A, *pair = (M.clone() for M in factors)
    plan = Plan("normal", "normal", block, 23, 0.0, inner is not None, inner or (1, 1))
    stopping = Stopping(options.pop("max_iter", ITERATIONS), options.pop("tol", 0.0))
    by = method(solver, penalties=penalties)
    state = options.pop("state", None) or State(InMemory(pair[0]), pair[1])
    run_loop(A, state, solver, plan, stopping, by=by, recorder=recorder, **options)
    return state.codes, state.D, state


INNER = 2, 3


def history(state):
    return [dataclasses.replace(one, seconds=0.0) for one in state.history]


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


# each solver plain, each with a penalty, and each kind of penalty; watched or not, in either dtype
RECORDED = [
    ("hals", "plain", False, torch.float32),
    ("hals", "penalised", True, torch.float64),
    ("hals", "l2", False, torch.float64),
    ("hals", "unit norm", True, torch.float32),
    ("hals", "unit norm alone", False, torch.float64),
    ("mu", "plain", True, torch.float64),
    ("mu", "penalised", False, torch.float32),
    ("mu", "unit norm", False, torch.float64),
    ("pgd", "plain", True, torch.float32),
    ("pgd", "l2", True, torch.float64),
    ("pgd", "unit norm", False, torch.float64),
]


@pytest.mark.parametrize(("solver", "penalties", "watched", "dtype"), RECORDED)
def test_repeats_give_the_same_bits(solver, penalties, watched, dtype):
    options = {"penalties": PENALTIES[penalties], "tol": 1e-30 if watched else 0.0}
    state, _ = check(solver, drawn(dtype=dtype, kind="zero_concepts"), **options)
    assert state.repeats == ITERATIONS - 2


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        ("hals", torch.float32),
        ("hals", torch.float64),
        ("mu", torch.float32),
        ("pgd", torch.float64),
    ],
)
def test_repeats_give_the_same_bits_where_factors_are_extrapolated(solver, dtype):
    state, _ = check(solver, drawn(dtype=dtype), inner=INNER, max_iter=60)
    # an iteration that was taken back is another repeat
    assert state.repeats > 60 - 2


@pytest.mark.parametrize(
    ("solver", "inner"), [("hals", None), ("hals", INNER), ("mu", None), ("pgd", INNER)]
)
def test_repeats_give_the_same_bits_with_blocks_and_data_in_16_bits(solver, inner):
    """More concepts than a block has, and A that is widened in tiles."""
    A, Z, D = drawn(K=9, d=30, dtype=torch.float32)
    check(solver, (A.bfloat16(), Z, D), block=4, inner=inner)


@pytest.mark.parametrize(
    ("solver", "penalties", "block"),
    [("hals", "plain", 16), ("hals", "unit norm", 2), ("mu", "plain", 2)],
)
def test_repeats_give_the_same_bits_where_concepts_are_revived(solver, penalties, block):
    A, Z, D = drawn(K=8, n=60)
    D[1:4], Z[:, 1:4] = 0, 0
    options = {"revives": True, "penalties": PENALTIES[penalties], "block": block}
    state, _ = check(solver, (A, Z, D), **options)
    assert state.revived > 0


@pytest.mark.parametrize(("solver", "inner"), [("hals", INNER), ("pgd", None)])
def test_a_fit_that_converges_ends_in_the_same_iteration(solver, inner):
    state, _ = check(solver, drawn(), tol=1e-3, max_iter=500, inner=inner)
    assert state.stopped_by == "tol"
    assert 5 < len(state.history) < 500


class Keeping:
    """A Saver that keeps a copy of the State after every iteration."""

    def __init__(self):
        self.states = []

    def due(self):
        return True

    def save(self, state):
        # E and the like are of no interest where the form is normal
        plain = dataclasses.replace(state, extrapolation=None, unit=None)
        self.states.append(copy.deepcopy(plain))


@pytest.mark.parametrize("kind", ["plain", "unit norm", "accelerated"])
def test_a_fit_that_is_left_and_resumed_gives_the_same_bits(kind):
    """The State is saved at the end of every iteration, as a checkpoint may."""
    factors, inner = drawn(), INNER if kind == "accelerated" else None
    options = {"inner": inner, "penalties": PENALTIES.get(kind, NO_PENALTIES)}
    savers = Keeping(), Keeping()
    whole = run("hals", Tape(), factors, saver=savers[0], **options)
    assert_same(whole, run("hals", None, factors, saver=savers[1], **options))
    left, tape = savers[0].states[9], Tape()
    state = State(left.Z, left.D, history=left.history, refresh=left.refresh, carried=left.carried)
    given = run("hals", tape, factors, state=state, **options)
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
    *_, state = run("hals", tape, drawn(), max_iter=2)
    assert (state.repeats, tape.recordings) == (0, 0)


@pytest.mark.parametrize(
    ("solver", "form", "why"),
    [("hals", "residual", "computed anew"), ("anls", "normal", "depends on the values")],
)
def test_iterations_that_differ_are_known(solver, form, why):
    data = Data(drawn()[0])
    assert why in varies(method(solver), Plan(form, form, 16, 23, 0.0), data)
    assert varies(method("hals"), Plan("normal", "normal", 16, 23, 0.0), data) is None


@pytest.mark.parametrize("form", ["residual", "normal"])
def test_a_tape_finds_iterations_that_differ(form):
    """Of a residual that every eighth iteration computes anew: the check itself is checked."""
    A, Z, D = drawn()
    plan, fits = Plan(form, form, 16, 40, 0.0), []
    for recorder in (Tape(), None):
        pair = Z.clone(), D.clone()
        run_loop(A.clone(), pair, "hals", plan, Stopping(20, 0), recorder=recorder)
        fits.append(pair[0])
    assert torch.equal(*fits) == (form == "normal")


@pytest.fixture
def recorded(monkeypatch):
    """Let fits on the CPU be recorded; gives the tapes of all."""
    tapes = []

    def make(device, *, must):
        tapes.append(Tape())
        tapes[-1].must = must
        return tapes[-1]

    monkeypatch.setattr(batch, "CudaGraph", make)
    monkeypatch.setattr(batch, "refuses", lambda device: None)
    return tapes


def fitted(A, **options):
    model = nmf(4, backend="torch", seed=0, tol=0, **{"max_iter": 30, **options})
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
    monkeypatch.setattr(batch, "_MOST_SECONDS", 1e-12)
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
    with pytest.raises(TypeError, match="cuda_graph='yes' must be True or False"):
        Tuning(cuda_graph="yes")


def test_data_that_are_read_in_passes_are_not_recorded(recorded, small_budgets, tmp_path):
    A = torch.rand(4000, 30)
    np.save(tmp_path / "A.npy", A.numpy())
    with pytest.raises(InvalidInput, match="read in passes"):
        fitted(tmp_path / "A.npy", cuda_graph=True, max_memory=300_000)


DEVICE = torch.device("cuda", 1)


class Cuda:
    """torch.cuda as far as cuda_graph.py calls it. done: what was launched, with its stream."""

    def __init__(self):
        self.streams, self.devices = ["user"], [0]
        self.graph, self.done, self.waits, self.reserved = None, [], [], 0
        self.graphs, self.breaks = [], None
        cuda = self

        class Stream:
            def __init__(self, device=None):
                self.name = f"aside of {device}"

            def wait_stream(self, other):
                assert cuda.graph is None
                cuda.waits.append((self.name, other.name))

            def synchronize(self):
                cuda.waits.append(("host", self.name))

        class Graph:
            def __init__(self):
                self.launches, self.where, self.was_reset = [], None, False
                cuda.graphs.append(self)

            def capture_begin(self, pool=None, capture_error_mode="global"):
                # another thread may allocate
                assert capture_error_mode == "thread_local"
                assert cuda.streams[-1] != "user"
                self.where, cuda.graph = pool or object(), self

            def capture_end(self):
                cuda.graph = None
                if cuda.breaks is not None:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def pool(self):
                assert not self.was_reset
                return self.where

            def replay(self):
                assert cuda.graph is None
                assert not self.was_reset
                cuda.done += [(name, cuda.streams[-1]) for name in self.launches]

            def reset(self):
                self.was_reset = True

        self.Stream, self.CUDAGraph = Stream, Graph

    def launch(self, name):
        if self.graph is None:
            return self.done.append((name, self.streams[-1]))
        if self.breaks is not None:
            raise self.breaks
        self.graph.launches.append(name)

    @contextlib.contextmanager
    def stream(self, stream):
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams.pop()

    @contextlib.contextmanager
    def device(self, device):
        self.devices.append(device)
        try:
            yield
        finally:
            self.devices.pop()

    def current_stream(self, device=None):
        found = self.Stream()
        found.name = self.streams[-1]
        return found

    def memory_reserved(self, device):
        return self.reserved


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    for name in ("Stream", "CUDAGraph", "stream", "device", "current_stream", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(cuda_graph, "_place", functools.cache(cuda_graph._Place))
    return fake


ASIDE = f"aside of {DEVICE}"


def test_a_step_is_warmed_recorded_and_repeated(cuda):
    def step():
        assert cuda.devices[-1] == (DEVICE if cuda.streams[-1] == ASIDE else 0)
        cuda.launch("sweep")

    with Replay(step, CudaGraph(DEVICE, must=False)) as repeated:
        repeated()
        repeated()
        assert cuda.done == [("sweep", "user"), ("sweep", ASIDE)]
        # nothing overtakes the step on the other stream, nor does it anything
        assert cuda.waits == [(ASIDE, "user"), ("user", ASIDE)]
        for _ in range(3):
            repeated()
    assert cuda.done[2:] == [("sweep", "user")] * 3
    assert repeated.repeats == 3
    assert [graph.launches for graph in cuda.graphs] == [["sweep"]]


@pytest.mark.parametrize("must", [False, True])
def test_a_step_that_cannot_be_recorded_goes_on_as_it_is_or_raises(cuda, must, caplog):
    cuda.breaks = RuntimeError("operation not permitted when stream is capturing")
    with (
        caplog.at_level(logging.DEBUG),
        Replay(lambda: cuda.launch("sweep"), CudaGraph(DEVICE, must=must)) as repeated,
    ):
        repeated()
        repeated()
        with (
            pytest.raises(RuntimeError, match="not permitted") if must else contextlib.nullcontext()
        ):
            repeated()
            repeated()
            assert cuda.done[2:] == [("sweep", "user")] * 2
            assert "operation not permitted" in caplog.text
            assert caplog.records[-1].levelno == logging.DEBUG
    assert repeated.repeats == 0
    assert (cuda.streams, cuda.devices) == (["user"], [0])
    assert [graph.was_reset for graph in cuda.graphs] == [True]
    # where it was let pass, none is tried again
    cuda.breaks = None
    again = CudaGraph(DEVICE, must=False)
    assert again.record(lambda: None) is must
    assert len(cuda.graphs) == 1 + must


def test_an_interrupt_while_recording_is_not_lost(cuda):
    cuda.breaks = KeyboardInterrupt()
    recorder = CudaGraph(DEVICE, must=False)
    with Replay(lambda: cuda.launch("sweep"), recorder) as repeated:
        repeated()
        repeated()
        with pytest.raises(KeyboardInterrupt):
            repeated()
    assert (cuda.streams, cuda.graph) == (["user"], None)
    cuda.breaks = None
    assert recorder.record(lambda: cuda.launch("sweep"))


def test_little_memory_goes_to_the_next_graph_and_much_is_given_back(cuda):
    """Memory of a graph that is gone is not used again before all of the device is taken."""

    def fit(size):
        recorder = CudaGraph(DEVICE, must=False)

        def step():
            cuda.reserved += size

        assert recorder.record(step)
        recorder.release()
        # the graph might still run
        assert cuda.waits[-1] == ("host", "user")
        recorder.release()
        return cuda.graphs[-1]

    first, second, large, last = (fit(size) for size in (1 << 21, 0, 1 << 30, 1 << 21))
    assert first.where is second.where is large.where is not last.where
    assert [first.was_reset, second.was_reset, large.was_reset, last.was_reset] == [True] * 3 + [
        False
    ]


def test_fits_side_by_side_have_memory_of_their_own(cuda):
    graphs = [CudaGraph(DEVICE, must=False) for _ in range(2)]
    for graph in graphs:
        graph.record(lambda: None)
    one, other = cuda.graphs
    assert one.where is not other.where
    assert not one.was_reset


def test_what_has_no_graphs_is_known(monkeypatch):
    assert refuses(DEVICE) is None
    assert "none on cpu" in refuses(torch.device("cpu"))
    assert "none on xpu" in refuses(torch.device("xpu"))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "ROCm" in refuses(DEVICE)
