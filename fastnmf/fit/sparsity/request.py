"""Options that ask for a number of active concepts: what they go with, and what they become."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import InvalidInput
from ...solvers.base import Solver

if TYPE_CHECKING:
    from ..options import Options


def check_target(options: Options, solver: Solver) -> None:
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


def without_target(options: Options) -> Options:
    """The options of codes with a number of concepts, and no penalty, in place of target_l0."""
    if options.target_l0 is None:
        return options
    return replace(options, target_l0=None, alpha_D="same", l1_ratio=0.0, unit_norm=True)
