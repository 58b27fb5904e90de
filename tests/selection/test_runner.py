"""The fits of one call: what they return, in their order; which thread makes them; how they end."""

import threading

import pytest
import torch
from planted import planted

import fastnmf
from fastnmf import NMF
from fastnmf.selection import runner
from fastnmf.selection.runner import at_a_time, run_each


@pytest.fixture(params=[1, 3])
def most(request):
    """Fits at a time."""
    return request.param


def test_results_and_failures_are_in_order(most):
    done = []

    def make(number):
        if number == 2:
            raise ValueError("two")
        return number, torch.get_num_threads()

    found = run_each(make, 5, done.append, most, (ValueError,))
    assert done == [0, 1, 2, 3, 4]
    assert isinstance(found.pop(2), ValueError)
    assert [number for number, _ in found] == [0, 1, 3, 4]
    assert {threads for _, threads in found} == {1 if most > 1 else torch.get_num_threads()}


def test_another_failure_ends_all(most):
    begun = []

    def make(number):
        begun.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        run_each(make, 50, print, most)
    assert len(begun) <= most


def test_interrupt_of_the_caller_ends_all():
    begun, first = [], threading.Event()

    def make(number):
        begun.append(number)
        first.wait(10)

    def interrupt(number):
        raise KeyboardInterrupt

    def make_first(number):
        return None if number == 0 else make(number)

    timer = threading.Timer(0.2, first.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_each(make_first, 50, interrupt, 3)
    assert len(begun) <= 3


def test_large_data_have_all_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert at_a_time(NMF(2), 100) == 3
        monkeypatch.setattr(runner, "_SMALL", 99)
        assert at_a_time(NMF(2), 100) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("call", ["stability", "choose_concepts"])
def test_comparisons_in_threads_are_those_of_one(call, tmp_path, monkeypatch):
    A, _ = planted(60, 12, 2, 0.2, seed=0)
    before, seen, fit = torch.get_num_threads(), set(), NMF.fit

    def watched(self, A, **given):
        seen.add(threading.get_ident())
        return fit(self, A, **given)

    def compare(path, resume=False):
        given = {"seed": 0, "max_iter": 50, "tol": 0, "checkpoint": path, "resume": resume}
        if call == "stability":
            return fastnmf.stability(A, 2, runs=5, **given).dictionaries
        found = fastnmf.choose_concepts(A, [1, 2], folds=3, **given)
        return torch.tensor([each.held_out for each in found.candidates])

    monkeypatch.setattr(NMF, "fit", watched)
    try:
        torch.set_num_threads(1)
        alone = compare(tmp_path / "alone.safetensors")
        assert len(seen) == 1
        torch.set_num_threads(3)
        assert torch.equal(compare(tmp_path / "threads.safetensors"), alone)
        assert len(seen) == 4
        assert torch.get_num_threads() == 3
        seen.clear()
        assert torch.equal(compare(tmp_path / "threads.safetensors", resume=True), alone)
        assert not seen
    finally:
        torch.set_num_threads(before)
