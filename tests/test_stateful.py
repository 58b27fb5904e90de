"""Random sequences of calls (stateful.py), the same ones every time."""

from __future__ import annotations

import pytest
import stateful

from fastnmf import NMF
from fastnmf.fit import batch
from fastnmf.solvers.registry import SOLVERS

# of 30 calls; some ten seconds for each solver
SEQUENCES = {"hals": 2, "mu": 3, "pgd": 2, "anls": 4}


@pytest.mark.parametrize("solver", SOLVERS)
def test_sequences_of_calls_break_no_rule(solver):
    stateful.check(SEQUENCES.get(solver, 2), solver)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", SOLVERS)
def test_many_sequences_of_calls_break_no_rule(solver):
    stateful.check(40, solver)


def forget_d(monkeypatch):
    """A fit that fails after it has changed the model."""
    fit = NMF.fit

    def failing(self, *given, **run):
        before, self.D = self.D, None
        result = fit(self, *given, **run)
        self.D = self.D if self.D is not None else before
        return result

    monkeypatch.setattr(NMF, "fit", failing)


def leave_a_file(monkeypatch):
    save = NMF.save

    def littering(self, path):
        save(self, path)
        path.with_suffix(".part").write_bytes(b"")

    monkeypatch.setattr(NMF, "save", littering)


def report_another_error(monkeypatch):
    summary = batch._summary

    def wrong(*given):
        info = summary(*given)
        object.__setattr__(info, "relative_error", 1.03 * info.relative_error)
        return info

    monkeypatch.setattr(batch, "_summary", wrong)


def depend_on_history(monkeypatch):
    encode, calls = NMF.encode, []

    def drifting(self, *given, **run):
        calls.append(1)
        return encode(self, *given, **run) * (1 + 1e-6 * len(calls))

    monkeypatch.setattr(NMF, "encode", drifting)


@pytest.mark.parametrize(
    "break_", [forget_d, leave_a_file, report_another_error, depend_on_history]
)
def test_a_broken_method_is_found(break_, monkeypatch):
    break_(monkeypatch)
    with pytest.raises(AssertionError):
        stateful.check(60, "hals", shorten=False)
