"""Put fastnmf's models where Overcomplete's are, and take them away again.

The classes that stand in, such as `NMF` for Overcomplete's and `InterpretoNMF` for that of
interpreto's copy, are attributes of this module, made at first use. Pickles refer to them by these
names, and so load in a process that has not patched. Importing this module imports neither library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .models.convex_nmf import ConvexNMF as _ConvexNMF
from .models.factorization import Factorization
from .models.nmf import NMF as _NMF
from .models.semi_nmf import SemiNMF as _SemiNMF
from .rebinding import rebind

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """A module that defines a class of Overcomplete's.

    model: the class of fastnmf that has its name, and replaces it. stand_in: the name here of the
    class that does.
    """

    module: str
    model: type[Factorization]
    stand_in: str

    @property
    def original(self) -> type:
        """The class; the stand-in where that is bound. The module is imported."""
        return getattr(sys.modules[self.module], self.model.__name__)


_PACKAGES = {"overcomplete": "", "interpreto._vendor.overcomplete": "Interpreto"}
_MODELS = {"nmf": _NMF, "semi_nmf": _SemiNMF, "convex_nmf": _ConvexNMF}
_PLACES = [
    _Place(f"{package}.optimization.{module}", model, prefix + model.__name__)
    for package, prefix in _PACKAGES.items()
    for module, model in _MODELS.items()
]
_BY_MODULE = {place.module: place for place in _PLACES}
_HOW_TO_INSTALL = "pip install overcomplete 'matplotlib<3.9'"

_lock = threading.RLock()
# original class → the class that stands in for it
_stand_ins: dict[type, type] = {}


def patch_overcomplete() -> list[str]:
    """Bind fastnmf's models to every name that is bound to Overcomplete's of the same name.

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
    The models are NMF, SemiNMF and ConvexNMF, whose W is then dense. This binds all module-level
    names in every imported module, whatever they are called, and until `unpatch_overcomplete` also
    what is imported later. interpreto's own copy of Overcomplete is patched too, now or when it is
    imported. A second call finds names bound since the first.

    A new class inherits from that of fastnmf and from the class it replaces. So isinstance holds in
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
        stand_ins = [_stand_in(place) for place in _imported_places()]
        # to itself as well, so that the names of an earlier call are returned too
        names = rebind((old, cls) for cls in stand_ins for old in (cls.stands_in_for, cls))
        log.info("fastnmf stands in for Overcomplete at %s", ", ".join(names) or "import")
        return names


def unpatch_overcomplete() -> list[str]:
    """Bind Overcomplete's own classes again, also in modules imported since the patch.

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
        log.info("Overcomplete's own classes are back at %s", ", ".join(names) or "no name")
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
    """A class that stands in; that of fastnmf where the one it replaces cannot be imported."""
    for place in _PLACES:
        if name == place.stand_in:
            try:
                importlib.import_module(place.module)
                return _stand_in(place)
            except (ImportError, AttributeError) as error:
                log.info("%s.%s is fastnmf's own: %s", __name__, name, error)
                return place.model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _stand_in(place: _Place) -> type:
    """The class that replaces the one of a place, whose module is imported."""
    with _lock:
        cls = place.original
        if "stands_in_for" in vars(cls):
            return cls
        if cls not in _stand_ins:
            _stand_ins[cls] = _make_stand_in(cls, place)
        return _stand_ins[cls]


class _Constructor(nn.Module):
    """Ends the chain of constructors before Overcomplete's: fastnmf's has done the work."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def _make_stand_in(original: Any, place: _Place) -> type:
    class StandIn(place.model, _Constructor, original):
        __doc__ = place.model.__doc__
        stands_in_for = original

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            # issubclass(other, original) would call this hook again
            if "stands_in_for" in vars(cls) and original in other.__mro__:
                return True
            return NotImplemented

        def __setstate__(self, state: dict[str, Any]) -> None:
            if "solver_fn" in state:
                _take_over_(self, StandIn, state)
            else:
                super().__setstate__(state)

    StandIn.__name__ = StandIn.__qualname__ = place.stand_in
    return StandIn


# what the constructors of Overcomplete's models take and store, and ours take
_OPTIONS = ("device", "tol", "verbose", "l1_penalty", "strict_convex")
_OF_THEIRS = (*_OPTIONS, "solver", "solver_fn")


def _take_over_(model: Any, stand_in: Any, state: dict[str, Any]) -> None:
    """Make model, an instance of stand_in or of a subclass, what the pickled state of a model of
    Overcomplete's describes."""
    options = {name: state[name] for name in _OPTIONS if name in state}
    function = state["solver_fn"]
    known = [*stand_in.stands_in_for._SOLVERS.items(), *type(model)._SOLVERS.items()]
    names = [name for name, each in known if each is function]
    if names:
        # not all of Overcomplete's models store the name
        options["solver"] = state["solver"] if state.get("solver") in names else names[0]
    # the constructor of a subclass may have other arguments
    stand_in.__init__(model, state["nb_concepts"], **options)
    if not names:
        model.solver_fn = function
    for kind in ("_parameters", "_buffers", "_modules"):
        vars(model)[kind].update(state[kind])
    if model.D is not None:
        model.device = model.D.device
    if state["fitted"]:
        model._set_fitted(**state["_fitted_info"])
        model._take_mixture(state["_buffers"].get("W"))
    model.train(state["training"])
    # what a subclass has beside
    vars(model).update({name: state[name] for name in state.keys() - {*vars(model), *_OF_THEIRS}})


class _PatchOnImport:
    """A finder for sys.meta_path: it binds the stand-in in the module of a place after that is
    executed."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in _BY_MODULE:
            return None
        finders = (finder for finder in sys.meta_path if finder is not cls)
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module)
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    place = _BY_MODULE[module.__name__]
    name = place.model.__name__
    if is_patched() and hasattr(module, name):
        vars(module)[name] = _stand_in(place)
        log.info("fastnmf's %s stands in for %s.%s", name, module.__name__, name)


def _imported_places() -> Iterator[_Place]:
    for place in _PLACES:
        if hasattr(sys.modules.get(place.module), place.model.__name__):
            yield place


def _import_overcomplete() -> str | None:
    """Import Overcomplete's models; return why that is not possible and what to do, or None."""
    try:
        importlib.import_module("overcomplete")
        importlib.import_module("overcomplete.optimization.nmf")
    except ModuleNotFoundError as error:
        if error.name != "overcomplete":
            return f"overcomplete cannot be imported: {error}"
        return (
            f"overcomplete is not installed: {_HOW_TO_INSTALL}, or use fastnmf.NMF and the other "
            "models of fastnmf, which have the same interface"
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
