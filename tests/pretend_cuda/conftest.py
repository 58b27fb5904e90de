"""Nothing is pretended where Triton's interpreter does not work."""

from __future__ import annotations

import pytest

from fastnmf.backends.registry import BACKENDS


@pytest.fixture(scope="session", autouse=True)
def usable():
    if reason := BACKENDS["triton"].probe():
        pytest.skip(reason)


@pytest.fixture
def device():
    from pretend_cuda import pretend

    with pretend() as made:
        yield made
