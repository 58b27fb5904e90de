"""What bench/studies/gpu.py checks on a GPU passes here, in the interpreter, on small sizes; and
what is wrong is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tape import Tape

from fastnmf.fit import batch as fitting

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
from support import gpu_checks
from support.gpu_checks import Case

SIZE = (20, 5, 3)


@pytest.mark.compiles
def test_every_check_passes_in_the_interpreter():
    """Both precisions of each operation, as codes and as dictionary."""
    found = [one for case in gpu_checks.cases((SIZE,)) for one in gpu_checks.checked(case, "cpu")]
    assert [check for check in found if not check["passed"]] == []
    assert len(found) == 2 * 2 * (4 + 4 + 2 + 2)


@pytest.mark.compiles
def test_graphs_are_checked_to_the_bit(launches_on_tape, monkeypatch):
    """And repeats that do nothing are found."""
    monkeypatch.setattr(fitting, "CudaGraph", lambda *_, **__: Tape())
    monkeypatch.setattr(fitting, "refuses", lambda _: None)
    given = torch.rand(9, 5), 3, "mu", "plain", 3
    assert gpu_checks.graph_checked(*given)["passed"]
    monkeypatch.setattr(Tape, "replay", lambda tape: None)
    assert not gpu_checks.graph_checked(*given)["passed"]


@pytest.mark.parametrize("name", ["mu_residual_", "pgd_residual_", "mu_normal_"])
def test_a_penalty_that_is_left_out_is_found(name, monkeypatch):
    """By the check of the variant."""
    ops = dict(gpu_checks.select(gpu_checks.IN_FLOAT32, torch.device("cpu"), "triton")[1])
    ops[name] = lambda *given, plain=ops[name]: plain(*given[:5])
    monkeypatch.setattr(gpu_checks, "select", lambda *_: ("triton", ops))
    assert all(check["passed"] for check in gpu_checks.checked(Case(name, "", SIZE, True), "cpu"))
    penalised = gpu_checks.checked(Case(name, " penalised", SIZE, True), "cpu")
    assert not any(check["passed"] for check in penalised)


def test_other_bits_are_found(monkeypatch):
    ops = dict(gpu_checks.select(gpu_checks.IN_FLOAT32, torch.device("cpu"), "triton")[1])
    plain, calls = ops["mu_normal_"], []

    def differs(F, C, G, updated, sums):
        plain(F, C, G, updated, sums)
        calls.append(updated)
        updated[0, 0] *= 1 + 2e-7 * len(calls)

    monkeypatch.setattr(gpu_checks, "select", lambda *_: ("triton", {**ops, "mu_normal_": differs}))
    found = list(gpu_checks.checked(Case("mu_normal_", "", SIZE, True), "cpu"))
    assert not any(check["same_bits"] or check["passed"] for check in found)
