"""Options that ask for a number of active concepts: what they go with, and what they become."""

from __future__ import annotations

from typing import Protocol

from ...errors import InvalidInput
from ...solvers.base import Solver
from ...solvers.penalties import Penalties


class Requested(Protocol):
    """The options that target_l0 and top_k have to do with."""

    @property
    def target_l0(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def accelerate(self) -> bool | str: ...
    @property
    def alpha_Z(self) -> float: ...
    @property
    def alpha_D(self) -> float | str: ...
    @property
    def l1_ratio(self) -> float: ...


def check_requested(options: Requested, solver: Solver) -> None:
    """Raise InvalidInput for options that do not go with target_l0, or with top_k, where it is
    given."""
    if options.top_k is not None:
        _check_top_k(options)
    _check_target(options, solver)


def _check_top_k(options: Requested) -> None:
    given = f"top_k={options.top_k}"
    if options.target_l0 is not None:
        raise InvalidInput(
            f"{given} is the most active concepts of a row, and target_l0={options.target_l0:g} "
            "their mean, which a penalty gives; leave one of them out"
        )
    if options.alpha_Z:
        raise InvalidInput(
            f"{given} limits the active concepts of a row without a penalty, and alpha_Z="
            f"{options.alpha_Z:g} is one; leave one of them out"
        )
    if options.accelerate is True:
        raise InvalidInput(
            f"{given} does not go with accelerate=True: codes that are extrapolated have more "
            "active concepts; give accelerate='auto' or False"
        )


def _check_target(options: Requested, solver: Solver) -> None:
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
