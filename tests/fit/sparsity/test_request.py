"""Options that ask for a number of active concepts: what becomes of them in an encoding."""

from __future__ import annotations

from fastnmf.fit.options import Options
from fastnmf.fit.sparsity.request import without_target


def test_a_number_of_concepts_takes_the_place_of_the_target():
    options = without_target(Options(8, target_l0=3))
    assert options.target_l0 is None
    assert options.penalties.alpha_Z == 0
    plain = Options(8, alpha_Z=0.1)
    assert without_target(plain) is plain
