"""Put fastnmf's NMF where Overcomplete's is, and take it away again.

The classes that stand in, `NMF` for Overcomplete's and `InterpretoNMF` for that of interpreto's
copy, are attributes of this module, made at first use. Pickles refer to them by these names, and so
load in a process that has not patched. Importing this module imports neither library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .models import nmf
from .rebinding import rebind

log = logging.getLogger(__name__)

# modules that define an NMF of Overcomplete's, and the name here of the class that stands in for it
_STAND_IN_NAMES = {
    "overcomplete.optimization.nmf": "NMF",
    "interpreto._vendor.overcomplete.optimization.nmf": "InterpretoNMF",
}
_HOW_TO_INSTALL = "pip install overcomplete 'matplotlib<3.9'"

_lock = threading.RLock()
# original class → the class that stands in for it
_stand_ins: dict[type, type] = {}


def patch_overcomplete() -> list[str]:
    """Bind fastnmf's NMF to every name that is bound to Overcomplete's NMF.

    Returns
    -------
    list of str
        The names that were bound, as 'module.name'.

    Raises
    ------
    ImportError
        If there is no Overcomplete to patch. The message says what to install.

    Notes
    -----
    This binds all module-level names in every imported module, whatever they are called, and until
    `unpatch_overcomplete` also what is imported later. interpreto's own copy of Overcomplete is
    patched too, now or when it is imported. A second call finds names bound since the first.

    The new class inherits from fastnmf.NMF and from the class it replaces. So isinstance holds in
    code that keeps the old class elsewhere (in a closure, an attribute, a registry). Models and
    subclasses made before do not change, and count as instances of the new class.
    ``NMF.stands_in_for`` is the old class. While patched, models made before cannot be pickled.
    Models that Overcomplete saved load as the new class.
    """
    with _lock:
        reason = _import_overcomplete()
        if reason is not None and not _interpreto_has_copy():
            raise ImportError(reason)
        if reason is not None:
            log.warning("patching interpreto's copy of Overcomplete only: %s", reason)
        if not is_patched():
            sys.meta_path.insert(0, _PatchOnImport)
        stand_ins = [_stand_in(sys.modules[place].NMF) for place in _imported_places()]
        # to itself as well, so that the names of an earlier call are returned too
        names = rebind((old, cls) for cls in stand_ins for old in (cls.stands_in_for, cls))
        log.info("fastnmf's NMF stands in for Overcomplete's at %s", ", ".join(names) or "import")
        return names


def unpatch_overcomplete() -> list[str]:
    """Bind Overcomplete's own NMF again, also in modules imported since the patch.

    Returns
    -------
    list of str
        The names that were bound, as 'module.name'; none where nothing is patched.

    Notes
    -----
    Models made while patched can still be used.
    """
    with _lock:
        if is_patched():
            sys.meta_path.remove(_PatchOnImport)
        names = rebind((stand_in, original) for original, stand_in in _stand_ins.items())
        log.info("Overcomplete's own NMF is back at %s", ", ".join(names) or "no name")
        return names


def is_patched() -> bool:
    """Return whether `patch_overcomplete` is in effect.

    Returns
    -------
    bool
        True from `patch_overcomplete` until `unpatch_overcomplete`.
    """
    return _PatchOnImport in sys.meta_path


def __getattr__(name: str) -> type:
    """NMF or InterpretoNMF; fastnmf.NMF where the class it replaces cannot be imported."""
    for place, stand_in_name in _STAND_IN_NAMES.items():
        if name == stand_in_name:
            try:
                return _stand_in(importlib.import_module(place).NMF)
            except (ImportError, AttributeError) as error:
                log.info("%s.%s is fastnmf.NMF itself: %s", __name__, name, error)
                return nmf.NMF
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _stand_in(cls: type) -> type:
    """The class that replaces cls, an NMF of Overcomplete's; cls itself if it is such a class."""
    with _lock:
        if "stands_in_for" in vars(cls):
            return cls
        if cls not in _stand_ins:
            _stand_ins[cls] = _make_stand_in(cls)
        return _stand_ins[cls]


class _Constructor(nn.Module):
    """Ends the chain of constructors before Overcomplete's: fastnmf.NMF's has done the work."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def _make_stand_in(original: type) -> type:
    class StandIn(nmf.NMF, _Constructor, original):
        __doc__ = nmf.NMF.__doc__
        stands_in_for = original

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            # issubclass(other, original) would call this hook again
            if "stands_in_for" in vars(cls) and original in other.__mro__:
                return True
            return NotImplemented

        def __setstate__(self, state: dict[str, Any]) -> None:
            if "solver_fn" in state:
                _take_over_(self, state)
            else:
                super().__setstate__(state)

    StandIn.__name__ = StandIn.__qualname__ = _STAND_IN_NAMES[original.__module__]
    return StandIn


def _take_over_(model: nmf.NMF, state: dict[str, Any]) -> None:
    """Make model what the pickled state of an Overcomplete NMF describes."""
    options = {name: state[name] for name in ("device", "solver", "tol", "verbose")}
    model.__init__(state["nb_concepts"], **options)
    model.D = state["_buffers"]["D"]
    if state["fitted"]:
        model._set_fitted(**state["_fitted_info"])
    model.train(state["training"])


class _PatchOnImport:
    """A finder for sys.meta_path: it binds the stand-in in modules of _STAND_IN_NAMES after these
    are executed."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in _STAND_IN_NAMES:
            return None
        finders = (finder for finder in sys.meta_path if finder is not cls)
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module)
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    if is_patched():
        vars(module)["NMF"] = _stand_in(module.NMF)
        log.info("fastnmf's NMF stands in for %s.NMF", module.__name__)


def _imported_places() -> list[str]:
    return [place for place in _STAND_IN_NAMES if place in sys.modules]


def _import_overcomplete() -> str | None:
    """Import Overcomplete's NMF; return why that is not possible and what to do, or None."""
    try:
        importlib.import_module("overcomplete")
        importlib.import_module("overcomplete.optimization.nmf")
    except ModuleNotFoundError as error:
        if error.name != "overcomplete":
            return f"overcomplete cannot be imported: {error}"
        return (
            f"overcomplete is not installed: {_HOW_TO_INSTALL}, or use fastnmf.NMF, which has the "
            "same interface"
        )
    except (ImportError, AttributeError) as error:
        return (
            f"overcomplete cannot be imported: {error}; overcomplete 0.3.0 needs matplotlib<3.9: "
            f"{_HOW_TO_INSTALL}"
        )
    return None


def _interpreto_has_copy() -> bool:
    """Whether interpreto has a copy of Overcomplete, without importing it, which takes seconds."""
    if "interpreto" in sys.modules:
        folders = list(getattr(sys.modules["interpreto"], "__path__", []))
    else:
        spec = importlib.util.find_spec("interpreto")
        folders = [] if spec is None else spec.submodule_search_locations or []
    inside = Path("_vendor", "overcomplete", "optimization", "nmf.py")
    return any(Path(folder, inside).exists() for folder in folders)
