"""Constraints on the entries of a factor. Codes are always non-negative; which constraint a
dictionary has is what distinguishes the models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constraint:
    """What the entries of a factor may be.

    name: as messages call it. signed: whether entries may be negative.
    """

    name: str
    signed: bool


NON_NEGATIVE = Constraint("non-negative", signed=False)
# a dictionary of any signs: Semi-NMF. Source: Ding, Li & Jordan (2010)
FREE = Constraint("free", signed=True)
