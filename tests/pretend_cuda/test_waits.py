"""Where the host waits: in an iteration of each kind of fit, as the table in kernels/README.md
says, and in whole fits; and what crosses to the host."""

from __future__ import annotations

from collections import Counter

import pytest

from fastnmf.init import start
from fastnmf.results import metrics
from pretend_cuda import host_waits, on_cuda, pretend
from pretend_cuda.cases import drawn, model

slow = pytest.mark.compiles
# the fast ones, and all with the marker
_QUICK = {("normal form, `tol=0`", "hals"), ("residual form, `tol` > 0", "mu")}
_ALL = [(kind.name, solver) for kind in host_waits.KINDS for solver in kind.solvers]
KINDS = {kind.name: kind for kind in host_waits.KINDS}


@pytest.mark.parametrize(
    ("name", "solver"),
    [pytest.param(*case, marks=() if case in _QUICK else slow) for case in _ALL],
)
def test_an_iteration_waits_as_often_as_the_table_says(name, solver, tmp_path, small_budgets):
    found = host_waits.waits(KINDS[name], solver, tmp_path / "A.npy")
    assert f"{found:.3g}" == host_waits.written()[name, solver]


def test_the_table_has_all_kinds():
    assert set(host_waits.written()) == set(_ALL)


def test_a_fit_waits_a_few_times_at_its_start_and_end(device):
    """Data that are checked, a start, and the summary: none of it in a loop."""
    model("cuda", accelerate=False).fit(on_cuda(drawn()), max_iter=8)
    found = Counter(wait.where.partition(":")[0] for wait in device.waits)
    assert found["results/metrics.py"] <= 4
    assert sum(found.values()) <= 12, found


def test_many_rows_are_waited_for_no_more_often(monkeypatch):
    """The start and the summary take rows in tiles."""
    counts = []
    for tiles in (False, True):
        if tiles:
            monkeypatch.setattr(metrics, "_ENTRIES", 40)
            monkeypatch.setattr(start, "tile_rows", lambda *_: 7)
        with pretend() as device:
            model("cuda", init="random").fit(on_cuda(drawn()), max_iter=1)
        counts.append(len(device.waits))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "use",
    [
        lambda nmf, A: nmf.fit(A, max_iter=9),
        lambda nmf, A: nmf.load_dictionary(A[:4]).encode(A, max_iter=9),
        lambda nmf, A: nmf.load_dictionary(A[:4]).decode(A[:, :4]),
        lambda nmf, A: [nmf.partial_fit(batch) for batch in A.split(1000)],
    ],
)
def test_no_matrix_of_the_rows_crosses_to_the_host(use, device):
    """Not even a byte of each row."""
    A = on_cuda(drawn(2000, 12))
    use(model("cuda"), A)
    most = max((one.bytes for one in device.crossed), default=0)
    assert most < len(A) / 2
