"""All solvers by name. To add one: a module with a SOLVER in this package, and its name here."""

from __future__ import annotations

from . import anls, hals, least_squares, mu, pgd
from .base import Solver
from .constraints import CONVEX, FREE, MIXED, NON_NEGATIVE, Constraint
from .supports import mixture

_ALL = (hals.SOLVER, mu.SOLVER, mu.SIGNED, pgd.SOLVER, anls.SOLVER)


def _of(constraint: Constraint) -> dict[str, Solver]:
    return {solver.name: solver for solver in _ALL if constraint in solver.constraints}


# those of non-negative dictionaries
SOLVERS: dict[str, Solver] = _of(NON_NEGATIVE)
# codes of mixtures are those of any dictionary
_BY_CONSTRAINT = {NON_NEGATIVE: SOLVERS, **dict.fromkeys((FREE, MIXED, CONVEX), _of(FREE))}


def solvers_of(constraint: Constraint) -> dict[str, Solver]:
    """The solvers for dictionaries with this constraint, by name."""
    return _BY_CONSTRAINT[constraint]


def learner(solver: Solver, K: int, constraint: Constraint = NON_NEGATIVE) -> Solver:
    """The solver whose half-step updates a dictionary of K concepts: itself, or least squares where
    it leaves a free dictionary to them, up to learns_up_to; that of mixtures of rows. Of a solver
    of codes only: the one that it learns by."""
    if constraint.of_rows:
        return mixture.SOLVER
    solver = solver.learns_by or solver
    by = least_squares.SOLVER if constraint.signed and solver.solves_free else solver
    return by if by.learns_up_to >= K else hals.SOLVER


# scikit-learn's names of solvers
OTHER_NAMES = {"cd": "hals"}
