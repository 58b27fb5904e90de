"""rebind: by identity, in all modules but one, whatever a namespace holds."""

from __future__ import annotations

import sys
import types

from fastnmf.rebinding import rebind


class Odd:
    """Neither hashed nor compared."""

    __hash__ = None

    def __eq__(self, other):
        raise TypeError


def test_names_are_bound_by_identity(monkeypatch):
    old, equal, new, odd = [1], [1], [2], Odd()
    modules = {name: types.ModuleType(name) for name in ("first_user", "other_user", "left_alone")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        module.a, module.b, module.odd = old, equal, odd
    assert set(rebind([(old, new)], but_in="left_alone")) == {"first_user.a", "other_user.a"}
    assert modules["first_user"].a is modules["other_user"].a is new
    assert modules["left_alone"].a is old
    assert modules["first_user"].b is equal
    assert rebind([]) == []
