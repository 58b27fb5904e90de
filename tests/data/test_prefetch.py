"""The thread that reads ahead."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from fastnmf.data.prefetch import Prefetcher


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastnmf")]


def test_next_item_is_made_while_one_is_used():
    made, used = threading.Event(), []

    def items():
        yield 1
        made.set()
        yield 2

    with Prefetcher() as prefetch:
        for item in prefetch(items()):
            # without a thread that goes ahead this would wait for ever
            assert made.wait(10)
            used.append(item)
    assert used == [1, 2]
    assert threads() == []


def test_fault_of_what_is_done_later_is_raised():
    def fail():
        raise OSError("no space")

    with Prefetcher() as prefetch:
        prefetch.later(fail)
        with pytest.raises(OSError, match="no space"):
            prefetch.wait()


THREADS = """
import os, sys, torch
torch.set_num_threads(2)
from fastnmf.data.arrays import Expected
from fastnmf.data.opening.first_pass import inspected
from fastnmf.data.prefetch import Prefetcher
from fastnmf.data.sources import chunks_of, open_source
from fastnmf.planning.memory import Budget
def threads():
    return len(os.listdir("/proc/self/task"))
torch.rand(4000, 300).exp_()
before, seen = threads(), []
with Prefetcher() as prefetch:
    budget = Budget(torch.device("cpu"), 1, requested=1)
    expected = Expected()
    found = open_source(sys.argv[1], expected, budget)
    source, summary = inspected(found, expected, budget, prefetch)
    seen.append(threads())
    buffer = torch.empty(1000, summary.d)
    for _ in prefetch(chunks_of(source, len(buffer), lambda: buffer)):
        seen.append(threads())
print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("shape", "rows"),
    # many small shards; one of rows that are longer than what is copied at a time
    [((6000, 384), 50), ((100, 100_000), 10_000)],
)
def test_reading_begins_one_thread(shape, rows, tmp_path, fresh):
    """With more than there are processors all would be blocked after every operation."""
    A = np.random.default_rng(0).random(shape).astype(np.float16)
    for first in range(0, len(A), rows):
        np.save(tmp_path / f"{first:06}.npy", A[first : first + rows])
    ran = fresh(THREADS, str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 1
