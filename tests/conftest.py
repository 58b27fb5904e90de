"""The Triton kernels are interpreted in a process of their own, beside the other tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = pytest.StashKey[subprocess.Popen]()


def pytest_collection_finish(session):
    """Begin early what tests/test_kernels.py waits for: how kernels run is settled when they are
    defined, so they cannot be interpreted and compiled in one process."""
    wanted = any(item.path.name == "test_kernels.py" for item in session.items)
    if not wanted or session.config.option.collectonly or not importlib.util.find_spec("triton"):
        return
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted"]
    running = subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    session.config.stash[INTERPRETED] = running
    if hasattr(os, "setpriority"):
        # the others may wait for threads of theirs
        os.setpriority(os.PRIO_PROCESS, running.pid, 19)


def pytest_unconfigure(config):
    running = config.stash.get(INTERPRETED, None)
    if running is not None:
        running.kill()
        running.wait()


@pytest.fixture
def interpreted(request) -> subprocess.Popen:
    if INTERPRETED not in request.config.stash:
        pytest.skip("triton is not installed")
    return request.config.stash[INTERPRETED]
