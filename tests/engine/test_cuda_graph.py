"""How a CUDA graph is recorded, repeated and given up, on a CUDA that only keeps account of what
it is told: there is no device here."""

from __future__ import annotations

import contextlib
import functools
import logging

import pytest
import torch

from fastnmf.engine import cuda_graph as replay
from fastnmf.engine.cuda_graph import CudaGraph, Replay, refuses

DEVICE = torch.device("cuda", 1)


class Cuda:
    """torch.cuda as far as replay.py calls it. done: what was launched, with its stream."""

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
    monkeypatch.setattr(replay, "_place", functools.cache(replay._Place))
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
