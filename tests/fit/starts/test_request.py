"""Options that do not go with several starts are refused, with what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import rows_of_five_concepts

from fastnmf import NMF, ConvexNMF, InvalidInput, SemiNMF
from fastnmf.fit.starts.request import init_of
from fastnmf.solvers.constraints import NON_NEGATIVE


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (NMF, {"init": (torch.ones(4, 2), torch.ones(2, 3))}, "is one; give the name"),
        (NMF, {"init": "nndsvda"}, "same for every seed"),
        (SemiNMF, {"init": "svd"}, "same for every seed"),
        (NMF, {"target_l0": 1.5}, "a penalty of its own"),
        (NMF, {"distributed": True}, "one process"),
        (ConvexNMF, {"n_init": 0}, "at least 1"),
        (NMF, {"n_init": 10_001}, "at most 10,000"),
    ],
)
def test_options_that_do_not_go_with_several_starts(kind, options, says):
    with pytest.raises(InvalidInput, match=says):
        kind(2, **{"n_init": 3, **options})


def test_wrong_type_is_refused():
    with pytest.raises(TypeError, match=r"n_init=2\.5 must be a whole number"):
        NMF(2, n_init=2.5)


def test_online_learning_and_data_read_in_passes_are_refused(tmp_path):
    A = rows_of_five_concepts()
    with pytest.raises(InvalidInput, match="its rows are seen once, and n_init=2"):
        NMF(5, n_init=2).partial_fit(A)
    np.save(tmp_path / "A.npy", A.numpy())
    for given in ({"A": A.split(10), "codes": None}, {"A": A, "codes": None}):
        with pytest.raises(InvalidInput, match="n_init=2 compares fits of rows in memory"):
            NMF(5, n_init=2).fit(**given)


def test_first_start_of_auto_is_its_own():
    found = [init_of("auto", number, NON_NEGATIVE) for number in range(3)]
    assert found == ["auto", "random", "random"]
    assert init_of("rows", 2, NON_NEGATIVE) == "rows"
