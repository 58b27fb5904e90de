"""What to write here for names of elsewhere: options and attributes of scikit-learn's."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ParamSpec

from ..fit.options import ELSEWHERE, Options

# options of scikit-learn that have nothing in their place, and why
_NOT_HERE = {
    "beta_loss": "the loss is ½ ‖A − Z D‖², scikit-learn's 'frobenius'",
    "shuffle": "concepts are updated in their order",
}


P = ParamSpec("P")

# names that users of scikit-learn look for, and what they are here
ATTRIBUTES = {
    "transform": "encode(A)",
    "fit_transform": "fit(A), which returns (Z, D)",
    "inverse_transform": "decode(Z)",
    "components_": "get_dictionary() or D",
    "W": "Z, which fit(A) returns",
    "H": "get_dictionary() or D",
    "n_components": "nb_concepts",
    "n_components_": "nb_concepts",
    "n_features_in_": "D.shape[1]",
    "random_state": "seed (fit_info_.seed has the one that was drawn)",
    "alpha_W": "alpha_Z",
    "alpha_H": "alpha_D",
    "get_params": "in the attributes nb_concepts, solver, …",
    "set_params": "assignment to the attributes nb_concepts, solver, …",
    "reconstruction_err_": "fit_info_.relative_error",
    "n_iter_": "fit_info_.iterations",
}


def refuse_unknown(unknown: dict[str, Any], where: str, valid: Sequence[str] = ()) -> None:
    """Raise TypeError for an option that does not exist, with the place where it belongs or the
    nearest name. where: what it was given to, 'fit', 'partial_fit' or the name of a model."""
    if not unknown:
        return
    given = next(iter(unknown))
    names = [field.name for field in fields(Options)]
    belongs = ELSEWHERE.get(given)
    if belongs is not None and where not in ("fit", "partial_fit"):
        belongs = belongs.replace("NMF(", f"{where}(")
    if belongs is None and given in names and given not in valid:
        belongs = f"{'Semi' if given == 'offset' else ''}NMF({given}=…)"
    if belongs is not None:
        raise TypeError(f"{where} has no option {given!r}; write {belongs}")
    if given in _NOT_HERE:
        raise TypeError(f"{where} has no option {given!r}: {_NOT_HERE[given]}; leave it out")
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise TypeError(f"{where} has no option {given!r}{hint} It has: {', '.join(valid)}")


def refuse_unknown_option(
    cls: type, base: type, unknown: dict[str, Any], valid: Sequence[str]
) -> None:
    """Raise TypeError for an option of the constructor that does not exist. cls: the class that is
    constructed, which may be a subclass of `base` with options of its own."""
    mine: list[str] = []
    if cls is not base:
        kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        own = [each for each in inspect.signature(cls.__init__).parameters.values()][1:]
        mine = [each.name for each in own if each.kind not in kinds and each.name not in valid]
    for name in unknown:
        if name in mine:
            raise TypeError(
                f"{base.__name__} has no option {name!r}, which is one of {cls.__name__}: keep it "
                f"there, and call super().__init__(…) without {name}"
            )
    refuse_unknown(unknown, base.__name__, [*valid, *mine])


def with_hints(init: Callable[P, None]) -> Callable[P, None]:
    """The constructor of a model, which says what to write for a name of elsewhere before Python
    says that nb_concepts is missing."""

    @functools.wraps(init)
    def hinting(*given: P.args, **options: P.kwargs) -> None:
        if len(given) == 1 and "nb_concepts" not in options:
            model = init.__qualname__.partition(".")[0]
            refuse_unknown({name: options[name] for name in options if name in ELSEWHERE}, model)
        init(*given, **options)  # pyright: ignore[reportCallIssue]

    return hinting
