"""What stands in for scikit-learn's NMF: its subclasses, pickles, and what falls back to it."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest

decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is an extra")
from sklearn.base import clone  # noqa: E402

from fastnmf.sklearn import patch_sklearn, stand_ins, unpatch_sklearn  # noqa: E402

OWN = decomposition.NMF, decomposition.MiniBatchNMF, decomposition.non_negative_factorization
X = np.random.default_rng(0).random((30, 8))
KL = {"beta_loss": "kullback-leibler", "random_state": 0, "max_iter": 20, "tol": 0}


@pytest.fixture(autouse=True)
def patched():
    stand_ins._said.clear()
    patch_sklearn()
    yield
    unpatch_sklearn()


def test_other_losses_are_scikit_learns_and_the_reason_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "fastnmf.sklearn.stand_ins")
    model, theirs = (kind(3, solver="mu", **KL) for kind in (decomposition.NMF, OWN[0]))
    assert np.array_equal(model.fit_transform(X), theirs.fit_transform(X))
    assert np.array_equal(model.transform(X), theirs.transform(X))
    assert not hasattr(model, "fit_info_")
    W, *_ = decomposition.non_negative_factorization(X, n_components=3, solver="mu", **KL)
    assert np.array_equal(W, theirs.fit_transform(X))
    assert [record.message for record in caplog.records] == [
        "NMF of scikit-learn is used for beta_loss='kullback-leibler': the loss of fastnmf is "
        "½ ‖X − W H‖², 'frobenius'"
    ]


def test_shuffle_is_scikit_learns():
    options = {"n_components": 3, "shuffle": True, "random_state": 0}
    ours, theirs = decomposition.NMF(**options).fit(X), OWN[0](**options).fit(X)
    assert np.array_equal(ours.components_, theirs.components_)
    W, *_ = decomposition.non_negative_factorization(X, **options)
    assert np.array_equal(W, OWN[2](X, **options)[0])


def test_mini_batches_of_other_losses_are_scikit_learns():
    ours, theirs = (kind(3, batch_size=10, **KL) for kind in (decomposition.MiniBatchNMF, OWN[1]))
    assert np.array_equal(ours.fit_transform(X), theirs.fit_transform(X))
    assert np.array_equal(ours.transform(X), theirs.transform(X))
    for model in (ours, theirs):
        model.partial_fit(X)
    assert np.array_equal(ours.components_, theirs.components_)


def test_option_of_fastnmf_is_not_dropped_where_scikit_learn_computes():
    with pytest.raises(ValueError, match="stop='change' is an option of fastnmf"):
        decomposition.NMF(3, solver="mu", stop="change", **KL).fit(X)
    with pytest.raises(ValueError, match="solver='hals' is an option of fastnmf"):
        decomposition.MiniBatchNMF(3, solver="hals", **KL).fit(X)


def test_stand_ins_are_subclasses_and_models_of_before_count():
    old = OWN[0](2)
    new = decomposition.NMF(2)
    assert isinstance(new, OWN[0])
    assert isinstance(old, decomposition.NMF)
    assert isinstance(decomposition.MiniBatchNMF(2), OWN[1])
    assert not isinstance(OWN[1](2), decomposition.NMF)
    assert decomposition.NMF.stands_in_for is OWN[0]
    assert type(clone(old)) is OWN[0]
    assert repr(new) == "NMF(n_components=2)"
    assert list(new.fit(X).get_feature_names_out()) == ["nmf0", "nmf1"]


def test_pickles_load_patched_or_not():
    model = decomposition.NMF(3, random_state=0).fit(X)
    stored = pickle.dumps(model)
    unpatch_sklearn()
    again = pickle.loads(stored)
    assert np.array_equal(again.transform(X), model.transform(X))
    # scikit-learn's names its class, which is fastnmf's while patched, by 'sklearn.…'
    theirs = OWN[0](3, random_state=0).fit(X)
    stored = pickle.dumps(theirs)
    patch_sklearn()
    again = pickle.loads(stored)
    assert type(again) is decomposition.NMF
    assert again.get_params()["stop"] == "error"
    np.testing.assert_allclose(again.transform(X), theirs.transform(X), atol=0.05)


def test_learning_goes_on_after_a_pickle_of_scikit_learns():
    theirs = OWN[1](3, random_state=0, forget_factor=0.5).partial_fit(X[:20]).partial_fit(X[10:])
    unpatch_sklearn()
    stored = pickle.dumps(theirs)
    patch_sklearn()
    again = pickle.loads(stored).partial_fit(X[20:])
    assert type(again) is decomposition.MiniBatchNMF
    np.testing.assert_allclose(again.components_, theirs.partial_fit(X[20:]).components_)


@pytest.mark.parametrize(
    ("first", "second"), [("frobenius", "kullback-leibler"), ("kullback-leibler", "frobenius")]
)
def test_loss_that_changes_while_learning_is_refused_with_what_helps(first, second):
    """The sums of one loss are of no use for another. scikit-learn goes on with the first loss."""
    model = decomposition.MiniBatchNMF(3, random_state=0, beta_loss=first).partial_fit(X)
    components = model.components_.copy()
    model.set_params(beta_loss=second)
    with pytest.raises(ValueError, match="not the loss with which the components were learned"):
        model.partial_fit(X)
    assert np.array_equal(model.components_, components)
    model.set_params(beta_loss=first).partial_fit(X)


def test_components_of_frobenius_are_not_encoded_with_another_loss():
    model = decomposition.MiniBatchNMF(3, random_state=0, max_iter=3, tol=0).fit(X)
    model.set_params(beta_loss="kullback-leibler")
    with pytest.raises(ValueError, match="set that again, or begin anew"):
        model.transform(X)


def test_sums_before_a_fit_with_another_loss_are_not_used_again():
    model = decomposition.MiniBatchNMF(3, random_state=0, max_iter=3, tol=0).fit(X)
    model.set_params(beta_loss="kullback-leibler").fit(X)
    model.set_params(beta_loss="frobenius")
    with pytest.raises(ValueError, match="not the loss"):
        model.partial_fit(X)
    model.fit(X).partial_fit(X)
    model.set_params(beta_loss="kullback-leibler")
    with pytest.raises(ValueError, match="not the loss"):
        model.partial_fit(X)


def test_pickle_of_scikit_learn_with_another_loss_goes_on_with_that_loss_alone():
    theirs = OWN[1](3, random_state=0, beta_loss="kullback-leibler").partial_fit(X)
    unpatch_sklearn()
    stored = pickle.dumps(theirs)
    patch_sklearn()
    again = pickle.loads(stored)
    with pytest.raises(ValueError, match="not the loss"):
        clone_of(again).set_params(beta_loss="frobenius").partial_fit(X)
    again.partial_fit(X)
    assert np.array_equal(again.components_, theirs.partial_fit(X).components_)


def clone_of(model):
    return pickle.loads(pickle.dumps(model))
