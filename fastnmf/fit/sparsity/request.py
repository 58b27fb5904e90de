"""Options that ask for a number of active concepts: what they go with, and what they become."""

from __future__ import annotations

from typing import Protocol

from ...errors import InvalidInput
from ...solvers.base import Solver
from ...solvers.penalties import Penalties


class Requested(Protocol):
    """The options that target_l0 has to do with."""

    @property
    def target_l0(self) -> float | None: ...
    @property
    def alpha_Z(self) -> float: ...
    @property
    def alpha_D(self) -> float | str: ...
    @property
    def l1_ratio(self) -> float: ...


def check_target(options: Requested, solver: Solver) -> None:
    """Raise InvalidInput for options that do not go with target_l0, where it is given."""
    if options.target_l0 is None:
        return
    given = f"target_l0={options.target_l0:g}"
    if options.alpha_Z or options.alpha_D not in ("same", 0):
        raise InvalidInput(
            f"{given} finds the penalty of the codes, and concepts have norm 1; leave alpha_Z and "
            f"alpha_D out (they are {options.alpha_Z!r} and {options.alpha_D!r})"
        )
    if options.l1_ratio not in (0, 1):
        raise InvalidInput(
            f"{given} takes an l1 penalty, and l1_ratio={options.l1_ratio:g} would make it one in "
            "part; leave l1_ratio out"
        )
    if solver.keeps_zeros:
        raise InvalidInput(
            f"{given} needs codes that are zero, and those of solver={solver.name!r} never become "
            "zero; give solver='hals', 'pgd' or 'anls'"
        )


def refuse_online(target_l0: float | None, penalties: Penalties) -> None:
    """Raise InvalidInput for online learning with a target, or with penalties."""
    if target_l0 is not None:
        raise InvalidInput(
            "partial_fit has no penalty that could follow target_l0: a batch has one half-step of "
            "the dictionary, and its rows are gone when the penalty is known; use fit, or "
            "target_l0=None"
        )
    if penalties:
        raise InvalidInput(
            "partial_fit has no penalties, whose weight depends on the number of rows, and no "
            "unit_norm; use fit, or alpha_Z=0, alpha_D=0 and unit_norm=False"
        )
