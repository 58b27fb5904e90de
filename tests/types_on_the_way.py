"""The types of fastnmf between NMF.fit and the operations of the backend, for one fit in memory.

    python tests/types_on_the_way.py

Prints the classes of fastnmf of which an argument or a local variable is an instance, in any frame
of the stack from `NMF.fit` down to the caller of an operation, over all calls of operations; and
the calls that go up: from a module into a package that comes later in the order of imports. What
the user gives, a callback, is outside fastnmf and no such call.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from test_layers import LEVEL

import fastnmf
from fastnmf.backends import registry
from fastnmf.models.nmf import NMF

ROOT = Path(fastnmf.__file__).parent
# a module calls those of its own package and of packages before it
GENERATOR = 0x20


def fit_in_memory() -> None:
    """The fit that is traced: large enough for the operation that takes rows of the data."""
    A = torch.rand(600, 20, generator=torch.Generator().manual_seed(0))
    NMF(10, seed=0, tol=0).fit(A, 30)


def place_of(frame: FrameType) -> int | None:
    """The place of the frame's package in the order of imports; None outside fastnmf, and for a
    decorator, which calls what it was given."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT) or path.stem == "isolation":
        return None
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return LEVEL.get(name)


def name_of(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name}"


def types_in(frame: FrameType | None) -> set[str]:
    """Names of the types in this frame and in those above it, up to that of NMF.fit."""
    found = set()
    while frame is not None:
        if place_of(frame) is not None:
            kinds = {type(value) for value in frame.f_locals.values()}
            found |= {kind.__qualname__ for kind in kinds if kind.__module__.startswith("fastnmf.")}
        if frame.f_code is inspect.unwrap(NMF.fit).__code__:
            break
        frame = frame.f_back
    return found


def types_on_the_way() -> set[str]:
    """Names of the types that are there when operations are called."""
    found: set[str] = set()
    select = registry.select

    def watched(act: Any) -> Any:
        def acts(*given: Any, **named: Any) -> Any:
            found.update(types_in(sys._getframe(1)))
            return act(*given, **named)

        return acts

    def watching(*given: Any) -> tuple[str, dict[str, Any]]:
        backend, operations = select(*given)
        return backend, {name: watched(act) for name, act in operations.items()}

    with mock.patch("fastnmf.fit.options.select", watching):
        fit_in_memory()
    return found


def calls_up() -> set[str]:
    """Calls from a frame of one package into one that comes later, as caller → callee."""
    found = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        # a generator that goes on was called where it was made
        goes_on = frame.f_code.co_flags & GENERATOR and frame.f_lasti > 0
        if event != "call" or goes_on or (callee := place_of(frame)) is None:
            return
        caller = frame.f_back
        while caller is not None and place_of(caller) is None:
            caller = caller.f_back
        if caller is not None and callee > place_of(caller):
            found.add(f"{name_of(caller)} → {name_of(frame)}")

    # what is imported at first use is there
    fit_in_memory()
    sys.setprofile(note)
    try:
        fit_in_memory()
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    types, calls = types_on_the_way(), calls_up()
    print(f"{len(types)} types between NMF.fit and the operations: {', '.join(sorted(types))}")
    print(f"{len(calls)} calls go up", *sorted(calls), sep="\n")


if __name__ == "__main__":
    main()
