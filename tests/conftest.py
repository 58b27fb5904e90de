"""Tests run in several processes, of one thread each, which share what takes long to make."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is loaded; what tests start has it as well
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# of tests that take long: they come first, so that no process waits for the last of them
LONG = ("test_interpreted.py", "test_pretend_cuda.py", "test_stateful.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, fill): a folder of this name that fill(folder) filled in one of the processes; the
    others wait for it."""
    from filelock import FileLock

    here = tmp_path_factory.getbasetemp()
    root = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def fresh():
    """fresh(code): how a process that had loaded torch only, and ran it, ended and what it said."""
    from fresh import Fresh

    if not hasattr(os, "fork"):
        pytest.skip("os.fork: not here")
    processes = Fresh()
    yield processes
    processes.close()


@pytest.fixture
def small_budgets(monkeypatch):
    """Let max_memory be as small as the data of tests: what a process takes by itself is not
    counted."""
    from fastnmf.planning import memory as budget

    for name, value in (("_OVERHEAD", 0), ("WORKSPACE_BYTES", 0), ("LEAST_ROWS", 64)):
        monkeypatch.setattr(budget, name, value)
