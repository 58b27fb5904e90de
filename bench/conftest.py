"""Options and fixtures: `pytest bench` runs all benches, `pytest bench --quick` the small ones."""

from __future__ import annotations

import pytest
from support.measure import BUDGET, QUICK_BUDGET, Bench, machine
from support.tables import grids, tables
from support.workloads import QUICK, Problem, load


def pytest_addoption(parser):
    group = parser.getgroup("fastnmf")
    group.addoption("--quick", action="store_true", help="small workloads, fewer rounds")
    group.addoption(
        "--data",
        action="append",
        default=[],
        metavar="PATH.npy",
        help="real activations (n, d), for workloads of this width; may be repeated",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("quick"):
        return
    dropped = [
        item
        for item in items
        if item.callspec.params["workload"] not in QUICK or item.get_closest_marker("slow")
    ]
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=dropped)


def pytest_benchmark_generate_machine_info(config):
    return machine()


def pytest_terminal_summary(terminalreporter, config):
    """Print our tables: those of pytest-benchmark show rounds, not iterations."""
    session = getattr(config, "_benchmarksession", None)
    entries = [dict(found.extra_info) for found in session.benchmarks] if session else []
    if entries:
        terminalreporter.write_line("\n\n".join([tables(entries), *grids(entries)]))


@pytest.fixture
def problem(workload, pytestconfig) -> Problem:
    """The data and the starting factors of the workload."""
    return load(workload, tuple(pytestconfig.getoption("data")))


@pytest.fixture
def bench(benchmark, problem, pytestconfig) -> Bench:
    """What times one contender on the problem and stores the figures."""
    return Bench(benchmark, problem, QUICK_BUDGET if pytestconfig.getoption("quick") else BUDGET)
