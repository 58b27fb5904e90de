"""Peak bytes on the device stay within what the plan reckons with: fits in memory and read in
chunks, and encodings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf.engine import codes as engine_codes
from fastnmf.fit import batch
from fastnmf.numerics import NARROW
from fastnmf.planning import beside
from fastnmf.planning.beside import needed_bytes
from fastnmf.planning.memory import Needs
from fastnmf.planning.plan import Problem
from fastnmf.solvers.registry import SOLVERS
from pretend_cuda import Card, OutOfMemory, on_cuda, pretend
from pretend_cuda.cases import drawn, model

slow = pytest.mark.compiles
N, D, K = 1200, 96, 40
RESIDUAL, NORMAL = {"form": "residual"}, {"form": "normal"}


@pytest.fixture
def loops(monkeypatch):
    """The plans of fits, and the peak of their iterations beside what there was before the fit."""
    found, factorize_ = [], batch.factorize_

    def watched(state, data, method, plan, *given, **named):
        torch.cuda.reset_peak_memory_stats()
        factorize_(state, data, method, plan, *given, **named)
        found.append((plan, torch.cuda.max_memory_allocated()))

    monkeypatch.setattr(batch, "factorize_", watched)
    return found


@pytest.mark.parametrize(
    ("solver", "form", "accelerates", "dtype"),
    [
        ("hals", "residual", False, torch.float32),
        pytest.param("mu", "normal", True, torch.float16, marks=slow),
        pytest.param("hals", "normal", True, torch.float32, marks=slow),
        pytest.param("hals", "normal", True, torch.float16, marks=slow),
        pytest.param("mu", "residual", False, torch.float16, marks=slow),
        pytest.param("mu", "normal", False, torch.float64, marks=slow),
        pytest.param("pgd", "normal", True, torch.float32, marks=slow),
        pytest.param("pgd", "residual", False, torch.bfloat16, marks=slow),
    ],
)
def test_iterations_need_no_more_than_is_planned(solver, form, accelerates, dtype, loops, device):
    A = on_cuda(drawn(N, D).to(dtype))
    before, tuning = device.memory.live, {"form": form, "chunk_rows": 300, "block": 16}
    options = {"solver": solver, "accelerate": accelerates, "init": "random", "tuning": tuning}
    model("cuda", K, **options).fit(A, max_iter=9)
    (plan, peak), itemsize = loops[0], max(4, dtype.itemsize)
    fixed, a_row = needed_bytes(Problem(N, D, K, itemsize, SOLVERS[solver]), plan)
    # that of norms is for a device whose library needs it
    planned = fixed - beside.NORM_BYTES + a_row * plan.tile_rows
    planned += N * D * itemsize if dtype in NARROW else 0
    assert planned / 5 < peak - before <= planned


@pytest.mark.parametrize(
    ("solver", "tuning"),
    [
        ("hals", RESIDUAL),
        pytest.param("mu", NORMAL, marks=slow),
        pytest.param("pgd", RESIDUAL, marks=slow),
    ],
)
def test_a_card_of_any_size_is_enough_or_refused_by_the_plan(solver, tuning, monkeypatch):
    """The device itself never runs out of memory."""
    monkeypatch.setattr(beside, "NORM_BYTES", 1 << 10)
    outcomes = []
    for share in (0.6, 0.8, 1.2, 2):
        total = int(N * D * 4 + share * N * (4 * K + D) * 4)
        with pretend(Card(total_memory=total)):
            A, options = on_cuda(drawn(N, D)), {"solver": solver, "init": "random"}
            try:
                model("cuda", K, tuning=tuning, **options).fit(A, max_iter=2)
                outcomes.append("fits")
            except OutOfMemory as error:
                outcomes.append("refused" if "chunk_rows" in str(error) else str(error))
    assert set(outcomes) == {"fits", "refused"}
    assert outcomes == sorted(outcomes, reverse=True)


@pytest.mark.parametrize(
    "codes", ["memory", pytest.param(None, marks=slow), pytest.param("file", marks=slow)]
)
def test_chunks_need_no_more_than_max_memory(codes, tmp_path, small_budgets, device):
    n = 2000
    np.save(tmp_path / "A.npy", drawn(n, D).numpy())
    most = Needs(n, D, K, 4, codes or "none").streamed(250)
    options = {"init": "random", "max_memory": most, "accelerate": False}
    nmf = model("cuda", K, **options)
    to = str(tmp_path / "Z.npy") if codes == "file" else codes
    nmf.fit(tmp_path / "A.npy", max_iter=2, codes=to)
    assert nmf.fit_info_.passes > 2
    assert most / 5 < device.memory.peak <= most


@pytest.mark.parametrize(
    ("solver", "form", "dtype"),
    [
        ("hals", "residual", torch.float32),
        *(
            pytest.param(solver, form, torch.float16, marks=slow)
            for solver, form in (
                ("hals", "normal"),
                ("hals", "residual"),
                ("mu", "residual"),
                ("pgd", "residual"),
            )
        ),
    ],
)
def test_codes_are_swept_in_a_share_of_the_memory(solver, form, dtype, monkeypatch):
    """Of the card, beside A and the codes. Workspaces of the exact solver of plain torch have a
    fixed size, more than this card has."""
    # else chunks are as large as a cache
    monkeypatch.setattr(engine_codes, "_CHUNK_BYTES", 1)
    total = 4 << 20
    with pretend(Card(total_memory=total)) as device:
        A, nmf = (
            on_cuda(drawn(N, D).to(dtype)),
            model("cuda", K, solver=solver, tuning={"form": form}),
        )
        nmf.load_dictionary(drawn(K, D, 1))
        before, free = device.memory.live, total - device.memory.live
        device.memory.reset_peak()
        codes = nmf.encode(A, max_iter=12, method="sweeps")
        peak = device.memory.peak - before - codes.numel() * 4
        # a quarter is meant; 16-bit data are widened, and the residual form has a few more
        assert free / 10 < peak <= 0.4 * free
