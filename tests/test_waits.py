"""Waits of threads are short while others want the cores, and as they were afterwards."""

from __future__ import annotations

import os
import statistics
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import fastnmf
from fastnmf import NMF, waits
from fastnmf.waits import OFTEN, SLEEPING, SPINNING, Waits

ONE_FOR_EVERY_CORE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


@pytest.fixture
def asked(monkeypatch):
    """What the extension is asked for, in order; it does as it is asked."""
    found = []
    monkeypatch.setattr(waits, "_shorten", lambda shorten: found.append(shorten) or shorten)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return found


@pytest.fixture
def process(monkeypatch):
    """The use of the process, which a test sets: seconds, and how often it lost a core."""
    used = SimpleNamespace(ru_utime=0.0, ru_stime=0.0, ru_nivcsw=0)
    stand_in = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: used)
    monkeypatch.setattr(waits, "resource", stand_in)
    return used


def later(process, seconds, lost):
    process.ru_utime += seconds / 2
    process.ru_stime += seconds / 2
    process.ru_nivcsw += round(lost * seconds)


def test_waits_are_short_while_cores_are_lost(asked, process):
    kept = Waits()
    later(process, 2 * SPINNING, 0.5 * OFTEN)
    kept.look()
    assert asked == []
    later(process, 2 * SPINNING, 2 * OFTEN)
    kept.look()
    assert asked == [True]
    assert kept.short
    # in between threads sleep, which says nothing
    later(process, SLEEPING / 2, 0)
    kept.look()
    assert kept.short
    # then it is tried again, and others still want the cores
    later(process, SLEEPING, 9 * OFTEN)
    kept.look()
    later(process, 2 * SPINNING, 2 * OFTEN)
    kept.look()
    assert asked == [True, False, True]
    # and again, when they do not
    later(process, 2 * SLEEPING, 9 * OFTEN)
    kept.look()
    later(process, 2 * SPINNING, 0.5 * OFTEN)
    kept.look()
    assert asked == [True, False, True, False]
    assert not kept.short


def test_few_seconds_decide_nothing(asked, process):
    kept = Waits()
    for _ in range(3):
        later(process, SPINNING / 4, 100 * OFTEN)
        kept.look()
    assert asked == []


def test_one_thread_waits_for_nobody(asked, process, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    later(process, 2 * SPINNING, 2 * OFTEN)
    Waits().look()
    assert asked == []


def test_systems_that_do_not_count_keep_their_waits(asked, monkeypatch):
    monkeypatch.setattr(waits, "resource", None)
    Waits().look()
    assert asked == []


def test_what_cannot_be_shortened_is_long(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastnmf._C", None)
    assert waits._shorten(True) is False


def test_iterations_and_calls_look(asked, process, monkeypatch):
    looks = []
    monkeypatch.setattr(Waits, "_decide", lambda *_: looks.append(1))
    A = torch.rand(30, 8, generator=torch.Generator().manual_seed(0))
    model = NMF(3, seed=0, init="random", accelerate=False, tol=0, max_iter=10)
    model.fit(A)
    assert len(looks) >= 11
    looks.clear()
    model.encode(A)
    assert looks
    looks.clear()
    fastnmf.nnls(A, model.D)
    assert looks


@pytest.mark.skipif(
    not ONE_FOR_EVERY_CORE, reason="this system does not tell the cores of a process"
)
def test_a_waiting_thread_of_libgomp_sleeps_soon():
    _C = pytest.importorskip("fastnmf._C", reason="the CPU extension is not built")
    before = torch.get_num_threads()
    threads = max(ONE_FOR_EVERY_CORE, 2)
    if not _C.shorten_waits(True, threads):
        pytest.skip("only waits of libgomp can be shortened")
    _C.shorten_waits(False, threads)
    x = torch.ones(1 << 20)

    def spun():
        """Seconds of processor time that threads take which wait, the median of five."""
        found = []
        for _ in range(5):
            x.add_(0)
            begun = time.process_time()
            time.sleep(0.05)
            found.append(time.process_time() - begun)
        return statistics.median(found)

    torch.set_num_threads(threads)
    try:
        long = spun()
        assert _C.shorten_waits(True, threads)
        short = spun()
        assert not _C.shorten_waits(False, threads)
        # the idle team ends by itself, soon
        given_up = time.monotonic() + 20
        while (again := spun()) <= long / 4 and time.monotonic() < given_up:
            pass
    finally:
        torch.set_num_threads(before)
    if long < 5e-4:
        pytest.skip("the environment has made waits short")
    assert short < long / 4
    assert again > long / 4
