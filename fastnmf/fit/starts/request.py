"""Options of the start and of several: what they go with, and what each start begins with."""

from __future__ import annotations

from typing import Any, Protocol

from ... import checks
from ...errors import InvalidInput
from ...solvers.constraints import Constraint

# each has codes of its own
MOST_STARTS = 10_000
# starts that are the same for every seed but for rounding
_SAME = ("nndsvda", "nndsvd", "svd")


class Requested(Protocol):
    """The options that n_init has to do with."""

    @property
    def n_init(self) -> int: ...
    @property
    def init(self) -> str | tuple[Any, Any]: ...
    @property
    def target_l0(self) -> float | None: ...
    @property
    def distributed(self) -> bool: ...


def checked_init(init: Any, constraint: Constraint) -> str | tuple[Any, Any]:
    """init, which must be the name of a start or a pair (Z0, D0). Whether a pair suits A is checked
    by fit."""
    # not with the class of a model, of which it is a half
    from ...init.start import starts_of

    starts = starts_of(constraint)
    if isinstance(init, tuple | list) and len(init) == 2:
        return tuple(init)
    if isinstance(init, str):
        return checks.one_of("init", init, starts)
    raise TypeError(
        f"init must be one of {', '.join(starts)} or a pair (Z0, D0), not {type(init).__name__}"
    )


def check_starts(options: Requested) -> None:
    """Raise InvalidInput for options that do not go with several starts, where they are asked
    for."""
    if options.n_init == 1:
        return
    from ...init.start import SAMPLE

    given = f"n_init={options.n_init}"
    if not isinstance(options.init, str):
        raise InvalidInput(
            f"{given} asks for several starts, and init=(Z0, D0) is one; give the name of a start, "
            "such as init='auto', or n_init=1"
        )
    if options.init in _SAME:
        raise InvalidInput(
            f"{given} asks for starts that differ, and init={options.init!r} is the same for every "
            "seed; give init='auto', which takes it once and random starts beside it, another "
            "init, or n_init=1"
        )
    if options.target_l0 is not None:
        raise InvalidInput(
            f"{given} compares the objectives of short runs, and with target_l0 each run has a "
            "penalty of its own; give n_init=1, or alpha_Z in place of target_l0"
        )
    if options.distributed and options.init != SAMPLE:
        raise InvalidInput(
            f"{given} needs all rows in the memory of one process; give n_init=1, init='sample', "
            "or fit without distributed"
        )


def init_of(begin: str | tuple[Any, Any], number: int, constraint: Constraint) -> Any:
    """What start `number` begins with, of options that begin with `begin`: 'auto' for the first,
    and random starts after it where 'auto' is the same for every seed."""
    differs = number == 0 or begin != "auto" or constraint.of_rows
    return begin if differs else "random"


def refuse_online(n_init: int, init: str) -> None:
    """Raise InvalidInput for online learning from several starts, or from a fit of a sample."""
    from ...init.start import SAMPLE

    if init == SAMPLE:
        raise InvalidInput(
            f"init={init!r} draws rows from all rows, and partial_fit sees one batch at a time; "
            "use fit, or another init"
        )
    if n_init > 1:
        raise InvalidInput(
            f"partial_fit has one start, its rows are seen once, and n_init={n_init}; use fit, or "
            "n_init=1"
        )
