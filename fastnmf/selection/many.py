"""fit_many: fits of many matrices by one call, a fit a thread on the CPU."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

from .. import checks
from ..errors import ConvergenceWarning, FitsFailed, InvalidInput, silenced
from ..fit.options import MAX_ITER
from ..isolation import isolated
from ..models.factorization import Factorization
from ..models.nmf import NMF
from .models import Fits, bar, met_rule, warn_of_limits

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

    found: list[Any] = [None] * len(given)
    on_cpu = torch.device(fits.model(nb_concepts, 0).device).type == "cpu"
    with bar(verbose, "fit_many", dict.fromkeys(range(len(given)), 1)) as done:
        _run(fit, found, done, torch.get_num_threads() if on_cpu else 1)
    met = [met_rule(each) for each in found if isinstance(each, Factorization)]
    warn_of_limits(met, options.get("max_iter") or MAX_ITER)
    failed = {i: each for i, each in enumerate(found) if isinstance(each, Exception)}
    if failed and errors != _RETURN:
        raise FitsFailed([None if i in failed else each for i, each in enumerate(found)], failed)
    return found


def _listed(matrices: Any) -> list[Any]:
    """The matrices as a list. Raises InvalidInput for one matrix, or a dict of them."""
    if isinstance(matrices, str | bytes) or getattr(matrices, "ndim", 3) == 2:
        raise InvalidInput(
            "matrices is one matrix, and fit_many fits a list of them; give [A_1, A_2, …], or fit "
            "one by NMF(K).fit(A)"
        )
    if isinstance(matrices, Mapping):
        raise InvalidInput(
            "matrices is a dict, and fit_many returns a list: give list(matrices.values()); "
            "dict(zip(matrices, models)) then has the model of each name"
        )
    return list(matrices)


def _run(
    fit: Callable[[int], Any], found: list[Any], done: Callable[[int], object], most: int
) -> None:
    """Make the fits of all numbers, up to `most` at a time; what each returns, or the exception,
    goes into `found`. After an interrupt, in any thread, no further fit begins."""
    interrupted = threading.Event()

    def make(number: int) -> None:
        if interrupted.is_set():
            return
        try:
            found[number] = fit(number)
        except _FAILURES as error:
            found[number] = error
        except BaseException:
            interrupted.set()
            raise

    workers = min(most, len(found))
    if workers <= 1:
        for number in range(len(found)):
            make(number)
            done(number)
        return
    threads, ready = torch.get_num_threads(), threading.Barrier(workers + 1)

    def begin() -> None:
        # the first call takes the number of the process, which would replace one that was set
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    with ThreadPoolExecutor(workers) as pool:
        try:
            started = [pool.submit(begin) for _ in range(workers)]
            ready.wait()
        except BaseException:
            # no thread waits for those that could not be started
            ready.abort()
            raise
        wait(started)
        # which is also that of threads to come
        torch.set_num_threads(threads)
        futures = [
            pool.submit(contextvars.copy_context().run, make, number)
            for number in range(len(found))
        ]
        try:
            for number, future in enumerate(futures):
                future.result()
                done(number)
        except BaseException:
            interrupted.set()
            raise
