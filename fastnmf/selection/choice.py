"""choose_concepts: how many concepts the data support, by hold-outs; and the table it returns."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import checks
from ..errors import InvalidInput
from ..isolation import isolated
from ..models.factorization import Factorization
from ..models.nmf import NMF
from .holdout import HOLDOUTS, Fold
from .matching import mean_cosine, require_scipy
from .models import Fits, bar, warn_of_limits
from .runner import at_a_time, run_each
from .runs import Run, Runs
from .subsets import Whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# distance of the seeds of the fits of two numbers of concepts
_APART = 1_000


@dataclass(frozen=True)
class Candidate:
    """What was found for one number of concepts.

    Attributes
    ----------
    nb_concepts : int
        K.
    held_out : tuple of float
        ‖A − Z D‖ / ‖A‖ of the entries of each fold, which were held out; at least 0. Lower is
        better.
    relative_error : float
        The mean over folds of ‖A − Z D‖ / ‖A‖ of the data that were fitted.
    stability : float
        The mean cosine of matched concepts of the fits of two folds, at most 1. Good: near 1.
    mean_l0 : float
        Mean number of non-zero codes per row that was fitted.
    seconds : float
        Time of all folds, in seconds.
    """

    nb_concepts: int
    held_out: tuple[float, ...]
    relative_error: float
    stability: float
    mean_l0: float
    seconds: float

    @property
    def mean_held_out(self) -> float:
        """The mean of `held_out`."""
        return statistics.fmean(self.held_out)


@dataclass(frozen=True)
class Choice:
    """Numbers of concepts, compared. Print it for a table.

    Attributes
    ----------
    recommended : int
        The smallest number of concepts whose held-out error is at most one standard error above the
        least.
    reason : str
        Why, in one or two sentences.
    candidates : tuple of Candidate
        What was found for each number of concepts, from the smallest.
    holdout : {'rows', 'entries'}
        What was held out.
    folds, seed : int
        The number of parts, and the seed of all draws.
    """

    recommended: int
    reason: str
    candidates: tuple[Candidate, ...]
    holdout: str
    folds: int
    seed: int

    def __str__(self) -> str:
        head = f"{'K':>7} {'held-out error':>19} {'fitted error':>13} {'stability':>10}"
        lines = [f"{head} {'mean L0':>8} {'seconds':>8}"]
        for each in self.candidates:
            mark = " ←" if each.nb_concepts == self.recommended else ""
            spread = f"± {_standard_error(each.held_out):.4f}"
            lines.append(
                f"{each.nb_concepts:>7,} {each.mean_held_out:>10.4f} {spread} "
                f"{each.relative_error:>13.4f} {each.stability:>10.3f} {each.mean_l0:>8.2f} "
                f"{each.seconds:>8.2f}{mark}"
            )
        return "\n".join([*lines, self.reason])

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as numbers, text, lists and dictionaries, for JSON."""
        return asdict(self)

    def plot(self) -> Figure:
        """Draw held-out and fitted error, and stability, over the number of concepts.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook displays it by itself; elsewhere save it by ``savefig``. pyplot is not used.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib (the extra ``plot``) is not installed.
        """
        from .picture import Point, draw

        points = [
            Point(each.nb_concepts, each.held_out, each.relative_error, each.stability)
            for each in self.candidates
        ]
        return draw(points, self.recommended, self.holdout)


@isolated
def choose_concepts(
    A: Any,
    candidates: Sequence[int],
    *,
    holdout: str = "rows",
    folds: int = 5,
    seed: int | None = None,
    model: type[Factorization] = NMF,
    verbose: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> Choice:
    """Compare numbers of concepts by their error on data that were held out.

    Each number of concepts is fitted once for each fold, without the rows or entries of the fold.
    The error of entries that no fit and no code has seen falls with the number of concepts up to
    what the data support, and rises beyond.

    Parameters
    ----------
    A : (n, d), non-negative for NMF
        A tensor, an array, a data frame, a sparse matrix of SciPy or torch (with holdout='rows'),
        or the path of one file. It must fit in memory.
    candidates : sequence of int
        Numbers of concepts to compare, each at least 1 and at most as many as rows or features.
    holdout : {'rows', 'entries'}, default 'rows'
        'rows' holds out rows. Each quarter of their features is predicted by codes from the other
        features, with a dictionary of the other rows. 'entries' holds out single entries, which
        the fit estimates as it goes on (expectation maximization): slower, and for dense data.
    folds : int, default 5
        Parts, each of which is held out once; from 2 to 255, and at most n.
    seed : int, optional
        Seed of the division into folds and of all fits; by default it is drawn.
    model : class, default fastnmf.NMF
        The class of the model, such as `fastnmf.SemiNMF`.
    verbose : bool, default False
        Show a progress bar.
    checkpoint : path, optional
        A .safetensors file to which each finished fit is saved.
    resume : bool, default False
        Continue from the file `checkpoint`, with the same data and options. `candidates` may
        differ.
    **options
        Options of the model, such as ``max_iter`` or ``alpha_Z``.

    Returns
    -------
    Choice
        The recommendation with its reason, and a table. Print it, or call its ``plot``.

    Raises
    ------
    InvalidInput
        For data or options that cannot be used.
    ModuleNotFoundError
        If SciPy is not installed.

    Warns
    -----
    ConvergenceWarning
        If fits ended at max_iter.

    See Also
    --------
    fastnmf.stability : Which concepts of a fit are found again.

    Notes
    -----
    The recommendation is the smallest number of concepts that is, over the folds, at most one
    standard error worse than the best [2]_. The stability is reported, and does not change it.

    References
    ----------
    .. [1] A. B. Owen and P. O. Perry, "Bi-cross-validation of the SVD and the nonnegative matrix
       factorization", 2009.
    .. [2] T. Hastie, R. Tibshirani and J. Friedman, "The elements of statistical learning", 2009,
       section 7.10.

    Examples
    --------
    >>> import torch
    >>> import fastnmf
    >>> drawn = torch.Generator().manual_seed(0)
    >>> Z, D = torch.rand(200, 3, generator=drawn), torch.rand(3, 20, generator=drawn)
    >>> A = (Z @ D + 0.1 * torch.randn(200, 20, generator=drawn)).clamp(min=0)
    >>> fastnmf.choose_concepts(A, [1, 2, 3, 4, 5], folds=3, seed=0).recommended
    3
    """
    require_scipy()
    hold = HOLDOUTS[checks.one_of("holdout", holdout, HOLDOUTS)]
    fits = Fits.of(model, options)
    whole = Whole.of(A, fits.smallest().expected())
    folds = checks.whole("folds", folds, at_least=2, at_most=255) or 2
    if folds > whole.n:
        raise InvalidInput(f"folds={folds} is more than the {whole.n} rows of A; give fewer")
    numbers = _numbers(candidates, whole, folds)
    identity = {**fits.identity(), **whole.identity(), "holdout": holdout, "folds": folds}
    runs = Runs(checkpoint, identity, seed, resume=resume)
    seed = runs.seed
    each = [(K, number) for K in numbers for number in range(folds)]
    names = [f"{K}/{number}" for K, number in each]

    def fit(which: int) -> Run:
        K, number = each[which]

        def make() -> Run:
            begun = time.perf_counter()
            fold = Fold(number, folds, seed)
            run = hold(whole, fits, K, fold, seed + _APART * K + number)
            return Run(run.D, {**run.numbers, "seconds": time.perf_counter() - begun})

        return runs.get(names[which], make)

    # a fit takes about as long as it has concepts
    work = {name: K for name, (K, _) in zip(names, each, strict=True)}
    with bar(checks.flag("verbose", verbose), "choose", work, runs) as done:
        most = at_a_time(fits.smallest(), whole.entries)
        every = run_each(fit, len(names), lambda which: done(names[which]), most)
    found = {K: every[i * folds : (i + 1) * folds] for i, K in enumerate(numbers)}
    met = [bool(run.numbers["converged"]) for run in every]
    warn_of_limits(met, options)
    rows = tuple(_candidate(K, each) for K, each in found.items())
    recommended, reason = recommend(rows, most=_most(whole, folds))
    return Choice(recommended, reason, rows, holdout, folds, seed)


def recommend(candidates: Sequence[Candidate], most: int) -> tuple[int, str]:
    """The smallest K that is at most one standard error worse than the best over the folds, and
    why. most: the largest K that can be compared."""
    best = min(candidates, key=lambda each: each.mean_held_out)
    chosen, K = best, best.nb_concepts
    for each in sorted(candidates, key=lambda each: each.nb_concepts):
        worse = [a - b for a, b in zip(each.held_out, best.held_out, strict=True)]
        if statistics.fmean(worse) <= _standard_error(worse):
            chosen = each
            break
    least = f"the held-out error is least with K = {K:,} ({best.mean_held_out:.4f})"
    if chosen is best:
        reason = f"K = {K:,}: {least}."
    else:
        reason = (
            f"K = {chosen.nb_concepts:,}: {least}, and with K = {chosen.nb_concepts:,} "
            f"({chosen.mean_held_out:.4f}) at most one standard error above it."
        )
    sizes = [each.nb_concepts for each in candidates]
    if len(sizes) > 1 and max(sizes) == K < most:
        reason += " It is the largest that was tried: try larger ones, too."
    elif len(sizes) > 1 and chosen.nb_concepts == min(sizes) > 1:
        reason += " It is the smallest that was tried: try smaller ones, too."
    return chosen.nb_concepts, reason


def _numbers(candidates: Any, A: Whole, folds: int) -> list[int]:
    """The numbers of concepts, each once, from the smallest."""
    if isinstance(candidates, int | str) or not hasattr(candidates, "__iter__"):
        raise TypeError(f"candidates={candidates!r} must be several numbers, such as [10, 20, 50]")
    # numbers of arrays and tensors are their own types
    listed = candidates.tolist() if hasattr(candidates, "tolist") else candidates
    numbers = sorted({checks.whole("candidates", K, at_least=1) or 1 for K in listed})
    if not numbers:
        raise InvalidInput("candidates is empty; give numbers of concepts, such as [10, 20, 50]")
    most = _most(A, folds)
    if numbers[-1] > most:
        raise InvalidInput(
            f"candidates has {numbers[-1]:,}; with {A.n:,} rows, {A.d:,} features and "
            f"folds={folds} at most {most:,} concepts can be compared, since more fit everything"
        )
    return numbers


def _most(A: Whole, folds: int) -> int:
    """The largest number of concepts that can be compared."""
    return min(A.n - -(-A.n // folds), A.d)


def _candidate(K: int, runs: list[Run]) -> Candidate:
    def mean(name: str) -> float:
        return statistics.fmean(run.numbers[name] for run in runs)

    return Candidate(
        nb_concepts=K,
        held_out=tuple(run.numbers["held_out"] for run in runs),
        relative_error=mean("relative_error"),
        stability=mean_cosine([run.D for run in runs]),
        mean_l0=mean("mean_l0"),
        seconds=sum(run.numbers["seconds"] for run in runs),
    )


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5
