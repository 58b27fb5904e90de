"""patch_sklearn: which names are bound, and what is computed by whom."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is an extra")
import fastnmf.sklearn  # noqa: E402
from fastnmf.sklearn import is_patched, patch_sklearn, unpatch_sklearn  # noqa: E402

NAMES = ("NMF", "MiniBatchNMF", "non_negative_factorization")


@pytest.fixture(autouse=True)
def unpatched():
    assert not is_patched()
    yield
    unpatch_sklearn()


@pytest.fixture
def user(monkeypatch):
    """A module that bound the names before the patch, one of them under another."""
    module = types.ModuleType("user_of_sklearn")
    module.NMF, module.factorize = decomposition.NMF, decomposition.non_negative_factorization
    monkeypatch.setitem(sys.modules, "user_of_sklearn", module)
    return module


def test_all_names_are_bound_and_given_back(user):
    own = [getattr(decomposition, name) for name in NAMES]
    names = patch_sklearn()
    assert {f"sklearn.decomposition.{name}" for name in NAMES} <= set(names)
    assert {f"sklearn.decomposition._nmf.{name}" for name in NAMES} <= set(names)
    assert {"user_of_sklearn.NMF", "user_of_sklearn.factorize"} <= set(names)
    assert not any(name.startswith("fastnmf.") for name in names)
    assert user.NMF is decomposition.NMF is not own[0]
    assert is_patched()
    user.late = own[1]
    assert set(patch_sklearn()) == {*names, "user_of_sklearn.late"}
    assert set(unpatch_sklearn()) == {*names, "user_of_sklearn.late"}
    assert [getattr(decomposition, name) for name in NAMES] == own
    assert user.factorize is own[2]
    assert unpatch_sklearn() == []


def test_own_estimators_stay_fastnmfs():
    before = [getattr(fastnmf.sklearn, name) for name in NAMES]
    patch_sklearn()
    unpatch_sklearn()
    assert [getattr(fastnmf.sklearn, name) for name in NAMES] == before


def test_patched_names_compute_with_fastnmf(user):
    patch_sklearn()
    X = np.random.default_rng(0).random((30, 8))
    model = user.NMF(3, random_state=0).fit(X)
    assert model.fit_info_.nb_concepts == 3
    W, H, _ = user.factorize(X, n_components=3, random_state=0)
    assert np.array_equal(H, model.components_)
    assert W.shape == (30, 3)


def test_without_scikit_learn_the_import_says_what_to_install(fresh):
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "try:\n    import fastnmf.sklearn\nexcept ImportError as error:\n    print(error)"
    )
    ran = fresh(code)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "scikit-learn 1.6 or later: pip install 'fastnmf[sklearn]'" in ran.stdout
