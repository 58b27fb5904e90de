import pytest
import torch
from planted import planted

import fastnmf
from fastnmf.selection.holdout import HOLDOUTS, Fold
from fastnmf.selection.models import Fits
from fastnmf.selection.subsets import Whole


def whole(A):
    return Whole.of(A, fastnmf.NMF(1).expected())


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_what_is_held_out_does_not_change_the_dictionary(holdout):
    """The fit of a fold is the same whatever the held-out rows or entries are."""
    A, _ = planted(60, 12, 3, 0.1, seed=0)
    fits = Fits.of(fastnmf.NMF, {"max_iter": 20})
    drawn = torch.Generator().manual_seed(3)
    if holdout == "rows":
        held = ((torch.randperm(60, generator=drawn) % 3) == 1)[:, None].expand(60, 12)
    else:
        held = torch.randint(3, A.shape, generator=drawn) == 1
    changed = torch.where(held, A + 5, A)
    before, after = (
        HOLDOUTS[holdout](whole(X), fits, 3, Fold(1, 3, seed=3), seed=0) for X in (A, changed)
    )
    assert torch.equal(before.D, after.D)
    assert after.numbers["held_out"] != before.numbers["held_out"]


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_exact_data_are_predicted(holdout):
    A, _ = planted(60, 12, 2, 0.0, seed=0)
    fits = Fits.of(fastnmf.NMF, {"max_iter": 100})
    found = HOLDOUTS[holdout](whole(A), fits, 2, Fold(0, 4, seed=0), seed=0)
    # expectation maximization stops at a relative change of 1e-3
    assert found.numbers["held_out"] < (1e-3 if holdout == "rows" else 0.05)


def test_zeros_that_are_held_out_have_no_error():
    A = torch.zeros(20, 6)
    found = HOLDOUTS["rows"](whole(A), Fits.of(fastnmf.NMF, {}), 2, Fold(0, 2, seed=0), seed=0)
    assert found.numbers["held_out"] == 0


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_what_is_predicted_includes_the_offset(holdout):
    A, _ = planted(60, 12, 2, 0.0, seed=0)
    kind = fastnmf.SemiNMF
    fits = Fits.of(kind, {"max_iter": 200, "offset": True, "tol": 1e-6})
    found = HOLDOUTS[holdout](
        Whole.of(A + 100, kind(1).expected()), fits, 2, Fold(0, 4, seed=0), seed=0
    )
    spread = float((A - A.mean(0)).norm() / (A + 100).norm())
    assert found.numbers["held_out"] < spread / 2


def test_several_starts_are_those_of_the_first_estimate():
    A, _ = planted(30, 12, 2, 0.1, seed=0)
    fits = Fits.of(fastnmf.NMF, {"max_iter": 20, "n_init": 2})
    assert HOLDOUTS["entries"](whole(A), fits, 2, Fold(0, 4, seed=0), 0).numbers["held_out"] < 1


def test_hold_outs_that_cannot_be_predicted_are_refused():
    with pytest.raises(fastnmf.InvalidInput, match="A has one feature"):
        fastnmf.choose_concepts(torch.rand(9, 1), [1])
    with pytest.raises(fastnmf.InvalidInput, match="ConvexNMF has mixtures of rows"):
        fastnmf.choose_concepts(torch.rand(9, 4), [1], model=fastnmf.ConvexNMF, holdout="entries")
