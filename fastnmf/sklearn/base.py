"""What both estimators share: parameters, checks of X, W and H, the model of fastnmf that computes,
and transform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import sklearn.exceptions
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data
from torch import Tensor

from .. import errors
from ..engine.state import STOPPING_RULES
from ..errors import InvalidInput, silenced
from ..models import nmf
from ..planning.memory import SINGULAR
from ..solvers.registry import OTHER_NAMES, SOLVERS
from .inputs import readable

SPARSE = ("csr", "csc")
DTYPES = (np.float64, np.float32)
# options of fastnmf's own, and what they may be before fastnmf.NMF checks them
OWN: dict[str, Any] = {
    "accelerate": ["boolean", StrOptions({"auto"})],
    "backend": [str],
    "device": "no_validation",
    "max_memory": "no_validation",
    "revive": ["boolean"],
    "stop": [StrOptions({*STOPPING_RULES})],
    "tuning": "no_validation",
    "unit_norm": ["boolean"],
}
_FROBENIUS = ("frobenius", 2)


@contextmanager
def naming_what_helps() -> Iterator[None]:
    """Say which model takes any signs, and which option takes NaN as missing, where scikit-learn
    refuses them."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("Negative values"):
            raise ValueError(f"{error} fastnmf.SemiNMF takes any signs.") from None
        if "contains NaN" in str(error):
            raise ValueError(
                "Input X contains NaN. fastnmf.sklearn.NMF(missing_values=np.nan) fits what is not "
                f"missing. {error}"
            ) from None
        raise


class ConvergenceWarning(errors.ConvergenceWarning, sklearn.exceptions.ConvergenceWarning):
    """A fit reached max_iter before it had converged; fastnmf's and scikit-learn's warning."""


class BaseNMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The base of both estimators. Where scikit-learn's are a base too, as in stand_ins.py, no
    private name of theirs may be defined here."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None, StrOptions({"auto"})],
        "init": [StrOptions({"random", *SINGULAR, "custom"}), None],
        "beta_loss": [StrOptions({"frobenius", "kullback-leibler", "itakura-saito"}), Real],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "alpha_W": [Interval(Real, 0, None, closed="left")],
        "alpha_H": [Interval(Real, 0, None, closed="left"), StrOptions({"same"})],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "verbose": ["verbose"],
        "solver": [StrOptions({*OTHER_NAMES, *SOLVERS})],
    }

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Learn the components of X.

        Parameters
        ----------
        X : (n_samples, n_features), non-negative
            An array, a data frame, lists, or a sparse matrix or array.
        y : ignored
            There for scikit-learn's interface.
        **params : W and H
            As for `fit_transform`; and sample_weight of `NMF`.

        Returns
        -------
        self
            The estimator itself.
        """
        self.fit_transform(X, **params)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Compute the codes W of X for the components: the optimum, by exact least squares.

        Parameters
        ----------
        X : (n_samples, n_features), non-negative
            As for `fit`.

        Returns
        -------
        W : ndarray (n_samples, n_components)
            argmin of the objective over W ≥ 0.
        """
        check_is_fitted(self)
        return self._encode(self._read(X, reset=False), self.components_, self._sweeps)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Compute the data W H of codes W.

        Parameters
        ----------
        X : (n_samples, n_components)
            Codes, such as `transform` returns.

        Returns
        -------
        ndarray (n_samples, n_features)
            The data.
        """
        check_is_fitted(self)
        if isinstance(X, Tensor):
            X = readable(X)
        K, shape = len(self.components_), np.shape(X)
        if shape[-1:] != (K,):
            raise InvalidInput(f"X has shape {shape}; it must be (n_samples, {K})")
        return X @ self.components_

    @property
    def _sweeps(self) -> int:
        """The most sweeps of `transform`; rows that have not converged are then solved exactly."""
        return self.max_iter

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _unsupported(self) -> str | None:
        """Why fastnmf cannot do what the parameters say, or None."""
        if self.beta_loss not in _FROBENIUS:
            return f"beta_loss={self.beta_loss!r}: the loss of fastnmf is ½ ‖X − W H‖², 'frobenius'"
        if getattr(self, "shuffle", False):
            return f"shuffle={self.shuffle!r}: fastnmf updates components in their order"
        return None

    def _refuse_unsupported(self) -> None:
        if (why := self._unsupported()) is not None:
            raise InvalidInput(
                f"{why}; use sklearn.decomposition.{type(self).__name__}, or leave it out"
            )

    def _read(self, X: Any, *, reset: bool = True) -> Any:
        X = readable(X)
        given = {"reset": reset, "ensure_non_negative": True, **self._allowed(X)}
        with naming_what_helps():
            return validate_data(self, X, accept_sparse=SPARSE, dtype=DTYPES, **given)

    def _allowed(self, X: Any) -> dict[str, Any]:
        """What else scikit-learn's checks of X allow."""
        return {}

    def _weights(self, X: Any, sample_weight: Any = None) -> Any:
        """The argument `weights` of fastnmf.NMF for these samples, or None."""
        return None

    def _start(self, X: Any, W: Any, H: Any) -> tuple[int, Any]:
        """The number of components, and `init` of fastnmf.NMF: the name of a start or a pair."""
        (n, d), K = X.shape, self.n_components
        if self.init != "custom":
            if W is not None or H is not None:
                warn(
                    "When init!='custom', provided W or H are ignored. Set  init='custom' to use "
                    "them as initialization.",
                    RuntimeWarning,
                )
            K = d if K in (None, "auto") else int(K)
            if self.init in SINGULAR and min(n, d) < K:
                raise InvalidInput(
                    f"init = '{self.init}' can only be used when n_components <= min(n_samples, "
                    f"n_features); they are {K}, {n} and {d}: give init='random', or None"
                )
            return K, self.init or "auto"
        K = d if K is None else K
        if W is None and H is None:
            raise InvalidInput("init='custom' needs W, H or both: fit_transform(X, W=W, H=H)")
        if H is not None:
            H = self._factor(H, (K, d), "H", X.dtype)
            K = len(H)
        if W is not None:
            W = self._factor(W, (n, K), "W", X.dtype)
            K = W.shape[1]
        if H is None:
            # the same problem, transposed
            H = self._encode(X.T, np.ascontiguousarray(W.T), self._sweeps, penalised=False).T
        if W is None:
            W = self._encode(X, H, self._sweeps, penalised=False)
        return K, (W, H)

    def _factor(self, F: Any, shape: tuple[Any, int], name: str, dtype: np.dtype) -> np.ndarray:
        """W or H as an array. Raises ValueError unless it fits, with scikit-learn's messages."""
        F, whom = check_array(F, dtype=None), f"NMF (input {name})"
        for axis, (size, expected) in enumerate(zip(F.shape, shape, strict=True)):
            if expected not in ("auto", size):
                ordinal = ("first", "second")[axis]
                raise ValueError(
                    f"Array with wrong {ordinal} dimension passed to {whom}. Expected {expected}, "
                    f"but got {size}."
                )
        check_non_negative(F, whom)
        if not F.any():
            raise ValueError(f"Array passed to {whom} is full of zeros.")
        if F.dtype != dtype:
            raise TypeError(
                f"H and W should have the same dtype as X. Got {name}.dtype = {F.dtype}, and "
                f"X.dtype = {dtype}."
            )
        return F

    def _seed(self) -> int:
        """random_state as a seed."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _settings(self, K: int, init: Any = "auto") -> dict[str, Any]:
        """The parameters as options of fastnmf.NMF."""
        return {
            "nb_concepts": K,
            "solver": OTHER_NAMES.get(self.solver, self.solver),
            "tol": float(self.tol),
            "verbose": self.verbose > 0,
            "max_iter": int(self.max_iter),
            "init": init,
            "seed": None if isinstance(init, tuple) else self._seed(),
            "alpha_Z": float(self.alpha_W),
            "alpha_D": self.alpha_H if self.alpha_H == "same" else float(self.alpha_H),
            "l1_ratio": float(self.l1_ratio),
            **{name: getattr(self, name) for name in OWN if hasattr(self, name)},
        }

    def _encode(self, X: Any, H: np.ndarray, sweeps: int, *, penalised: bool = True) -> np.ndarray:
        """The codes of X for the components H."""
        settings = self._settings(len(H), (None, H))
        if not penalised:
            settings |= {"alpha_Z": 0.0, "alpha_D": 0.0, "unit_norm": False}
        model = nmf.NMF(**settings).load_dictionary(H)
        # no info, which measures each row as a dense one
        return model.encode(X, sweeps, weights=self._weights(X)).cpu().numpy()

    def _learn(
        self, X: Any, init: Any, K: int, weights: Any = None
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """W, H and the summary of a fit."""
        model = nmf.NMF(**self._settings(K, init))
        # an error of zero would fall by as large a share of itself for ever
        fits = None if self.tol == 0 else lambda iteration: iteration.relative_error <= self.tol
        with silenced(errors.ConvergenceWarning):
            W, H = model.fit(X, callback=fits, weights=weights)
        info = model.fit_info_
        if info.stopped_by == "callback":
            info = replace(info, stopped_by="error")
        warn_of_max_iter(info.iterations, self.max_iter, self.tol)
        return W.cpu().numpy(), H.cpu().numpy(), info


def warn_of_max_iter(iterations: int, max_iter: int, tol: float) -> None:
    """Warn as scikit-learn does, under the same condition."""
    if iterations >= max_iter and tol > 0:
        warn(
            f"Maximum number of iterations {max_iter} reached. Increase it to improve convergence.",
            ConvergenceWarning,
        )


def warn(message: str, category: type[Warning]) -> None:
    """Give a warning that names the line of the caller's code."""
    errors.warn(message, category)


def norm_of(X: Any) -> float:
    """‖X‖ of an array or a sparse matrix."""
    if not hasattr(X, "tocsr"):
        return float(np.linalg.norm(X))
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    return float(np.linalg.norm(X.data))
