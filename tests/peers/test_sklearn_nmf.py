"""scikit-learn's own tests of its NMF, as they are installed, with fastnmf's in its place by
`patch_sklearn`. What of them does not hold for fastnmf, and why, is in DIFFERS."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("sklearn", "1.6", reason="scikit-learn 1.6 is not installed")
from fastnmf.sklearn import patch_sklearn, unpatch_sklearn

pytestmark = pytest.mark.filterwarnings("ignore::fastnmf.FastnmfWarning")


# whether these pass depends on rounding
BY_ROUNDING = tuple(
    f"test_nmf_float32_float64_consistency[{name}]"
    for name in ("NMF-solver0", "MiniBatchNMF-solver2")
)
# test → what is different in fastnmf
DIFFERS = {
    "test_minibatch_nmf_partial_fit": (
        "its batches X[j : j + 10] overlap, unlike those of fit; scikit-learn writes components "
        "of both models into the H that is given, so that they are one array"
    ),
    "test_nmf_float32_float64_consistency[NMF-solver0]": (
        "at K = d accelerated iterations enlarge rounding: codes differ by 2e-5 to 8e-5, which the "
        "processor and the backend decide; without acceleration by 4e-6"
    ),
    "test_nmf_float32_float64_consistency[MiniBatchNMF-solver2]": (
        "200 steps at K = d enlarge rounding: codes of 20 such problems differ by 1e-5 or more in "
        "3, scikit-learn's own in 9; which ones, the processor decides"
    ),
    # of scikit-learn 1.6
    **dict.fromkeys(
        (f"test_NMF_inverse_transform_Xt_deprecation[{name}]" for name in ("NMF", "MiniBatchNMF")),
        "there is no argument `Xt` here, not even a deprecated one",
    ),
}


def _imported():
    """A copy of the module of tests, of which parameters are classes, imported while patched."""
    name = "sklearn.decomposition.tests.test_nmf"
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        pytest.skip("scikit-learn is installed without its tests", allow_module_level=True)
    module = importlib.util.module_from_spec(spec)
    patch_sklearn()
    try:
        spec.loader.exec_module(module)
    finally:
        unpatch_sklearn()
    return module


_module = _imported()
# pytest collects them with their parameters
globals().update({name: test for name, test in vars(_module).items() if name.startswith("test_")})


@pytest.fixture(autouse=True, scope="module")
def patched():
    patch_sklearn()
    yield
    unpatch_sklearn()
