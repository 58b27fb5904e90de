"""Backends: precedence, refusals with every reason, and a table that says what is usable."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from half_steps import operations_of

import fastnmf
from fastnmf import NMF, BackendUnavailable, InvalidInput
from fastnmf.backends import registry, triton
from fastnmf.backends.registry import BACKENDS, Backend, select, select_each
from fastnmf.backends.torch import REFERENCE
from fastnmf.fit import options
from fastnmf.solvers.registry import SOLVERS

CPU = torch.device("cpu")
HALS, ANLS = operations_of("hals"), operations_of("anls")


@pytest.fixture
def broken(monkeypatch):
    """A preferred backend that supplies hals on the CPU but cannot be used."""
    never = Backend("never", ("hals_block_",), ("cpu",), lambda: "its library is missing", dict)
    everything = {"never": never, **BACKENDS}
    monkeypatch.setattr(registry, "BACKENDS", everything)
    monkeypatch.setattr(options, "BACKENDS", everything)
    return never


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_has_its_operations_from_torch(solver):
    name, ops = select(operations_of(solver), CPU, "torch")
    assert name == "torch"
    assert set(SOLVERS[solver].operations) <= set(ops)


def test_explicit_backend_that_is_not_usable_raises_with_every_reason(broken):
    with pytest.raises(BackendUnavailable, match="its library is missing") as raised:
        select(HALS, CPU, "never")
    assert "backend='never'" in str(raised.value)
    assert "torch: usable" in str(raised.value)
    with pytest.raises(BackendUnavailable, match="nnls"):
        select(ANLS, CPU, "never")
    model = NMF(3, backend="never")
    with pytest.raises(BackendUnavailable):
        model.fit(torch.rand(9, 5))
    assert not model.fitted


def test_auto_passes_over_what_is_not_usable_and_logs_why(broken, caplog):
    with caplog.at_level("INFO", logger="fastnmf.backends.registry"):
        name, _ = select(HALS, CPU, "auto")
    assert name != "never"
    assert "its library is missing" in caplog.text


def test_environment_matters_only_to_auto(broken, monkeypatch):
    monkeypatch.setenv("FASTNMF_BACKEND", "never")
    with pytest.raises(BackendUnavailable, match="FASTNMF_BACKEND='never'"):
        select(HALS, CPU, "auto")
    assert select(HALS, CPU, "torch")[0] == "torch"
    monkeypatch.setenv("FASTNMF_BACKEND", "nonsense")
    with pytest.raises(InvalidInput, match="FASTNMF_BACKEND='nonsense'"):
        select(HALS, CPU, "auto")


def test_table_names_every_backend_and_its_reason(broken):
    table = fastnmf.available_backends()
    assert [backend.name for backend in table] == ["never", *BACKENDS]
    assert "no: its library is missing" in str(table)
    assert table["torch"].reason is None
    assert len(str(table).splitlines()) == len(table) + 1


def test_backend_is_in_the_summary_of_the_fit():
    model = NMF(3, backend="torch", max_iter=1, tol=0)
    model.fit(torch.rand(9, 5))
    assert model.fit_info_.backend == "torch"


def test_what_launches_kernels_is_done_on_the_device_of_the_data(monkeypatch):
    """Triton launches on the current device, which need not be the model's."""
    entered, used = [], []

    class Guard(torch.cuda.device_of):
        def __enter__(self):
            entered.append(self)

        def __exit__(self, *_):
            entered.pop()

    def watched(name):
        def operation(*given, **options):
            used.append(name)
            assert entered
            return REFERENCE[name](*given, **options)

        return operation

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    ops = {name: watched(name) for name in REFERENCE}
    for name in ("select", "select_each"):
        monkeypatch.setattr(f"fastnmf.fit.options.{name}", lambda *_: ("torch", ops))
    A, model = torch.rand(30, 6), NMF(3, seed=0, max_iter=3)
    for call in (model.fit, model.encode, model.partial_fit):
        call(A)
        assert used
        used.clear()
    assert entered == []


def test_interpreter_that_does_not_work_is_named(monkeypatch):
    """Triton 3.6 beside NumPy 2.4 was called usable, and raised in the first kernel."""
    errors = pytest.importorskip("triton.runtime.errors", reason="triton is not installed")

    def hals_sweep_(*_):
        raise errors.InterpreterError("TypeError('only 0-dimensional arrays')")

    monkeypatch.setattr(triton, "interpreted", lambda: True)
    monkeypatch.setattr(importlib.import_module("fastnmf.kernels.hals"), "hals_sweep_", hals_sweep_)
    reason = BACKENDS["triton"].probe.__wrapped__()
    assert f"beside NumPy {np.__version__} (TypeError('only 0-dimensional arrays'))" in reason


def test_each_group_of_operations_has_the_backend_that_is_best_for_it(monkeypatch):
    """As on a GPU, where none supplies both."""
    loaded = {"one": {name: "one" for name in HALS}, "other": {name: "other" for name in ANLS}}
    made = {
        name: Backend(name, tuple(ops), (), lambda: None, lambda ops=ops: ops)
        for name, ops in loaded.items()
    }
    monkeypatch.setattr("fastnmf.backends.registry.BACKENDS", {**made, "torch": BACKENDS["torch"]})
    monkeypatch.setattr("fastnmf.backends.registry._load", lambda name: loaded.get(name, {}))
    monkeypatch.delenv("FASTNMF_BACKEND", raising=False)
    name, ops = select_each((HALS, ANLS), CPU, "auto")
    assert name == "one"
    assert {ops[name] for name in HALS} == {"one"}
    assert {ops[name] for name in ANLS} == {"other"}
    name, ops = select_each((HALS, ANLS), CPU, "other")
    assert name == "other"
    assert [ops[name] for name in ANLS] == ["other"] * len(ANLS)
    assert ops["hals_sweep_"] is REFERENCE["hals_sweep_"]


def test_an_extension_that_was_built_before_is_not_used(monkeypatch):
    extension = pytest.importorskip("fastnmf._C", reason="the extension is not built")
    folder = Path(registry.__file__).parent
    names = "cpp.py", "accelerated.py", "nnls/compiled.py", "restricted/compiled.py"
    files = (folder / name for name in names)
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    assert {*re.findall(r"\b_C\.(\w+)", code)} == {*registry._CALLED}
    monkeypatch.delattr(extension, registry._CALLED[-1])
    why = registry._probe_cpp.__wrapped__()
    assert "older than fastnmf's code, it lacks sparse_product; install fastnmf again" in why
    monkeypatch.undo()
    assert registry._probe_cpp.__wrapped__() is None
