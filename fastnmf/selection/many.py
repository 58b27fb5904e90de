"""fit_many: fits of many matrices by one call, a fit a thread on the CPU."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .. import checks
from ..errors import ConvergenceWarning, FitsFailed, InvalidInput, silenced
from ..isolation import isolated
from ..models.factorization import Factorization
from ..models.nmf import NMF
from .models import Fits, bar, met_rule, warn_of_limits
from .runner import at_a_time, run_each

# what a fit that cannot be made raises
_FAILURES = (ValueError, TypeError, ArithmeticError, OSError, RuntimeError)
_RETURN = "return"


@isolated
def fit_many(
    matrices: Iterable[Any],
    nb_concepts: int,
    *,
    model: type[Factorization] = NMF,
    seed: int | None = None,
    errors: str = "raise",
    verbose: bool = False,
    **options: Any,
) -> list[Any]:
    """Fit a model to each of many matrices, such as one for each class.

    Parameters
    ----------
    matrices : iterable of (n, d)
        What `NMF.fit` takes, of any sizes.
    nb_concepts : int
        K of each model.
    model : class, default NMF
        NMF, SemiNMF or ConvexNMF.
    seed : int, optional
        The seed of each fit, at least 0; by default torch's global generator draws one for each.
    errors : {'raise', 'return'}, default 'raise'
        What becomes of matrices that cannot be fitted, after all others are: 'raise' raises
        `FitsFailed`, which has the models of the others; 'return' puts the exception in the place
        of the model.
    verbose : bool, default False
        Show a progress bar.
    **options
        Those of the model, but for ``init=(Z0, D0)`` and `distributed`.

    Returns
    -------
    list
        A fitted model for each matrix, in their order.

    Raises
    ------
    FitsFailed
        If matrices cannot be fitted. Its message has their indices.
    InvalidInput
        For options that cannot be used. No fit is then made.

    Warns
    -----
    ConvergenceWarning
        Once, with the number of fits that ended at max_iter.

    Notes
    -----
    On a CPU up to as many fits run at a time as torch has threads, each with one thread. They have
    the bits of single fits with one thread. On other devices they run one after the other.

    Examples
    --------
    >>> import torch, fastnmf
    >>> classes = [torch.rand(30, 8), torch.rand(50, 8)]
    >>> models = fastnmf.fit_many(classes, 3, seed=0)
    >>> [model.D.shape for model in models]
    [torch.Size([3, 8]), torch.Size([3, 8])]
    """
    checks.whole("nb_concepts", nb_concepts, at_least=1, at_most=checks.MOST)
    checks.whole("seed", seed, at_least=0, optional=True)
    checks.one_of("errors", errors, ("raise", _RETURN))
    given, fits = _listed(matrices), Fits.of(model, options)
    # drawn here, in their order: threads would draw in any
    draws = torch.randint(2**31, (len(given),), device="cpu").tolist() if seed is None else None

    def fit(number: int) -> Factorization:
        own = seed if draws is None else draws[number]
        fitted = fits.model(nb_concepts, own)
        with silenced(ConvergenceWarning):
            fitted.fit(given[number])
        return fitted

    most = at_a_time(fits.model(nb_concepts, 0))
    with bar(verbose, "fit_many", dict.fromkeys(range(len(given)), 1)) as done:
        found = run_each(fit, len(given), done, most, _FAILURES)
    met = [met_rule(each) for each in found if isinstance(each, Factorization)]
    warn_of_limits(met, options)
    failed = {i: each for i, each in enumerate(found) if isinstance(each, Exception)}
    if failed and errors != _RETURN:
        raise FitsFailed([None if i in failed else each for i, each in enumerate(found)], failed)
    return found


def _listed(matrices: Any) -> list[Any]:
    """The matrices as a list. Raises InvalidInput for one matrix, or a dict of them, and TypeError
    for what is no list."""
    if isinstance(matrices, Mapping):
        raise InvalidInput(
            "matrices is a dict, and fit_many returns a list: give list(matrices.values()); "
            "dict(zip(matrices, models)) then has the model of each name"
        )
    path = isinstance(matrices, str | bytes | os.PathLike)
    if not (path or isinstance(matrices, Iterable)):
        raise TypeError(f"matrices is of type {type(matrices).__name__}; give [A_1, A_2, …]")
    if path or getattr(matrices, "ndim", 3) < 3 or _is_matrix(matrices):
        raise InvalidInput(
            "matrices is one matrix, and fit_many fits a list of them; give [A_1, A_2, …], or fit "
            "one by NMF(K).fit(A)"
        )
    return list(matrices)


def _is_matrix(given: Any) -> bool:
    """Whether lists of numbers are rows of one matrix."""
    rows = isinstance(given, list | tuple) and given and all(isinstance(x, list) for x in given)
    return bool(rows) and all(isinstance(x, int | float) for row in given for x in row[:1])
