"""Nothing is interpreted where the interpreter does not work; and what several tests need."""

from __future__ import annotations

import pytest
from tape import Tape
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime.interpreter import GridExecutor

from fastnmf.backends.registry import BACKENDS


@pytest.fixture(autouse=True)
def usable():
    if reason := BACKENDS["triton"].probe():
        pytest.skip(reason)


@pytest.fixture
def launches_on_tape(monkeypatch):
    """Let a tape have launches of Triton, too."""
    launch = GridExecutor.__call__

    def call(*given, **options):
        if Tape.now is not None:
            return Tape.now.launch(launch, given, options)
        # what the interpreter does by torch is no part of a step
        with _disable_current_modes():
            return launch(*given, **options)

    monkeypatch.setattr(GridExecutor, "__call__", call)
