"""Powers of two for data and dictionaries out of the range of squares, and none elsewhere."""

from __future__ import annotations

import pytest
import torch
from fits import method

from fastnmf.data.dataset import Data
from fastnmf.exact.powers import Powers
from fastnmf.solvers.penalties import Penalties


@pytest.mark.parametrize(("of_A", "of_D", "scaled"), [(1, 1, False), (1e30, 1e-20, True)])
def test_codes_of_scaled_data_are_those_of_the_data(of_A, of_D, scaled):
    generator = torch.Generator().manual_seed(0)
    A, D = (torch.rand(3, 4, generator=generator) * size for size in (of_A, of_D))
    powers = Powers.of(Data(A), D, method("hals"))
    assert (powers != Powers()) is scaled
    assert (powers.of_data(A) is A) is not scaled
    assert 0.5 <= float(powers.of_data(A).max()) < 1 or not scaled
    Z = torch.rand(3, 3, generator=generator)
    if scaled:
        with pytest.raises(ArithmeticError, match="codes are too large for float32"):
            powers.of_codes(Z)
    start = powers.of_start(Z)
    assert torch.equal(start, Z) is not scaled


def test_penalties_follow_the_codes():
    penalties = Penalties(0.5, 0.0, 0.25)
    powers = Powers(A=50, D=3)
    scaled = powers.penalised(method("hals", penalties=penalties)).penalties
    # l1 counts against A D, l2 against D²
    assert scaled.alpha_Z * scaled.l1_ratio == pytest.approx(0.125 * 2.0**-53)
    assert scaled.alpha_Z * (1 - scaled.l1_ratio) == pytest.approx(0.375 * 2.0**-6)
