"""Tests run in several processes, of one thread each."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is loaded; what tests start has it as well
    os.environ.setdefault("OMP_NUM_THREADS", "1")
