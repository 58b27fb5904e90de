"""A whole fit with the defaults of each library, start included: seconds and relative error."""

from __future__ import annotations

import itertools
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from support.measure import Timing, called, imported
from support.workloads import relative_error

import fastnmf

# iterations of a first fit, which loads everything and is checked
FIRST = 3


def fit_fastnmf(A, K: int, **options):
    model = fastnmf.NMF(K, seed=0)
    with torch.no_grad():
        Z, D = model.fit(A, **options)
    assert model.fit_info_.relative_error == pytest.approx(relative_error(A, Z, D), rel=1e-4)
    backend = model.fit_info_.backend
    return Z, D, {"iterations": model.fit_info_.iterations, "contender": f"fastnmf ({backend})"}


def fit_overcomplete(A, K: int, **options):
    """It does not report its iterations: the calls of its step are counted."""
    nmf = imported("overcomplete.optimization.nmf", "overcomplete")
    torch.manual_seed(0)
    np.random.seed(0)
    step, calls = nmf._one_step_hals, itertools.count()
    with mock.patch.object(nmf, "_one_step_hals", lambda *given: (next(calls), step(*given))[1]):
        Z, D = nmf.NMF(K).fit(A, **options)
    return Z, D, {"iterations": next(calls)}


def fit_sklearn(A, K: int, **options):
    model = imported("sklearn.decomposition", "scikit-learn").NMF(K, random_state=0, **options)
    with warnings.catch_warnings():
        # the iterations show that max_iter was reached
        warnings.simplefilter("ignore")
        Z = model.fit_transform(A.numpy())
    return torch.from_numpy(Z), torch.from_numpy(model.components_), {"iterations": model.n_iter_}


FITS = {"fastnmf": fit_fastnmf, "Overcomplete": fit_overcomplete, "scikit-learn": fit_sklearn}


@pytest.mark.parametrize("library", FITS)
@pytest.mark.parametrize(
    "workload", ["digits", pytest.param("concepts_50", marks=pytest.mark.slow)]
)
def bench_fit(bench, library):
    fit = FITS[library]
    A, K = bench.problem.A, bench.problem.workload.K
    fit(A, K, max_iter=FIRST)
    timing = Timing(lambda: (A, K), fit, {"kind": "fit", "contender": library, "solver": "hals"})
    first_call = called(timing)[1:] if bench.problem.workload.name == "digits" else None
    Z, D, reported = bench.record(timing, first_call)
    bench.note(relative_error=relative_error(A, Z, D), **reported)
