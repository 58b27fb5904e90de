"""Projected gradient: one iteration of fastnmf (five steps a half) and of Overcomplete (Adam)."""

from __future__ import annotations

import pytest
from support.baselines import BASELINES, time_baseline
from support.candidate import time_iteration
from support.workloads import FEW

from fastnmf.backends.registry import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workload", FEW)
def bench_iteration(bench, backend):
    time_iteration(bench, "pgd", backend)


@pytest.mark.parametrize("baseline", BASELINES["pgd"])
@pytest.mark.parametrize("workload", FEW)
def bench_baseline(bench, baseline):
    time_baseline(bench, "pgd", baseline)
