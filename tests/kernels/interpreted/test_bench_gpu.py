"""What bench/studies/gpu.py checks on a GPU passes here, in the interpreter, on small sizes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tape import Tape

from fastnmf.fit import batch as fitting

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
from support import gpu_checks


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu_checks, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_checks, "CHECKED", ((3, 5, 20),))


@pytest.mark.compiles
def test_every_check_passes_in_the_interpreter(small):
    found = gpu_checks.checks()
    assert [check for check in found if not check["passed"]] == []
    assert len(found) == 2 * (3 + 4 + 2 + 2)


@pytest.mark.compiles
def test_graphs_are_checked_to_the_bit(small, launches_on_tape, monkeypatch):
    """And repeats that do nothing are found."""
    monkeypatch.setattr(fitting, "CudaGraph", lambda *_, **__: Tape())
    monkeypatch.setattr(fitting, "refuses", lambda _: None)
    given = torch.rand(9, 5), 3, "mu", "plain", 3
    assert gpu_checks.graph_checked(*given)["passed"]
    monkeypatch.setattr(Tape, "replay", lambda tape: None)
    assert not gpu_checks.graph_checked(*given)["passed"]


@pytest.mark.parametrize("name", ["mu_residual_", "pgd_residual_", "mu_normal_"])
def test_a_penalty_that_is_left_out_is_found(name, small, monkeypatch):
    """By the check of the variant."""
    ops = {
        **gpu_checks.select(tuple(gpu_checks.VARIANTS), gpu_checks.torch.device("cpu"), "triton")[1]
    }
    plain, given = ops[name], {"mu_normal_": 5, "mu_residual_": 5, "pgd_residual_": 5}[name]
    ops[name] = lambda *arguments: plain(*arguments[:given])
    monkeypatch.setattr(gpu_checks, "select", lambda *_: ("triton", ops))
    assert gpu_checks.checked(name, "", 3, 5, 20, True)["passed"]
    assert not gpu_checks.checked(name, " penalised", 3, 5, 20, True)["passed"]
