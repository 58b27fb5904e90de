"""Weights of samples, and missing values, as the estimator NMF takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import norm_of


def seen_in(X: Any) -> np.ndarray | None:
    """Which entries of X (n, d) are not NaN; None for all. What a sparse X stores is never NaN."""
    if hasattr(X, "tocsr"):
        return None
    missing = np.isnan(X)
    return ~missing if missing.any() else None


def with_samples(seen: np.ndarray | None, sample_weight: np.ndarray | None) -> np.ndarray | None:
    """The argument `weights` of fastnmf.NMF.fit, for entries that are seen, and weights (n,)."""
    if sample_weight is None:
        return seen
    weights = sample_weight[:, None]
    return weights if seen is None else seen * weights


def weighted_norm(X: Any, weights: np.ndarray | None) -> float:
    """√(Σ w x²) of an array or a sparse matrix."""
    if weights is None:
        return norm_of(X)
    if hasattr(X, "tocsr"):
        return norm_of(X.multiply(np.sqrt(weights)).tocsr())
    return norm_of(np.where(weights > 0, X, 0) * np.sqrt(weights))
