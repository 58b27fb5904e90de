"""The compiled extension for tests of it."""

from __future__ import annotations

import pytest
from compiled import REASON, instruction_sets


@pytest.fixture(params=instruction_sets())
def extension(request, checking):
    """The extension on each instruction set that is usable here."""
    checking.force_isa(request.param)
    yield checking
    checking.force_isa("auto")


@pytest.fixture
def checking():
    """The extension on the instruction set that it chooses: its checks are the same on all."""
    if REASON is not None:
        pytest.skip(REASON)
    from fastnmf import _C

    return _C
