"""Checks of the facade's arguments: each returns the value to use, or raises with what is
allowed."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidInput
from .init import STARTS
from .store import output

# iterations of fit where neither it nor the constructor says
MAX_ITER = 500


def refuse_unknown(unknown: dict[str, Any], model: type) -> None:
    """Raise TypeError for options that do not exist, naming the nearest that does."""
    if not unknown:
        return
    parameters = inspect.signature(model.__init__).parameters.values()
    valid = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
    given = next(iter(unknown))
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise TypeError(f"NMF has no option {given!r}{hint} It has: {', '.join(valid)}")


def whole(name: str, value: Any, *, at_least: int, optional: bool = False) -> int | None:
    """value as an int ≥ at_least; None passes where it is optional."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        allowed = "a whole number or None" if optional else "a whole number"
        raise TypeError(f"{name}={value!r} must be {allowed}")
    if value < at_least:
        raise InvalidInput(f"{name}={value} must be at least {at_least}")
    return int(value)


def iterations(asked: int | None, constructed: int | None) -> int:
    """The iterations of fit: what it was asked for, else the constructor's, else MAX_ITER."""
    asked = whole("max_iter", asked, at_least=0, optional=True)
    return next(value for value in (asked, constructed, MAX_ITER) if value is not None)


def tolerance(tol: Any) -> float:
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real):
        raise TypeError(f"tol={tol!r} must be a number; 0 never stops early")
    if math.isnan(tol):
        raise InvalidInput("tol is NaN; give a number, 0 never stops early")
    return float(tol)


def file(name: str, value: Any) -> str | os.PathLike | None:
    if value is not None and not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={value!r} must be the name of a file or None")
    return value


def seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number of seconds")
    if not value >= 0:
        raise InvalidInput(f"{name}={value} must be at least 0; 0 is after every iteration")
    return float(value)


def half_life(value: Any) -> float | None:
    """The rows after which a row counts half: a number above zero, infinity included, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"half_life={value!r} must be a number of rows or None")
    if not value > 0:
        raise InvalidInput(f"half_life={value} must be above 0; math.inf never forgets")
    return float(value)


def penalty(name: str, value: Any, *, most: float = math.inf, other: str | None = None):
    """value as a float from 0 to `most`, finite; the word `other` passes."""
    words = "" if other is None else f" or {other!r}"
    if value == other and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number{words}")
    if not 0 <= value <= most or value == math.inf:
        bound = "finite and at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise InvalidInput(f"{name}={value} must be {bound}{words}")
    return float(value)


def unit_norm(value: Any, alpha_D: float | str) -> bool:
    """value, True or False; True where the dictionary has no penalty."""
    if flag("unit_norm", value) and alpha_D not in ("same", 0):
        raise InvalidInput(
            f"alpha_D={alpha_D} does not go with unit_norm=True, which bounds the dictionary "
            "already; give alpha_D=0, or leave it out"
        )
    return value


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """value, which must be one of these names."""
    allowed = list(allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be one of the names: {', '.join(allowed)}")
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InvalidInput(
            f"{name}={value!r} is unknown{hint}; it must be one of: {', '.join(allowed)}"
        )
    return value


def start(init: Any) -> str | tuple[Any, Any]:
    """init, which must be the name of a start or a pair (Z0, D0); the pair itself is checked
    against A by fit."""
    if isinstance(init, tuple | list) and len(init) == 2:
        return tuple(init)
    if isinstance(init, str):
        return one_of("init", init, STARTS)
    raise TypeError(
        f"init must be one of {', '.join(STARTS)} or a pair (Z0, D0), not {type(init).__name__}"
    )


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
    return value


def automatic(name: str, value: Any) -> bool | str:
    if isinstance(value, bool) or value == "auto":
        return value
    raise InvalidInput(f"{name}={value!r} must be 'auto', True or False")


def time_limit(name: str, value: Any) -> float:
    """value > 0 as a float; None is no limit."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number of seconds or None")
    if not value > 0:
        raise InvalidInput(f"{name}={value} must be more than 0; None is no limit")
    return float(value)


def function(name: str, value: Any) -> Callable | None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r} must be a function or None")
    return value


def device(value: Any) -> str | torch.device:
    """value as it was given, which must name a device of torch; that it is there is not asked."""
    try:
        torch.device(value)
    except (RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise InvalidInput(
            f"device={value!r} is no device of torch ({why}); give for example 'cpu' or 'cuda'"
        ) from error
    return value


def codes(value: Any, *, optional: bool) -> Path | str | None:
    """Where codes go: 'memory', the .npy file that value names, or None where that is optional."""
    if value is None and optional:
        return None
    if not isinstance(value, str | os.PathLike):
        none = ", or None to compute them anew in every pass" if optional else ""
        raise TypeError(f"codes={value!r} must be 'memory' or the path of a .npy file{none}")
    return "memory" if value == "memory" else output(value)


def no_gradient(name: str, wanted: bool) -> None:
    """Refuse what needs a gradient where results go to a file, or do not fit in memory."""
    if wanted and torch.is_grad_enabled():
        raise InvalidInput(
            f"{name} requires a gradient, which exists only where all is in memory; give "
            f"{name}.detach(), or take no file and enough max_memory"
        )


def device_after(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """Where a module without tensors is after `fn` was applied to it: fn may move, or only change
    the dtype."""
    moved = fn(torch.empty(0)).device
    if moved.type != "cpu" or device.type == "cpu":
        return moved
    try:
        # a change of dtype leaves a meta tensor where it is; a move to the CPU does not, or cannot
        # be done
        return device if fn(torch.empty(0, device="meta")).device.type == "meta" else moved
    except NotImplementedError:
        return moved
