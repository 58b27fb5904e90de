"""Constraints on the entries of a factor. Codes are always non-negative; which constraint a
dictionary has is what distinguishes the models."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Constraint:
    """What the entries of a factor may be.

    name: as messages call it. signed: whether entries may be negative. model: the model whose
    dictionaries have it. of_rows: whether each concept is a mixture of rows of the data, D = W A
    with W ≥ 0. sums_to_one: whether its weights sum to 1. operations: of a backend, that its
    half-steps need beside those of the solver.
    """

    name: str
    signed: bool
    model: str
    of_rows: bool = False
    sums_to_one: bool = False
    operations: tuple[str, ...] = ()


NON_NEGATIVE = Constraint("non-negative", signed=False, model="NMF")
# a dictionary of any signs: Semi-NMF. Source: Ding, Li & Jordan (2010)
FREE = Constraint("free", signed=True, model="SemiNMF")
# mixtures of rows: Convex-NMF. Source: Ding, Li & Jordan (2010)
MIXED = Constraint(
    "mixtures of rows", signed=True, model="ConvexNMF", of_rows=True, operations=("nnls_",)
)
CONVEX = replace(MIXED, name="convex mixtures of rows", sums_to_one=True)
