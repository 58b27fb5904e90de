"""The model of a call that fits several: its options, its fits, and what they have in common."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .. import checks
from ..errors import ConvergenceWarning, InvalidInput, silenced, warn
from ..fit.options import MAX_ITER
from ..models.factorization import Factorization
from .runs import Run, Runs

_FORMAT = "{desc}: {percentage:3.0f} % |{bar}| [{elapsed}, {remaining} left]"
# options of a model that a call with several fits sets itself
_OWN = {
    "seed": "give seed= to the call, which draws those of its fits from it",
    "nb_concepts": "it is an argument of the call",
    "distributed": "the fits of a call are made in one process",
}


@dataclass(frozen=True)
class Fits:
    """How a call makes its fits: the class of the model and the options of its constructor."""

    kind: type[Factorization]
    options: dict[str, Any]

    @classmethod
    def of(cls, kind: Any, options: dict[str, Any]) -> Fits:
        """Check both. Raises InvalidInput or TypeError as the constructor does."""
        if not (isinstance(kind, type) and issubclass(kind, Factorization)):
            raise TypeError(f"model={kind!r} must be a class of fastnmf, such as fastnmf.SemiNMF")
        for name, why in _OWN.items():
            if name in options:
                raise InvalidInput(f"{name}={options[name]!r} is no option here: {why}")
        if not isinstance(options.get("init", ""), str):
            raise InvalidInput(
                "init= is a pair (Z0, D0), from which all fits would start alike; give the name "
                "of a start"
            )
        if options.get("stop") == "validation":
            raise InvalidInput(
                "stop='validation' needs rows for validation, which fits of a call do not have; "
                "give stop='change' or 'error'"
            )
        fits = cls(kind, options)
        fits.smallest()
        return fits

    def smallest(self) -> Factorization:
        """A model of as few concepts as its options allow, not fitted."""
        least = [self.options.get(name) for name in ("top_k", "target_l0")]
        return self.model(max([1, *(math.ceil(each) for each in least if _is_size(each))]), 0)

    def model(self, K: int, seed: int, **more: Any) -> Factorization:
        """A model of K concepts that is not fitted."""
        options: dict[str, Any] = {**self.options, "seed": seed, **more}
        return self.kind(K, **options)

    def fit(self, A: Any, K: int, seed: int, **more: Any) -> tuple[Factorization, Run]:
        """Fit A without its codes being kept; the model, and what the summary says."""
        model = self.model(K, seed, **more)
        with silenced(ConvergenceWarning):
            model.fit(A)
        return model, run_of(model)

    def identity(self) -> dict[str, Any]:
        """What must be the same where a call resumes."""
        shown = {name: repr(value) for name, value in sorted(self.options.items())}
        return {"model": self.kind.__name__, "options": shown}


def _is_size(value: Any) -> bool:
    """Whether it is a number of concepts that a model of as many may have."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and 0 < value <= checks.MOST


def run_of(model: Factorization) -> Run:
    """What the last fit of a model found."""
    info = model.fit_info_
    assert info is not None
    assert model.D is not None
    numbers = {
        "relative_error": info.relative_error,
        "mean_l0": info.mean_l0,
        "seconds": info.seconds,
        "converged": float(met_rule(model)),
    }
    return Run(model.D.detach().cpu().clone(), numbers)


def met_rule(model: Factorization) -> bool:
    """Whether the last fit of a model met its stopping rule, if it had one: tol=0 asks for none."""
    info = model.fit_info_
    return info is None or info.converged or model.tol == 0


def warn_of_limits(converged: Sequence[bool], options: dict[str, Any]) -> None:
    """Give one warning for all fits with these options that ended at max_iter, before their
    stopping rule was met."""
    max_iter = options.get("max_iter")
    max_iter = MAX_ITER if max_iter is None else max_iter
    if not all(converged):
        warn(
            f"{list(converged).count(False)} of {len(converged)} fits had not converged after "
            f"max_iter={max_iter} iterations; give a larger max_iter or tol (tol=0 runs all "
            "iterations without this warning)",
            ConvergenceWarning,
        )


@contextmanager
def bar(
    verbose: bool, label: str, work: dict[Any, int], runs: Runs | tuple[()] = ()
) -> Iterator[Any]:
    """A context with the function that notes the fit of a name as done, or does nothing.

    work: name of each fit → how much work it is, by which the time left is estimated; fits that
    `runs` has already took none.
    """
    if not verbose:
        yield lambda name: None
        return
    from tqdm.auto import tqdm

    fits, total, had = 0, sum(work.values()), {name for name in work if name in runs}
    begun = sum(work[name] for name in had)
    with tqdm(total=total, initial=begun, smoothing=0, bar_format=_FORMAT) as shown:

        def done(name: Any = None) -> None:
            nonlocal fits
            fits += name is not None
            shown.set_description_str(f"{label}, {fits} of {len(work)} fits", refresh=False)
            shown.update(0 if name is None or name in had else work[name])
            shown.refresh()

        done()
        yield done
