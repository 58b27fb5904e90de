"""HALS: one iteration of fastnmf and of the other libraries, and half-steps alone."""

from __future__ import annotations

import pytest
from support.baselines import BASELINES, time_baseline
from support.candidate import half_step, method_of, time_iteration
from support.measure import called, gemm_gflops
from support.workloads import WORKLOADS

from fastnmf.backends.registry import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def bench_iteration(bench, backend):
    time_iteration(bench, "hals", backend)


@pytest.mark.parametrize("baseline", BASELINES["hals"])
@pytest.mark.parametrize("workload", WORKLOADS)
def bench_baseline(bench, baseline):
    time_baseline(bench, "hals", baseline)


@pytest.mark.parametrize("half", ["codes", "codes afresh", "dictionary"])
@pytest.mark.parametrize("workload", ["concepts_4k", "wide_4k"])
def bench_half_step(bench, half):
    """GF/s as a fraction of those of torch.mm of 2048³. bench_iteration checks the result."""
    timing = half_step(bench.problem, "hals", method_of("hals", "auto").backend, half)
    # the speed of a busy machine changes within a run: torch.mm is timed before and after
    before = gemm_gflops()
    bench.record(timing, called(timing)[1:])
    rate = max(before, gemm_gflops())
    fraction = bench.benchmark.extra_info["gflops"] / rate
    bench.note(gemm_gflops=rate, fraction_of_gemm=fraction)
