"""Signals during a fit that saves: they wait for the end of the iteration, which is then saved."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors
import torch
from fits import nmf
from oracle import problem

TESTS = Path(__file__).parents[1]


def numbers():
    return torch.tensor(problem(60, 20, 5)[0], dtype=torch.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.safetensors"


def assert_same(factors, expected):
    for F, its in zip(factors, expected, strict=True):
        assert torch.equal(F, its)


@pytest.fixture
def handlers():
    """What is to be there after a fit: two handlers that note the signals they are given."""
    noted = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: noted.append(number))
    yield noted
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where the tests run with it ignored, as in the
    background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def raised_in(iteration, number, times=1):
    def callback(info):
        for _ in range(times if info.iteration == iteration else 0):
            signal.raise_signal(number)

    return callback


def saved_iterations(path):
    with safetensors.safe_open(path, "pt") as file:
        return len(file.get_tensor("history"))


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_saves_the_iteration_and_then_interrupts(path):
    before = signal.getsignal(signal.SIGINT)
    model, expected = (nmf(25, seed=0, max_iter=20, tol=0) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        model.fit(numbers(), checkpoint=path, callback=raised_in(5, signal.SIGINT))
    assert saved_iterations(path) == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert not model.fitted
    resumed = model.fit(numbers(), checkpoint=path, resume=True)
    assert_same(resumed, expected.fit(numbers()))


@pytest.mark.usefixtures("interrupts")
def test_second_ctrl_c_interrupts_at_once(path):
    callback = raised_in(5, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        nmf(25).fit(numbers(), checkpoint=path, callback=callback)
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handler_that_was_there_is_called_after_the_save_and_stays(number, path, handlers):
    mine = signal.getsignal(number)
    model = nmf(25, seed=0, max_iter=20, tol=0)
    model.fit(numbers(), checkpoint=path, callback=raised_in(5, number))
    assert handlers == [number]
    assert saved_iterations(path) == 5
    assert signal.getsignal(number) is mine
    assert model.fit_info_.iterations == 20


def test_signals_are_left_alone_without_a_checkpoint_and_in_other_threads(path, handlers):
    seen = []

    def look(_):
        seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    expected = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    nmf(4, max_iter=2, tol=0).fit(numbers(), callback=look)
    model, run = nmf(4, max_iter=2, tol=0), {"callback": look, "checkpoint": path}
    thread = threading.Thread(target=model.fit, args=(numbers(),), kwargs=run)
    thread.start()
    thread.join()
    assert seen == [expected] * 4
    assert model.fitted


def test_handlers_are_back_after_a_fit_that_failed(path, handlers):
    expected = signal.getsignal(signal.SIGTERM)

    def broken(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nmf(4).fit(numbers(), checkpoint=path, callback=broken)
    assert signal.getsignal(signal.SIGTERM) is expected


LONG_FIT = """
import signal, sys, torch
# it may be ignored where the tests run in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
from fastnmf import NMF
from oracle import problem
def say(info):
    if info.iteration == 3:
        print("running", flush=True)
A = torch.tensor(problem(60, 20, 5)[0], dtype=torch.float32)
NMF(25, seed=0, max_iter=10**9, tol=0).fit(A, checkpoint=sys.argv[1], callback=say)
"""


def test_process_saves_and_leaves_as_the_signal_would_have_it(tmp_path):
    numbers_ = (signal.SIGTERM, signal.SIGINT)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": TESTS}
    paths = [tmp_path / f"{number}.safetensors" for number in numbers_]
    # side by side: most of the time is that of loading torch
    fits = [subprocess.Popen([sys.executable, "-c", LONG_FIT, path], **streams) for path in paths]
    try:
        for fit, number in zip(fits, numbers_, strict=True):
            assert fit.stdout.readline() == "running\n"
            fit.send_signal(number)
        said = [fit.communicate(timeout=60)[1] for fit in fits]
    finally:
        for fit in fits:
            fit.kill()
    # Python, too, ends an interrupt that nobody caught by the signal itself
    assert [fit.returncode for fit in fits] == [-signal.SIGTERM, -signal.SIGINT]
    assert ["KeyboardInterrupt" in text for text in said] == [False, True]
    for path in paths:
        saved = saved_iterations(path)
        assert saved >= 3
        expected, resumed = (nmf(25, seed=0, max_iter=saved + 5, tol=0) for _ in range(2))
        factors = expected.fit(numbers())
        assert_same(resumed.fit(numbers(), checkpoint=path, resume=True), factors)
