"""The compiled extension, where it is usable: what it can run on, or why there is none."""

from __future__ import annotations

from fastnmf.backends.registry import BACKENDS

# why it cannot be used, or None
REASON = BACKENDS["cpp"].probe()


def instruction_sets() -> list[str]:
    """Those that are usable here; 'none' without the extension, so that a test says why it is
    skipped."""
    if REASON is not None:
        return ["none"]
    from fastnmf import _C

    return [name for name, usable in _C.isas().items() if usable]
