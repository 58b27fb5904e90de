"""MiniBatchNMF with scikit-learn's interface: the loop over mini-batches, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval
from torch import Tensor

from ..data.dataset import Data
from ..data.storage import InMemory
from ..errors import FastnmfWarning, InvalidInput, silenced
from ..fit.options import Options, generator
from ..init.start import start
from ..isolation import isolated
from .base import OWN, BaseNMF, warn_of_max_iter
from .batches import Matrix, Steps, as_array, error_of, half_square, matrix_of

_OWN = ("device", "backend")


class MiniBatchNMF(BaseNMF):
    """Non-negative matrix factorization X ≈ W H by mini-batches, with scikit-learn's interface.

    The objective is that of `NMF`. A step updates the codes of a batch, then the components from
    sums over all batches, in which older ones count less. With the default solver these are the
    iterates of ``sklearn.decomposition.MiniBatchNMF``.

    Parameters
    ----------
    n_components, init, beta_loss, max_iter, alpha_W, alpha_H, l1_ratio, random_state, verbose : \
as for `NMF`
        The parameters of `NMF`; max_iter counts passes over the data.
    batch_size : int, default 1024
        Rows of a mini-batch.
    tol : float, default 1e-4
        The fit has converged when ‖ΔH‖ ≤ tol ‖H‖ in a step. 0 never stops so.
    max_no_improvement : int or None, default 10
        The fit has converged after that many steps without improvement of the objective, averaged
        over the steps of about one pass. None never stops so.
    forget_factor : float, default 0.7
        Weight of what was learned one pass ago, from 0 to 1.
    fresh_restarts : bool, default False
        Find the codes of a batch anew in each step.
    fresh_restarts_max_iter : int, default 30
        Largest number of half-steps for these codes, and for those of a batch of `partial_fit`.
    transform_max_iter : int or None, default None
        Largest number of sweeps of `transform`, before rows that have not converged are solved
        exactly; None is max_iter.
    solver : {'mu', 'hals', 'cd', 'pgd', 'anls'}, default 'mu'
        Method of the half-steps. 'mu' gives scikit-learn's iterates; 'hals' leaves a lower error.
    device : str or torch.device, default 'cpu'
        Where to compute. Results are NumPy arrays.
    backend : str, default 'auto'
        What supplies the operations, see `fastnmf.available_backends`.

    Attributes
    ----------
    components_ : ndarray (n_components, n_features)
        H, the components.
    n_components_ : int
        Their number.
    reconstruction_err_ : float
        ‖X − W H‖ of the training data.
    n_iter_, n_steps_ : int
        Passes that were begun, and mini-batches that were used.
    n_features_in_, feature_names_in_
        As for `NMF`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnmf.sklearn import MiniBatchNMF
    >>> X = np.random.default_rng(0).random((50, 6))
    >>> MiniBatchNMF(2, batch_size=10, random_state=0, tol=0.01).fit_transform(X).shape
    (50, 2)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseNMF._parameter_constraints,
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_no_improvement": [Interval(Integral, 1, None, closed="left"), None],
        "forget_factor": BaseNMF._parameter_constraints["l1_ratio"],
        "fresh_restarts": ["boolean"],
        "fresh_restarts_max_iter": [Interval(Integral, 1, None, closed="left")],
        "transform_max_iter": [Interval(Integral, 1, None, closed="left"), None],
        **{name: OWN[name] for name in _OWN},
    }

    def __init__(
        self,
        n_components: int | str | None = "auto",
        *,
        init: str | None = None,
        batch_size: int = 1024,
        beta_loss: float | str = "frobenius",
        tol: float = 1e-4,
        max_no_improvement: int | None = 10,
        max_iter: int = 200,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        forget_factor: float = 0.7,
        fresh_restarts: bool = False,
        fresh_restarts_max_iter: int = 30,
        transform_max_iter: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
        solver: str = "mu",
        device: Any = "cpu",
        backend: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.batch_size = batch_size
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.max_iter = max_iter
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.forget_factor = forget_factor
        self.fresh_restarts = fresh_restarts
        self.fresh_restarts_max_iter = fresh_restarts_max_iter
        self.transform_max_iter = transform_max_iter
        self.random_state = random_state
        self.verbose = verbose
        self.solver = solver
        self.device = device
        self.backend = backend

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> np.ndarray:
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

        Returns
        -------
        W : ndarray (n_samples, n_components)
            The codes.
        """
        self._refuse_unsupported()
        X = self._read(X)
        self._n_components, init = self._start(X, W, H)
        codes, steps = self._run(X, init)
        per_pass = -(-X.shape[0] // min(self.batch_size, X.shape[0]))
        self.n_steps_, self.n_iter_ = steps, -(-steps // per_pass)
        warn_of_max_iter(self.n_iter_, self.max_iter, self.tol)
        return codes

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> MiniBatchNMF:
        """Learn from X as one mini-batch.

        Parameters
        ----------
        X : (n_samples, n_features), non-negative
            As for `fit`.
        y : ignored
            There for scikit-learn's interface.
        W : (n_samples, n_components), optional
            As for `fit_transform`; in the first call only. The codes are found anew.
        H : (n_components, n_features), optional
            Components to start from, with init='custom'; in the first call only.

        Returns
        -------
        MiniBatchNMF
            The estimator itself.
        """
        self._refuse_unsupported()
        begins = not hasattr(self, "components_")
        X = self._read(X, reset=begins)
        init = "auto"
        if begins:
            self._n_components, init = self._start(X, W, H)
        else:
            X = X.astype(self.components_.dtype, copy=False)
        self._step(X, init, begins)
        return self

    @property
    def _sweeps(self) -> int:
        return self.max_iter if self.transform_max_iter is None else self.transform_max_iter

    def _options(self, init: Any) -> Options:
        return Options(**self._settings(self._n_components, init))

    def _begin(self, A: Matrix, options: Options) -> tuple[Tensor, Tensor]:
        """W and H of the start."""
        data = Data(A)
        W = InMemory(data.like.new_empty(len(A), options.nb_concepts))
        H = start(data, W, options.nb_concepts, options.init, generator(options.seed))
        return W.Z, H

    def _weight(self, n: int) -> float:
        """The weight that sums keep in a step, with n rows in a pass."""
        return self.forget_factor ** (min(self.batch_size, n) / n)

    @isolated
    @torch.no_grad()
    def _run(self, X: Any, init: Any) -> tuple[np.ndarray, int]:
        """Learn by passes over X; the codes, and the steps that were done."""
        options = self._options(init)
        A, n = matrix_of(X, options.device), X.shape[0]
        W, H = self._begin(A, options)
        learning, keep = Steps(options, H), self._weight(n)
        sums, size = learning.begin(H), min(self.batch_size, n)
        ending = _Ending(n, size, self.tol, self.max_no_improvement, self.verbose > 0)
        ending.most = self.max_iter * -(-n // size)
        batches = [(rows, A[rows]) for rows in gen_batches(n, size)]
        halves = [half_square(Xi) for _, Xi in batches]
        for number in range(1, ending.most + 1):
            (batch, Xi), before = batches[(number - 1) % len(batches)], H
            if self.fresh_restarts:
                given = self.fresh_restarts_max_iter, self.tol
                W[batch] = learning.solve(Xi, H, *given)
            else:
                learning.code_(W[batch], Xi, H)
            H, sums, cost = learning.learn(Xi, W[batch], H, sums, keep)
            cost = (cost + halves[(number - 1) % len(batches)]) / len(Xi)
            if ending.met(number, cost, len(Xi), before, H):
                break
        self._keep(H, sums, keep)
        codes = as_array(W)
        if self.fresh_restarts:
            codes = self._encode(X, self.components_, self._sweeps)
            W = torch.from_numpy(codes).to(H)
        self.reconstruction_err_ = error_of(A, W, H)
        return codes, number

    @isolated
    @torch.no_grad()
    def _step(self, X: Any, init: Any, begins: bool) -> None:
        """Learn from X as one batch."""
        options = self._options(init)
        A = matrix_of(X, options.device)
        if begins:
            with silenced(FastnmfWarning):
                H = self._begin(A, options)[1]
        else:
            H = torch.from_numpy(self.components_).to(options.device)
        learning = Steps(options, H)
        if not begins and not learning.goes_on_from(self._sums):
            raise InvalidInput(
                f"solver={self.solver!r} needs other sums over batches than the solver with which "
                "learning began: set that again, or begin anew with sklearn.base.clone(model)"
            )
        if begins:
            self.n_steps_ = 0
            self._sums, self._kept = learning.begin(H), self._weight(X.shape[0])
        W = learning.solve(A, H, self.fresh_restarts_max_iter, self.tol)
        H, sums, _ = learning.learn(A, W, H, self._sums, self._kept)
        self._keep(H, sums, self._kept)
        self.n_steps_ += 1

    def _keep(self, H: Tensor, sums: Any, weight: float) -> None:
        self.components_ = as_array(H)
        self.n_components_ = len(H)
        self._sums, self._kept = sums, weight


@dataclass
class _Ending:
    """When learning by passes over n rows ends: if the components change by at most tol, or the
    smoothed objective has not improved for some steps."""

    n: int
    size: int
    tol: float
    patience: int | None
    prints: bool
    most: int = 0
    smoothed: float | None = None
    best: float | None = None
    waited: int = 0

    def met(self, number: int, cost: float, rows: int, before: Tensor, H: Tensor) -> bool:
        """Whether step `number` is the last. cost: the mean objective of its rows before it."""
        place = f"step {number}/{self.most}"
        if number == 1:
            # before the components were learned
            self._print(f"Minibatch {place}: mean batch cost: {cost}")
            return False
        weight = min(rows / (self.n + 1), 1)
        old = cost if self.smoothed is None else self.smoothed
        self.smoothed = old * (1 - weight) + cost * weight
        self._print(f"Minibatch {place}: mean batch cost: {cost}, ewa cost: {self.smoothed}")
        if self.tol > 0 and float((H - before).norm()) <= self.tol * float(H.norm()):
            self._print(f"Converged (small H change) at {place}")
            return True
        improves = self.best is None or self.smoothed < self.best
        self.waited = 0 if improves else self.waited + 1
        self.best = self.smoothed if improves else self.best
        if self.patience is not None and self.waited >= self.patience:
            self._print(f"Converged (lack of improvement in objective function) at {place}")
            return True
        return False

    def _print(self, line: str) -> None:
        if self.prints:
            print(line)
