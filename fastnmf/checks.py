"""Checks of arguments: each returns the value to use, or raises with what was given, what is
allowed and what to do."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch

from .errors import InvalidInput

# the largest number of 64 bits: no matrix has a larger size
MOST = 2**63 - 1


def whole(
    name: str,
    value: Any,
    *,
    at_least: int,
    at_most: int | None = None,
    optional: bool = False,
) -> int | None:
    """value as an int ≥ at_least, and ≤ at_most if that is given; None passes where it is
    optional."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        allowed = "a whole number or None" if optional else "a whole number"
        raise TypeError(f"{name}={value!r} must be {allowed}")
    if value < at_least:
        raise InvalidInput(f"{name}={short(value)} must be at least {at_least}")
    if at_most is not None and value > at_most:
        raise InvalidInput(f"{name}={short(value)} must be at most {at_most:,}")
    return int(value)


def short(value: Any) -> str:
    """value as text, without the middle of a long one."""
    text = ""
    if isinstance(value, numbers.Integral) and abs(value) >= 10**40:
        # Python refuses to write integers of many digits
        text = f"about {'-' if value < 0 else ''}1e{int(value).bit_length() * 0.30103:.0f}"
    text = text or str(value)
    return text if len(text) <= 40 else f"{text[:18]}…{text[-18:]}"


def _real(name: str, value: Any) -> float:
    """value, a real number, as a float. Raises InvalidInput where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        raise InvalidInput(
            f"{name}={short(value)} is beyond the largest float, 1.8e308; give a number nearer to "
            "zero"
        ) from None


def tolerance(tol: Any) -> float:
    """tol as a float of at least 0, which never stops early."""
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real):
        raise TypeError(f"tol={tol!r} must be a number; 0 never stops early")
    found = _real("tol", tol)
    if math.isnan(found):
        raise InvalidInput("tol is NaN; give a number, 0 never stops early")
    if found < 0:
        raise InvalidInput(f"tol={tol} must be at least 0; 0 never stops early")
    return found


def file(name: str, value: Any) -> str | os.PathLike[str] | None:
    """value, the name of a file or None."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={value!r} must be the name of a file or None")
    return value


def seconds(name: str, value: Any) -> float:
    """value as a float of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number of seconds")
    if not value >= 0:
        raise InvalidInput(f"{name}={short(value)} must be at least 0; 0 is after every iteration")
    return _real(name, value)


def half_life(value: Any) -> float | None:
    """value as a float above 0, in rows, infinity included, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"half_life={value!r} must be a number of rows or None")
    if not value > 0:
        raise InvalidInput(f"half_life={short(value)} must be above 0; math.inf never forgets")
    return _real("half_life", value)


def mean_l0(value: Any, concepts: int) -> float | None:
    """target_l0 as a float above 0, up to the number of concepts, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"target_l0={value!r} must be a number of concepts per row or None")
    if not 0 < value <= concepts:
        raise InvalidInput(
            f"target_l0={short(value)} must be above 0 and at most nb_concepts={concepts}: it is "
            "the mean number of active concepts per row"
        )
    return _real("target_l0", value)


def most_concepts(value: Any, concepts: int) -> int | None:
    """top_k as a number of concepts from 1 to their number, or None."""
    most = whole("top_k", value, at_least=1, optional=True)
    if most is not None and most > concepts:
        raise InvalidInput(
            f"top_k={short(most)} must be at most nb_concepts={concepts}: it is the largest number "
            "of active concepts of a row"
        )
    return most


@overload
def penalty(name: str, value: Any, *, most: float = math.inf) -> float: ...


@overload
def penalty(name: str, value: Any, *, most: float = math.inf, other: str) -> float | str: ...


def penalty(
    name: str, value: Any, *, most: float = math.inf, other: str | None = None
) -> float | str:
    """value as a finite float from 0 to `most`, or the word `other`."""
    words = "" if other is None else f" or {other!r}"
    if value == other and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number{words}")
    if not 0 <= value <= most or value == math.inf:
        bound = "finite and at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise InvalidInput(f"{name}={short(value)} must be {bound}{words}")
    return _real(name, value)


def one_of(
    name: str, value: Any, allowed: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> str:
    """value, which must be one of these names. elsewhere: names of other libraries, and what they
    are here."""
    allowed = list(allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be one of the names: {', '.join(allowed)}")
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        near = [elsewhere[value]] if elsewhere and value in elsewhere else near
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InvalidInput(
            f"{name}={value!r} is unknown{hint}; it must be one of: {', '.join(allowed)}"
        )
    return value


def flag(name: str, value: Any) -> bool:
    """value, True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
    return value


def automatic(name: str, value: Any) -> bool | str:
    """value: 'auto', True or False."""
    if isinstance(value, bool) or value == "auto":
        return value
    raise InvalidInput(f"{name}={value!r} must be 'auto', True or False")


def time_limit(name: str, value: Any) -> float:
    """value as a float above 0; None is no limit."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number of seconds or None")
    if not value > 0:
        raise InvalidInput(f"{name}={short(value)} must be more than 0; None is no limit")
    return _real(name, value)


def function(name: str, value: Any) -> Callable | None:
    """value, a function or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r} must be a function or None")
    return value


def truth(name: str, value: Any) -> bool:
    """Whether a value that the function `name` returned is true."""
    try:
        if inspect.isawaitable(value):
            raise ValueError("it would have to be awaited")
        return bool(value)
    # of NumPy, of torch
    except (ValueError, RuntimeError) as error:
        if inspect.iscoroutine(value):
            value.close()
        shape = getattr(value, "shape", None)
        of_shape = "" if shape is None else f" of shape {tuple(shape)}"
        raise TypeError(
            f"the {name} returned a {type(value).__name__}{of_shape}, which is neither true nor "
            f"false ({error}); return True to end the fit, and False or None to go on"
        ) from error


def device(value: Any) -> str | torch.device:
    """value unchanged, the name of a torch device; whether the device exists is not checked."""
    try:
        torch.device(value)
    except (RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise InvalidInput(
            f"device={value!r} is no device of torch ({why}); give for example 'cpu' or 'cuda'"
        ) from error
    return value


def no_gradient(name: str, wanted: bool) -> None:
    """Raise InvalidInput if a gradient is wanted where results go to a file, or do not fit in
    memory."""
    if wanted and torch.is_grad_enabled():
        raise InvalidInput(
            f"{name} requires a gradient, which exists only where all is in memory; give "
            f"{name}.detach(), or take no file and enough max_memory"
        )


# options that mixtures of rows do not have, and why
_NOT_OF_MIXTURES = {
    "accelerate": "extrapolated concepts are no mixtures of rows, and gained no time",
    "revive": "it makes concepts of residuals, which are no mixtures of rows",
    "unit_norm": "concepts have the norms of mixtures of rows",
    "distributed": "a concept may mix rows of all processes; fit by one process, to which A may be "
    "the path of a .npy file",
}


def mixtures(options: object, form: str | None, *, mixes: bool) -> None:
    """Refuse options that a model whose concepts are mixtures of rows, if it `mixes`, does not
    have."""
    if not mixes:
        return
    for name, reason in _NOT_OF_MIXTURES.items():
        if getattr(options, name) is True:
            raise InvalidInput(f"{name}=True does not exist for mixtures of rows: {reason}")
    if form == "residual":
        raise InvalidInput(
            "form='residual' does not exist for mixtures of rows, whose weights are found from ZᵀA "
            "and ZᵀZ; give form=None or 'normal'"
        )


def offset(value: Any, *, signed: bool) -> None:
    """Refuse an offset where dictionaries are not of any signs."""
    if flag("offset", value) and not signed:
        raise InvalidInput(
            "offset=True is an option of SemiNMF: a row that is subtracted leaves data of any "
            "signs; give SemiNMF(…, offset=True)"
        )


def unit_norm(value: Any, alpha_D: float | str) -> None:
    """Refuse a penalty on a dictionary whose concepts have norm 1."""
    if flag("unit_norm", value) and alpha_D not in ("same", 0):
        raise InvalidInput(
            f"alpha_D={alpha_D} does not go with unit_norm=True, which bounds the dictionary "
            "already; give alpha_D=0, or leave it out"
        )


def l1_of_signed(alpha_D: float, l1_ratio: float, *, signed: bool, mixes: bool = False) -> None:
    """Refuse an l1 penalty on a dictionary of any signs; of mixtures of rows, if it `mixes`."""
    if signed and alpha_D > 0 and l1_ratio > 0:
        alone = "alpha_D=0, with strict_convex=True" if mixes else "unit_norm=True or alpha_D=0"
        raise InvalidInput(
            f"alpha_D={alpha_D!r} with l1_ratio={l1_ratio:g} would be an l1 penalty on a "
            f"dictionary of any signs, which has l2 only; give {alone}, so that the "
            "penalty is on the codes alone, or l1_ratio=0"
        )
