import json

import pytest
import torch
from planted import planted

import fastnmf
from fastnmf import ConvergenceWarning, InvalidInput
from fastnmf.selection.choice import Candidate, recommend


def candidate(K, *held_out):
    return Candidate(K, held_out, 0.1, 1.0, 2.0, 0.5)


def test_smallest_within_one_standard_error_is_recommended():
    rows = [candidate(2, 0.5, 0.6), candidate(3, 0.30, 0.42), candidate(4, 0.31, 0.40)]
    rows += [candidate(5, 0.45, 0.44)]
    K, reason = recommend(rows, 9)
    assert K == 3
    assert "least with K = 4 (0.3550)" in reason
    assert "at most one standard error" in reason


@pytest.mark.parametrize(
    ("held_out", "text"), [([0.5, 0.4, 0.3], "larger"), ([0.3, 0.4, 0.5], "smaller")]
)
def test_a_choice_at_the_end_of_what_was_tried_says_so(held_out, text):
    reason = recommend([candidate(K, x, x) for K, x in enumerate(held_out, 2)], 9)[1]
    assert f"try {text} ones, too" in reason
    # no number is smaller, or larger
    ends = [candidate(K, x, x) for K, x in enumerate(held_out, 1 if text == "smaller" else 2)]
    most = 4 if text == "larger" else 9
    assert "try" not in recommend(ends, most)[1]


@pytest.mark.parametrize("holdout", ["rows", "entries"])
def test_planted_number_is_recommended(holdout):
    A, _ = planted(100, 20, 3, 0.2, seed=1)
    given = {"holdout": holdout, "folds": 2, "seed": 0, "tol": 1e-3}
    found = fastnmf.choose_concepts(A, [4, 2, 3], **given)
    assert found.recommended == 3
    assert [each.nb_concepts for each in found.candidates] == [2, 3, 4]
    errors = [each.relative_error for each in found.candidates]
    assert errors == sorted(errors, reverse=True)
    # what is held out is not explained as well as what is fitted
    assert all(each.mean_held_out > each.relative_error for each in found.candidates)
    assert str(found).splitlines()[2].endswith("←")
    assert json.loads(json.dumps(found.as_dict()))["recommended"] == 3


def test_signed_data_are_compared_by_semi_nmf():
    drawn = torch.Generator().manual_seed(0)
    Z = torch.rand(150, 3, generator=drawn) * (torch.rand(150, 3, generator=drawn) < 0.5)
    A = Z @ torch.randn(3, 20, generator=drawn) + 0.05 * torch.randn(150, 20, generator=drawn)
    options = {"folds": 3, "seed": 0, "model": fastnmf.SemiNMF, "max_iter": 100}
    with pytest.warns(ConvergenceWarning, match="max_iter=100"):
        assert fastnmf.choose_concepts(A, [2, 3, 4], **options).recommended == 3
    with pytest.raises(InvalidInput, match="SemiNMF"):
        fastnmf.choose_concepts(A, [2, 3])


def test_same_seed_gives_the_same_choice_and_sparse_data_the_choice_of_dense():
    import scipy.sparse

    A, _ = planted(90, 20, 3, 0.2, seed=0)
    first = fastnmf.choose_concepts(A, [2, 3], folds=2, seed=5)
    again = fastnmf.choose_concepts(A.numpy(), [2, 3], folds=2, seed=5)
    sparse = fastnmf.choose_concepts(scipy.sparse.coo_array(A), [2, 3], folds=2, seed=5)
    for a, b, c in zip(first.candidates, again.candidates, sparse.candidates, strict=True):
        assert a.held_out == b.held_out
        assert a.held_out == pytest.approx(c.held_out, rel=1e-3)


def test_interrupted_choice_goes_on(tmp_path, monkeypatch):
    A, _ = planted(90, 20, 3, 0.2, seed=0)
    given = {"folds": 2, "checkpoint": tmp_path / "runs.safetensors"}
    whole = fastnmf.choose_concepts(A, [2, 3], folds=2, seed=5)
    fit, fits = fastnmf.NMF.fit, []

    def interrupted(self, A, **options):
        if len(fits) == 3:
            raise KeyboardInterrupt
        fits.append(self.nb_concepts)
        return fit(self, A, **options)

    monkeypatch.setattr(fastnmf.NMF, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastnmf.choose_concepts(A, [2, 3], seed=5, **given)
    fits.clear()
    # the seed is that of the file
    found = fastnmf.choose_concepts(A, [2, 3], resume=True, **given)
    assert fits == [3]
    assert [c.held_out for c in found.candidates] == [c.held_out for c in whole.candidates]
    with pytest.raises(InvalidInput, match="folds=2, this one has 3"):
        fastnmf.choose_concepts(A, [2, 3], folds=3, resume=True, checkpoint=given["checkpoint"])


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"candidates": []}, InvalidInput, "candidates is empty"),
        ({"candidates": 5}, TypeError, "several numbers"),
        ({"candidates": [0, 2]}, InvalidInput, "candidates=0"),
        ({"candidates": [2, 30]}, InvalidInput, "at most 20 concepts can be compared"),
        ({"holdout": "columns"}, InvalidInput, "rows, entries"),
        ({"folds": 1}, InvalidInput, "folds=1"),
        ({"folds": 70}, InvalidInput, "more than the 60 rows"),
        ({"init": (1, 2)}, InvalidInput, "give the name of a start"),
        ({"distributed": True}, InvalidInput, "one process"),
        ({"model": "nmf"}, TypeError, "class of fastnmf"),
        ({"alpha_W": 1}, TypeError, "alpha_Z"),
        ({"resume": True}, InvalidInput, "needs checkpoint="),
    ],
)
def test_what_cannot_be_compared_is_refused(given, error, text):
    A, _ = planted(60, 20, 3, 0.2, seed=0)
    candidates = given.pop("candidates", [2, 3])
    with pytest.raises(error, match=text):
        fastnmf.choose_concepts(A, candidates, **given)


def test_numbers_may_be_a_tensor():
    A, _ = planted(30, 12, 2, 0.2, seed=0)
    found = fastnmf.choose_concepts(A, torch.tensor([2]), folds=2, seed=0, max_iter=2, tol=0)
    assert found.recommended == 2


def test_entries_of_sparse_data_are_refused():
    import scipy.sparse

    A = scipy.sparse.random(50, 20, 0.2, random_state=0)
    with pytest.raises(InvalidInput, match="needs dense data"):
        fastnmf.choose_concepts(A, [2, 3], holdout="entries")
