"""Hold-outs: how well a factorization of a part of the data predicts the rest. Each entry of the
data is predicted once, by a fit or by codes that have not seen it."""

# matrices are upper case
# pyright: reportConstantRedefinition=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConvergenceWarning, InvalidInput, silenced
from ..models.factorization import Factorization
from .models import Fits, run_of
from .runs import Run
from .subsets import Whole, squared_error

# parts of the features that are predicted from the others: codes from half of the features would
# extrapolate more
_PARTS = 4
# iterations between two estimates of held-out entries, how often these are renewed at most, and
# their relative change at which that ends
_ITERATIONS, _ROUNDS, _SETTLED = 10, 50, 1e-3


class Fold(NamedTuple):
    """One of `folds` parts of the data that is held out. seed: of the division into parts."""

    number: int
    folds: int
    seed: int


def rows(A: Whole, fits: Fits, K: int, fold: Fold, seed: int) -> Run:
    """Fit all rows but those of the fold; predict each part of the features of these rows by codes
    from their other features. Source: Owen & Perry, "Bi-cross-validation of the SVD and the
    nonnegative matrix factorization", 2009, with dictionaries of all features."""
    if A.d < 2:
        raise InvalidInput(
            "holdout='rows' predicts features of a row from its others, and A has one feature; "
            "give holdout='entries'"
        )
    drawn = torch.Generator("cpu").manual_seed(fold.seed)
    part_of_row = torch.randperm(A.n, generator=drawn, device="cpu") % fold.folds
    part_of_feature = torch.randperm(A.d, generator=drawn, device="cpu") % min(_PARTS, A.d)
    held, kept = ((part_of_row == fold.number) == is_held for is_held in (True, False))
    model, run = fits.fit(A.rows(kept.nonzero()[:, 0]), K, seed)
    D, b, held = *_learned(model), held.nonzero()[:, 0]
    error = total = 0.0
    for part in part_of_feature.unique():
        unseen = (part_of_feature == part).nonzero()[:, 0]
        seen = (part_of_feature != part).nonzero()[:, 0]
        known = None if b is None else b[seen]
        of_seen = fits.model(K, seed).load_dictionary(D[:, seen], known)
        Z, of_unseen = _codes(of_seen, A.block(held, seen)), D[:, unseen]
        if b is not None:
            # an offset is a concept that all rows have once
            Z = torch.cat((Z, Z.new_ones(len(Z), 1)), 1)
            of_unseen = torch.cat((of_unseen, b[None, unseen]))
        errors = squared_error(A.block(held, unseen), Z, of_unseen)
        error, total = error + errors[0], total + errors[1]
    return _with_held(run, error, total)


def entries(A: Whole, fits: Fits, K: int, fold: Fold, seed: int) -> Run:
    """Fit with the entries of the fold estimated by the factorization itself, in turns of some
    iterations (expectation maximization). Source: Wold, "Cross-validatory estimation of the number
    of components in factor and principal components models", 1978."""
    if A.is_sparse:
        raise InvalidInput(
            "holdout='entries' estimates entries, which needs dense data; give A.toarray(), or "
            "holdout='rows'"
        )
    if fits.kind.constraint.of_rows:
        raise InvalidInput(
            "holdout='entries' goes on from the concepts of an earlier estimate, and ConvexNMF has "
            "mixtures of rows; give holdout='rows'"
        )
    X: Tensor = A.A
    drawn = torch.Generator("cpu").manual_seed(fold.seed)
    part_of_entry = torch.randint(fold.folds, X.shape, generator=drawn, device="cpu")
    held = part_of_entry == fold.number
    filled = torch.where(held, _means(X, held), X)
    model, run = fits.fit(filled, K, seed)
    before = filled[held]
    Z = _codes(model, filled)
    for _ in range(_ROUNDS):
        D, b = _learned(model)
        filled = torch.where(held, _rebuilt(Z, D, b), X)
        if not fits.kind.constraint.signed:
            filled = filled.clamp_(min=0)
        now = filled[held]
        if torch.dist(now, before) <= _SETTLED * torch.linalg.vector_norm(now):
            break
        before = now
        model = fits.model(K, seed, init=(Z, D), max_iter=_ITERATIONS, n_init=1)
        with silenced(ConvergenceWarning):
            Z = model.fit(filled)[0]
        assert Z is not None
        Z = Z.cpu()
    found = run_of(model)
    errors = X - _rebuilt(Z, *_learned(model))
    # of the fit on all entries but these
    seen = _relative(errors[~held].double(), X[~held].double())
    numbers = {**found.numbers, "relative_error": seen, "converged": run.numbers["converged"]}
    total = float(X[held].double().square().sum())
    return _with_held(Run(found.D, numbers), float(errors[held].double().square().sum()), total)


def _learned(model: Factorization) -> tuple[Tensor, Tensor | None]:
    """The dictionary, and the offset of a model that has one."""
    b = model.offset_
    return model.get_dictionary().cpu(), None if b is None else b.cpu()


def _rebuilt(Z: Tensor, D: Tensor, b: Tensor | None) -> Tensor:
    return Z @ D if b is None else Z @ D + b


def _codes(model: Factorization, X: Any) -> Tensor:
    with silenced(ConvergenceWarning):
        Z = model.encode(X)
    assert isinstance(Z, Tensor)
    return Z.cpu()


HOLDOUTS = {"rows": rows, "entries": entries}


def _with_held(run: Run, error: float, total: float) -> Run:
    return Run(run.D, {**run.numbers, "held_out": (error / total) ** 0.5 if total else 0.0})


def _relative(errors: Tensor, values: Tensor) -> float:
    size = float(torch.linalg.vector_norm(values))
    return float(torch.linalg.vector_norm(errors)) / size if size else 0.0


def _means(X: Tensor, held: Tensor) -> Tensor:
    """First estimates of the held entries of X (n, d): means of the row and of the feature, of the
    entries that are seen, added up."""
    seen = ~held
    shown, counts = torch.where(held, 0.0, X), seen.sum()
    middle = shown.sum() / counts.clamp(min=1)
    of_row = shown.sum(1) / seen.sum(1).clamp(min=1)
    of_feature = shown.sum(0) / seen.sum(0).clamp(min=1)
    found = of_row[:, None] + of_feature[None] - middle
    return found if bool((X < 0).any()) else found.clamp(min=0)
