"""Checks of arguments: what passes, and the message for the rest."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from fastnmf import InvalidInput, checks


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (lambda v: checks.whole("k", v, at_least=1), np.int64(3), 3),
        (lambda v: checks.whole("k", v, at_least=0, optional=True), None, None),
        (checks.tolerance, Fraction(1, 4), 0.25),
        (checks.tolerance, np.float32(0.5), 0.5),
        (checks.tolerance, 0, 0.0),
        (lambda v: checks.file("f", v), Path("x"), Path("x")),
        (lambda v: checks.seconds("s", v), 0, 0.0),
        (lambda v: checks.half_life(v), math.inf, math.inf),
        (lambda v: checks.half_life(v), None, None),
        (lambda v: checks.penalty("p", v), 0, 0.0),
        (lambda v: checks.penalty("p", v, most=1.0), 1, 1.0),
        (lambda v: checks.penalty("p", v, other="same"), "same", "same"),
        (lambda v: checks.one_of("o", v, ("a", "b")), "b", "b"),
        (lambda v: checks.automatic("a", v), "auto", "auto"),
        (lambda v: checks.time_limit("t", v), None, math.inf),
        (lambda v: checks.time_limit("t", v), 2, 2.0),
        (lambda v: checks.function("f", v), print, print),
        (checks.device, "cuda:1", "cuda:1"),
    ],
)
def test_value_passes_as_what_is_used(check, value, expected):
    used = check(value)
    assert used == expected
    assert type(used) is type(expected)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (lambda v: checks.whole("k", v, at_least=1), 0, InvalidInput, "k=0 must be at least 1"),
        (lambda v: checks.whole("k", v, at_least=1), True, TypeError, "k=True must be a whole"),
        (lambda v: checks.whole("k", v, at_least=1), None, TypeError, "must be a whole number$"),
        (
            lambda v: checks.whole("k", v, at_least=1, at_most=checks.MOST),
            10**30,
            InvalidInput,
            "k=10{30} must be at most 9,223,372,036,854,775,807",
        ),
        (lambda v: checks.whole("k", -(10**v), at_least=1), 5000, InvalidInput, "about -1e5000"),
        (checks.tolerance, 10**400, InvalidInput, "tol=about 1e400 is beyond the largest float"),
        (checks.tolerance, -1, InvalidInput, "tol=-1 must be at least 0"),
        (checks.tolerance, -(10**400), InvalidInput, "tol=about -1e400 is beyond the largest"),
        (lambda v: checks.seconds("s", v), 10**400, InvalidInput, "s=about 1e400 is beyond"),
        (checks.half_life, 10**400, InvalidInput, "half_life=about 1e400 is beyond"),
        (lambda v: checks.penalty("p", v), 10**400, InvalidInput, "p=about 1e400 is beyond"),
        (lambda v: checks.penalty("p", 10**v, most=1.0), 5000, InvalidInput, "must be from 0 to 1"),
        (lambda v: checks.time_limit("t", v), 10**400, InvalidInput, "t=about 1e400 is beyond"),
        (checks.tolerance, -1, InvalidInput, "tol=-1 must be at least 0; 0 never stops early"),
        (checks.tolerance, math.nan, InvalidInput, "tol is NaN"),
        (checks.tolerance, True, TypeError, "tol=True must be a number"),
        (lambda v: checks.file("f", v), 3, TypeError, "f=3 must be the name of a file or None"),
        (lambda v: checks.seconds("s", v), -1, InvalidInput, "s=-1 must be at least 0"),
        (lambda v: checks.seconds("s", v), math.nan, InvalidInput, "s=nan must be at least 0"),
        (checks.half_life, 0, InvalidInput, "half_life=0 must be above 0"),
        (checks.half_life, "1", TypeError, "must be a number of rows or None"),
        (lambda v: checks.penalty("p", v), math.inf, InvalidInput, "p=inf must be finite"),
        (lambda v: checks.penalty("p", v), math.nan, InvalidInput, "p=nan must be finite"),
        (lambda v: checks.penalty("p", v, most=1.0), 1.5, InvalidInput, "must be from 0 to 1$"),
        (lambda v: checks.penalty("p", v, other="same"), "sam", TypeError, "number or 'same'"),
        (lambda v: checks.one_of("o", v, ("abc",)), "abd", InvalidInput, "did you mean 'abc'"),
        (lambda v: checks.one_of("o", v, ("abc",)), None, TypeError, "one of the names: abc"),
        (lambda v: checks.flag("f", v), 1, TypeError, "f=1 must be True or False"),
        (lambda v: checks.automatic("a", v), "yes", InvalidInput, "'auto', True or False"),
        (lambda v: checks.time_limit("t", v), 0, InvalidInput, "t=0 must be more than 0"),
        (lambda v: checks.time_limit("t", v), math.nan, InvalidInput, "must be more than 0"),
        (lambda v: checks.function("f", v), 3, TypeError, "f=3 must be a function or None"),
        (checks.device, "magic", InvalidInput, "device='magic' is no device of torch"),
    ],
)
def test_value_is_refused_with_what_is_allowed(check, value, error, message):
    with pytest.raises(error, match=message):
        check(value)


def test_gradient_is_refused_where_it_would_be_recorded():
    checks.no_gradient("A", False)
    with torch.no_grad():
        checks.no_gradient("A", True)
    with pytest.raises(InvalidInput, match="A requires a gradient"):
        checks.no_gradient("A", True)
