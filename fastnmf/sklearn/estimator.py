"""NMF and non_negative_factorization with scikit-learn's interface."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.sparse import issparse
from sklearn.base import _fit_context
from sklearn.utils import check_array
from sklearn.utils._param_validation import validate_parameter_constraints
from sklearn.utils.validation import _check_sample_weight

from ..planning.plan import Tuning
from ..solvers.registry import SOLVERS
from .base import DTYPES, OWN, SPARSE, BaseNMF, naming_what_helps, warn
from .inputs import readable
from .weights import seen_in, weighted_norm, with_samples


class NMF(BaseNMF):
    """Non-negative matrix factorization X ≈ W H with scikit-learn's interface.

    The objective is that of ``sklearn.decomposition.NMF``::

        ½ ‖X − W H‖² + alpha_W n_features P(W) + alpha_H n_samples P(H)
        P(F) = l1_ratio Σ F + ½ (1 − l1_ratio) ‖F‖²

    Parameters
    ----------
    n_components : int, 'auto' or None, default 'auto'
        Number of components. 'auto' is that of W or H if they are given, else, as None, the number
        of features.
    init : {'random', 'nndsvd', 'nndsvda', 'nndsvdar', 'custom'} or None, default None
        The start. None is 'nndsvda' if n_components ≤ min(n_samples, n_features), else 'random'.
        'custom' takes W, H or both from `fit_transform`; the one that is not given is the optimum
        for the other. All but 'custom' are scaled to X.
    solver : {'cd', 'mu', 'hals', 'pgd', 'anls'}, default 'cd'
        Coordinate descent, which fastnmf.NMF calls 'hals'; multiplicative updates; or another
        solver of fastnmf.
    beta_loss : 'frobenius' or 2, default 'frobenius'
        The loss. Others are an error that names scikit-learn's.
    tol : float, default 1e-4
        The fit has converged when ‖X − W H‖, with the penalties, fell by at most this share of
        itself over 10 iterations, see `stop`; or when ‖X − W H‖ ≤ tol ‖X‖. 0 never stops early.
    max_iter : int, default 200
        Largest number of iterations.
    random_state : int, RandomState or None, default None
        Seed of random numbers. None takes one from NumPy's global generator.
    alpha_W : float, default 0.0
        Weight of the penalty on W, at least 0.
    alpha_H : float or 'same', default 'same'
        Weight of the penalty on H, at least 0; 'same' is alpha_W.
    l1_ratio : float, default 0.0
        Share of the penalties that is l1, from 0 to 1.
    verbose : int, default 0
        Above 0: show a progress bar.
    shuffle : bool, default False
        True is an error that names scikit-learn's.
    stop : {'error', 'change'}, default 'error'
        What `tol` is compared with: the error, or as in fastnmf.NMF the change of both factors.
    accelerate : bool or 'auto', default 'auto'
        Extrapolate the factors between iterations. 'auto' does so where it pays, not with 'custom',
        with penalties or with 'mu', whose iterates are those of scikit-learn.
    unit_norm : bool, default False
        Keep components at Euclidean norm 1, so that a penalty on W alone has a minimum.
    revive : bool, default False
        Re-initialise dead components.
    device : str or torch.device, default 'cpu'
        Where to compute. Results are NumPy arrays.
    backend : str, default 'auto'
        What supplies the operations, see `fastnmf.available_backends`.
    max_memory : int or str, optional
        Bytes by which the process may grow, such as '2GB'.
    tuning : fastnmf.Tuning, optional
        How a fit is computed.
    missing_values : None or nan, default None
        With nan, entries of a dense X that are NaN are missing, in `fit` and in `transform`: the
        objective is that of the others. None: NaN is an error.

    Attributes
    ----------
    components_ : ndarray (n_components, n_features)
        H, the components.
    n_components_ : int
        Their number.
    reconstruction_err_ : float
        ‖X − W H‖ of the training data; weighted, where there are weights or missing values.
    n_iter_ : int
        Iterations done.
    n_features_in_ : int
        Number of features of the training data.
    feature_names_in_ : ndarray of str
        Their names, where the training data have names.
    fit_info_ : FitInfo
        fastnmf's summary of the fit. Print it.

    See Also
    --------
    fastnmf.NMF : The same computation with Overcomplete's interface: files, streams, checkpoints.
    MiniBatchNMF : Learn from mini-batches.

    Notes
    -----
    `transform` returns the optimum, by exact least squares: rows that have not converged after
    max_iter sweeps are solved by an active set.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnmf.sklearn import NMF
    >>> X = np.random.default_rng(0).random((20, 6))
    >>> model = NMF(2, random_state=0)
    >>> model.fit_transform(X).shape
    (20, 2)
    >>> model.components_.shape
    (2, 6)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseNMF._parameter_constraints,
        "shuffle": ["boolean"],
        "missing_values": [None, "nan"],
        **OWN,
    }

    def __init__(
        self,
        n_components: int | str | None = "auto",
        *,
        init: str | None = None,
        solver: str = "cd",
        beta_loss: float | str = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        shuffle: bool = False,
        stop: str = "error",
        accelerate: bool | str = "auto",
        unit_norm: bool = False,
        revive: bool = False,
        device: Any = "cpu",
        backend: str = "auto",
        max_memory: int | str | None = None,
        tuning: Tuning | None = None,
        missing_values: float | None = None,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.shuffle = shuffle
        self.stop = stop
        self.accelerate = accelerate
        self.unit_norm = unit_norm
        self.revive = revive
        self.device = device
        self.backend = backend
        self.max_memory = max_memory
        self.tuning = tuning
        self.missing_values = missing_values

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(
        self, X: Any, y: Any = None, W: Any = None, H: Any = None, sample_weight: Any = None
    ) -> np.ndarray:
        """Learn the components of X, and return its codes.

        Parameters
        ----------
        X : (n_samples, n_features), non-negative
            As for `fit`.
        y : ignored
            There for scikit-learn's interface.
        W : (n_samples, n_components), optional
            Codes to start from, with init='custom'.
        H : (n_components, n_features), optional
            Components to start from, with init='custom'. Neither is changed.
        sample_weight : (n_samples,), optional
            Weights of the squared errors of the samples, at least 0: 2 counts as two copies.

        Returns
        -------
        W : ndarray (n_samples, n_components)
            The codes.
        """
        self._refuse_unsupported()
        X = self._read(X)
        weights = self._weights(X, sample_weight)
        W, H, info = self._fit_to(X, W, H, weights)
        self.components_ = H
        self.n_components_ = len(H)
        self.n_iter_ = info.iterations
        self.reconstruction_err_ = info.relative_error * weighted_norm(X, weights)
        self.fit_info_ = info
        return W

    def _fit_to(self, X: Any, W: Any, H: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        self._n_components, init = self._start(X, W, H)
        return self._learn(X, init, self._n_components, weights)

    def _allowed(self, X: Any) -> dict[str, Any]:
        # what a sparse X stores is observed
        missing = self.missing_values is not None and not issparse(X)
        return {"ensure_all_finite": "allow-nan"} if missing else {}

    def _weights(self, X: Any, sample_weight: Any = None) -> Any:
        seen = None if self.missing_values is None else seen_in(X)
        if sample_weight is not None:
            given = {"dtype": X.dtype, "ensure_non_negative": True}
            sample_weight = _check_sample_weight(sample_weight, X, **given)
        return with_samples(seen, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing_values is not None
        return tags

    def _settings(self, K: int, init: Any = "auto") -> dict[str, Any]:
        settings = super()._settings(K, init)
        if self.accelerate == "auto" and SOLVERS[settings["solver"]].keeps_zeros:
            settings["accelerate"] = False
        return settings

    def _codes_for(self, X: Any, W: Any, H: Any) -> np.ndarray:
        """W for components H that are given and stay."""
        if W is not None:
            warn("When update_H=False, the provided initial W is not used.", RuntimeWarning)
        K = X.shape[1] if self.n_components is None else self.n_components
        fixed = self._factor(H, (K, X.shape[1]), "H", X.dtype)
        return self._encode(X, fixed, self.max_iter)


def non_negative_factorization(
    X: Any,
    W: Any = None,
    H: Any = None,
    n_components: int | str | None = "auto",
    *,
    init: str | None = None,
    update_H: bool = True,
    solver: str = "cd",
    beta_loss: float | str = "frobenius",
    tol: float = 1e-4,
    max_iter: int = 200,
    alpha_W: float = 0.0,
    alpha_H: float | str = "same",
    l1_ratio: float = 0.0,
    random_state: Any = None,
    verbose: int = 0,
    shuffle: bool = False,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Factorize X ≈ W H, or find W for given components.

    Parameters
    ----------
    X : (n_samples, n_features), non-negative
        An array, a data frame, lists, or a sparse matrix or array.
    W : (n_samples, n_components), optional
        Codes to start from, with init='custom'.
    H : (n_components, n_features), optional
        Components to start from, with init='custom'; with update_H=False the components.
    n_components, init, solver, beta_loss, tol, max_iter, alpha_W, alpha_H, l1_ratio, \
random_state, verbose, shuffle : as for `NMF`
        The parameters of the estimator.
    update_H : bool, default True
        False finds W for the components H: the optimum, as `NMF.transform`.
    **options : of fastnmf
        Such as ``stop='change'``: parameters of `NMF` beyond scikit-learn's.

    Returns
    -------
    W : ndarray (n_samples, n_components)
        The codes.
    H : ndarray (n_components, n_features)
        The components; those that are given if they are not updated.
    n_iter : int
        Iterations done; 1 with update_H=False, where W is solved for exactly.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnmf.sklearn import non_negative_factorization
    >>> X = np.array([[1, 1], [2, 1], [3, 1.2], [4, 1], [5, 0.8], [6, 1]])
    >>> W, H, n_iter = non_negative_factorization(X, n_components=2, init="random", random_state=0)
    >>> bool(np.abs(X - W @ H).max() < 0.05)
    True
    """
    estimator = NMF(
        n_components,
        init=init,
        solver=solver,
        beta_loss=beta_loss,
        tol=tol,
        max_iter=max_iter,
        random_state=random_state,
        alpha_W=alpha_W,
        alpha_H=alpha_H,
        l1_ratio=l1_ratio,
        verbose=verbose,
        shuffle=shuffle,
        **options,
    )
    updates = {"update_H": ["boolean"]}
    validate_parameter_constraints(
        updates, {"update_H": update_H}, caller_name="non_negative_factorization"
    )
    estimator._validate_params()
    estimator._refuse_unsupported()
    X = readable(X)
    given = {"ensure_non_negative": True, "input_name": "X", **estimator._allowed(X)}
    with naming_what_helps():
        X = check_array(X, accept_sparse=SPARSE, dtype=DTYPES, estimator="NMF", **given)
    if update_H:
        W, H, info = estimator._fit_to(X, W, H, estimator._weights(X))
        return W, H, info.iterations
    codes = estimator._codes_for(X, W, H)
    return codes, H if isinstance(H, np.ndarray) else check_array(H), 1
