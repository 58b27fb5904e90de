"""Nothing is interpreted where the interpreter does not work."""

from __future__ import annotations

import pytest

from fastnmf.backends import BACKENDS


@pytest.fixture(autouse=True)
def usable():
    if reason := BACKENDS["triton"].probe():
        pytest.skip(reason)
