"""All solvers by name. To add one: a module with a SOLVER in this package, and its name here."""

from __future__ import annotations

from . import anls, hals, mu, pgd
from .base import Solver

SOLVERS: dict[str, Solver] = {module.SOLVER.name: module.SOLVER for module in (hals, mu, pgd, anls)}


def learner(solver: Solver, K: int) -> Solver:
    """The solver whose half-step updates a dictionary of K concepts: itself up to learns_up_to."""
    return solver if solver.learns_up_to >= K else hals.SOLVER


# scikit-learn's names of solvers
OTHER_NAMES = {"cd": "hals"}
