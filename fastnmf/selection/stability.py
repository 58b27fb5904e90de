"""stability: which concepts are found again from other starts or other rows; and their
consensus."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..errors import InvalidInput
from ..isolation import isolated
from ..models.factorization import Factorization
from ..models.nmf import NMF
from .matching import (
    aligned,
    directions,
    distances_of_neighbours,
    in_order,
    median,
    require_scipy,
    silhouettes,
)
from .models import Fits, bar, warn_of_limits
from .runner import at_a_time, run_each
from .runs import Run, Runs
from .subsets import Whole

RESAMPLES = ("rows", "starts")
# starts that draw nothing but the rounding of an SVD: all runs would agree
_DRAWN = ("random", "rows", "spread", "nndsvdar")


@dataclass(frozen=True, eq=False)
class Stability:
    """Concepts of several fits, matched one to one, and their consensus. Print it.

    Attributes
    ----------
    score : float
        The mean of `scores`. Good: above 0.9.
    scores : Tensor (K,)
        The silhouette of each concept: how much more alike the concepts of all runs that match it
        are than the nearest others, from −1 to 1. Of one concept, the mean cosine.
    cosines : Tensor (K,)
        The mean cosine of the concepts of all runs that match, from −1 to 1. For non-negative data
        it is well above 0 by chance.
    dictionary : Tensor (K, d)
        The consensus: medians of the matching concepts, at norm 1, without those that the density
        filter dropped.
    codes : Tensor (n, K)
        Exact codes of A for it.
    relative_error : float
        ‖A − Z D‖ / ‖A‖ of the consensus.
    kept : Tensor (K,)
        Share of the runs whose concept the density filter kept, from 0 to 1. A concept of which it
        dropped all is the median of all.
    dictionaries : Tensor (runs, K, d)
        The dictionaries of the runs; concept k of each matches concept k of the consensus.
    errors : tuple of float
        ‖A − Z D‖ / ‖A‖ of each run, of the rows it was given.
    resample : {'rows', 'starts'}
        What differed between runs.
    seed : int
        The seed; run r has seed + r.
    """

    score: float
    scores: Tensor
    cosines: Tensor
    dictionary: Tensor
    codes: Tensor
    relative_error: float
    kept: Tensor
    dictionaries: Tensor
    errors: tuple[float, ...]
    resample: str
    seed: int

    @property
    def init(self) -> tuple[Tensor, Tensor]:
        """Codes and dictionary of the consensus, as a start: ``NMF(K, init=found.init)``."""
        return self.codes, self.dictionary

    def __str__(self) -> str:
        K, order = len(self.scores), self.scores.argsort(descending=True).tolist()
        best, worst = min(self.errors), max(self.errors)
        stable = int((self.scores >= 0.9).sum())
        what = "other starts" if self.resample == "starts" else "other rows and starts"
        shown = order if K <= 20 else [*order[:5], *order[-5:]]
        lines = [
            f"stability:      {self.score:.3f} (mean silhouette), {len(self.errors)} runs from "
            f"{what}, seed {self.seed}",
            f"concepts:       {K:,}, of which {stable:,} have a score of at least 0.9",
            f"relative error: {self.relative_error:.6g} of the consensus; runs {best:.6g} to "
            f"{worst:.6g}",
            f"{'concept':>8} {'score':>7} {'cosine':>7} {'kept':>5}",
        ]
        for number, k in enumerate(shown):
            if K > 20 and number == 5:
                lines.append(f"{'…':>8}")
            numbers = float(self.scores[k]), float(self.cosines[k])
            lines.append(
                f"{k:>8,} {numbers[0]:>7.3f} {numbers[1]:>7.3f} {float(self.kept[k]):>5.0%}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as numbers and lists, for JSON; without matrices."""
        return {
            "score": self.score,
            "scores": self.scores.tolist(),
            "cosines": self.cosines.tolist(),
            "kept": self.kept.tolist(),
            "relative_error": self.relative_error,
            "errors": list(self.errors),
            "resample": self.resample,
            "seed": self.seed,
        }


@isolated
def stability(
    A: Any,
    nb_concepts: int,
    *,
    runs: int = 10,
    resample: str = "rows",
    density_threshold: float | None = 0.5,
    seed: int | None = None,
    model: type[Factorization] = NMF,
    verbose: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> Stability:
    """Fit several times, and compare the concepts.

    Parameters
    ----------
    A : (n, d), non-negative for NMF
        A tensor, an array, a data frame, a sparse matrix of SciPy or torch, or the path of one
        file. It must fit in memory.
    nb_concepts : int
        K, at least 1.
    runs : int, default 10
        Fits, at least 2.
    resample : {'rows', 'starts'}, default 'rows'
        What differs between them: 'rows' draws n rows anew, with replacement (bootstrap), and
        another start; 'starts' draws only another start, and so finds concepts of noise again, too,
        if there are few minima.
    density_threshold : float or None, default 0.5
        Concepts are left out of the consensus if their mean Euclidean distance, at norm 1, to the
        nearest third of those of other runs that match is larger. None leaves out none.
    seed : int, optional
        Seed of all runs; by default it is drawn.
    model : class, default fastnmf.NMF
        The class of the model, such as `fastnmf.SemiNMF`.
    verbose : bool, default False
        Show a progress bar.
    checkpoint : path, optional
        A .safetensors file to which each finished fit is saved.
    resume : bool, default False
        Continue from the file `checkpoint`, with the same data and options. `runs` may differ.
    **options
        Options of the model, such as ``max_iter`` or ``alpha_Z``. ``init`` is 'random' by default,
        since the other starts are the same each time.

    Returns
    -------
    Stability
        Scores of the concepts and of all, and the consensus. Print it.

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
    fastnmf.choose_concepts : How many concepts the data support.

    Notes
    -----
    Concepts of the runs are matched one to one to those of the run with the least error, then to
    their medians until no match changes. The density filter and the medians are those of consensus
    NMF [1]_, in which clusters of any size take the place of the matching.

    References
    ----------
    .. [1] D. Kotliar et al., "Identifying gene expression programs of cell-type identity and
       cellular activity with single-cell RNA-Seq", 2019.
    .. [2] P. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of
       cluster analysis", 1987.

    Examples
    --------
    >>> import torch
    >>> import fastnmf
    >>> drawn = torch.Generator().manual_seed(0)
    >>> D = torch.eye(3).repeat_interleave(5, dim=1)
    >>> A = torch.rand(200, 3, generator=drawn) ** 3 @ D
    >>> found = fastnmf.stability(A, 3, runs=4, seed=0)
    >>> found.score > 0.95, found.dictionary.shape
    (True, torch.Size([3, 15]))
    """
    require_scipy()
    runs = checks.whole("runs", runs, at_least=2) or 2
    K = checks.whole("nb_concepts", nb_concepts, at_least=1) or 1
    resample = checks.one_of("resample", resample, RESAMPLES)
    if density_threshold is not None:
        density_threshold = checks.penalty("density_threshold", density_threshold)
    fits = Fits.of(model, {"init": "random", **options})
    if fits.options.get("offset"):
        raise InvalidInput(
            "offset=True has no consensus here: each run has one of its own; leave it out, or "
            "give A - A.mean(0)"
        )
    if resample == "starts" and fits.options["init"] not in _DRAWN:
        raise InvalidInput(
            f"init={fits.options['init']!r} is the same start for all runs, which would agree for "
            f"that alone; give one of {', '.join(_DRAWN)}, or resample='rows'"
        )
    whole = Whole.of(A, fits.smallest().expected())
    identity = {**fits.identity(), **whole.identity(), "nb_concepts": K, "resample": resample}
    store = Runs(checkpoint, identity, seed, resume=resume)

    def fit(number: int) -> Run:
        seed = store.seed + number
        return store.get(str(number), lambda: fits.fit(_drawn(whole, resample, seed), K, seed)[1])

    work = {str(number): 1 for number in range(runs)}
    with bar(checks.flag("verbose", verbose), "stability", work, store) as done:
        most = at_a_time(fits.smallest(), whole.entries)
        found = run_each(fit, runs, lambda number: done(str(number)), most)
    met = [bool(run.numbers["converged"]) for run in found]
    warn_of_limits(met, options)
    return _compared(whole, fits, found, density_threshold, (resample, store.seed))


def _drawn(A: Whole, resample: str, seed: int) -> Any:
    if resample == "starts":
        return A.A
    drawn = torch.Generator("cpu").manual_seed(seed)
    return A.rows(torch.randint(A.n, (A.n,), generator=drawn, device="cpu"))


def _compared(
    A: Whole, fits: Fits, runs: list[Run], threshold: float | None, drawn: tuple[str, int]
) -> Stability:
    dictionaries = torch.stack([run.D for run in runs])
    units = directions(dictionaries)
    errors = tuple(run.numbers["relative_error"] for run in runs)
    order, _ = aligned(units, errors.index(min(errors)))
    ordered = in_order(units, order)
    scores = silhouettes(ordered).mean(0)
    kept = ordered.new_ones(ordered.shape[:2], dtype=torch.bool)
    if threshold is not None:
        kept = distances_of_neighbours(ordered) <= threshold
    D = directions(_medians(ordered, kept)).to(dictionaries.dtype)
    model = fits.model(D.shape[0], drawn[1]).load_dictionary(D)
    Z, info = model.encode(A.A, return_info=True)
    sums = ordered.sum(0)
    # over pairs of different runs
    pairs = len(runs) * (len(runs) - 1)
    cosines = ((sums * sums).sum(1) - (ordered * ordered).sum((0, 2))) / pairs
    return Stability(
        score=float(scores.mean()),
        scores=scores,
        cosines=cosines,
        dictionary=D,
        codes=Z.cpu(),
        relative_error=info.relative_error,
        kept=kept.double().mean(0),
        dictionaries=in_order(dictionaries, order),
        errors=errors,
        resample=drawn[0],
        seed=drawn[1],
    )


def _medians(ordered: Tensor, kept: Tensor) -> Tensor:
    """The median of the kept concepts of each cluster, of all where none is kept."""
    kept = kept | ~kept.any(0)
    return torch.stack([median(ordered[kept[:, k], k]) for k in range(ordered.shape[1])])
