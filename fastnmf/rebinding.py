"""Put one object where another is: in all module-level names of what is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def rebind(pairs: Iterable[tuple[Any, Any]], but_in: str = "") -> list[str]:
    """Bind `new` to every module-level name that holds `old`, for each pair (old, new); return the
    names, as 'module.name'. but_in: a module that is left as it is."""
    # by identity: a namespace may hold what cannot be hashed or compared
    by_id = {id(old): new for old, new in pairs}
    bound = []
    for module_name, module in list(sys.modules.items()):
        if issubclass(type(module), ModuleType) and module_name != but_in:
            # vars() would make a module load that is imported lazily
            namespace = object.__getattribute__(module, "__dict__")
            for name, value in list(namespace.items()):
                if id(value) in by_id:
                    namespace[name] = by_id[id(value)]
                    bound.append(f"{module_name}.{name}")
    return bound
