"""scipy's own tests of scipy.optimize.nnls, as they are installed, with fastnmf.nnls in its place.

What of them does not hold for fastnmf, and why, is in DIFFERS; docs/solvers.md shows the table.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import fastnmf
from fastnmf.backends.nnls.result import CAPPED

pytest.importorskip("scipy.optimize", reason="scipy is not installed")
module = pytest.importorskip(
    "scipy.optimize.tests.test_nnls", reason="scipy is installed without its tests"
)

# test → what is different in fastnmf
DIFFERS = {
    "test_maxiter": "an iteration lets up to 16 concepts enter, and here one is enough",
    "test_nnls_gh21021_ex1": "has many solutions; ours is another one, with the same residual",
    "test_gh_22791_32bit": "has many solutions; ours is another one, with the same residual",
    "test_2D_singleton_RHS_input": "wants a residual of 0 with all bits; ours is 3e-15",
    "test_2D_not_singleton_RHS_input_2": "refuses several right-hand sides; we solve them",
    "test_atol_deprecation_warning": "there is no `atol` here, not even a deprecated one",
}
SOLVERS = Path(__file__).parents[2] / "docs" / "solvers.md"


def nnls(A, b, *, maxiter=None):
    """fastnmf.nnls, called and answering as scipy.optimize.nnls."""
    D, rows = np.asarray(A, np.float64).T, np.atleast_2d(np.asarray(b, np.float64).T)
    Z, info = fastnmf.nnls(rows, D, max_iter=maxiter, return_info=True)
    if (info.status == CAPPED).any():
        raise RuntimeError("Maximum number of iterations reached.")
    x = Z.numpy().squeeze(0)
    return x, float(np.linalg.norm(x @ D - rows))


def cases():
    for name, cls in inspect.getmembers(module, inspect.isclass):
        if not name.startswith("Test"):
            continue
        for method, _ in inspect.getmembers(cls, inspect.isfunction):
            if method.startswith("test"):
                why = DIFFERS.get(method)
                marks = [pytest.mark.xfail(reason=why, strict=True)] if why else []
                yield pytest.param(cls, method, id=method, marks=marks)


@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
@pytest.mark.parametrize(("cls", "method"), list(cases()))
def test_of_scipy(cls, method, monkeypatch):
    monkeypatch.setattr(module, "nnls", nnls)
    instance = cls()
    instance.setup_method()
    getattr(instance, method)()


@pytest.mark.parametrize("method", [method for method, why in DIFFERS.items() if "many" in why])
def test_where_solutions_are_many_ours_is_as_good(method, monkeypatch):
    theirs, residuals = module.nnls, []

    def both(A, b):
        x, expected = theirs(A, b)
        residuals.append((nnls(A, b)[1], expected, np.linalg.norm(b)))
        return x, expected

    monkeypatch.setattr(module, "nnls", both)
    instance = module.TestNNLS()
    instance.setup_method()
    getattr(instance, method)()
    [(residual, expected, size)] = residuals
    assert residual <= expected + 1e-14 * size


def test_all_that_differs_is_a_test_of_scipy_and_documented():
    names = {case.id for case in cases()}
    assert set(DIFFERS) <= names
    documented = SOLVERS.read_text()
    for method, why in DIFFERS.items():
        assert f"| `{method}` | {why} |" in documented
