"""What the models share: fit, online learning, codes, files, and what Overcomplete's users replace.
The classes that users see have a constructor, a constraint of their dictionaries, and starts."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import checks
from ..data.arrays import read_matrix
from ..distributed import ALONE, Processes
from ..engine.state import Callback
from ..errors import InvalidInput, NotFitted
from ..fit.options import Options, destination, with_run
from ..isolation import isolated, one_at_a_time
from ..planning.memory import refuse_too_large
from ..solvers.constraints import Constraint
from . import own_parts
from .hints import refuse_unknown
from .own_parts import Solve
from .shown import ShownModel

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..results.encoding import EncodeInfo


class Factorization(ShownModel):
    """A model A ≈ Z D with codes Z ≥ 0. Its class has the attribute of each of OPTIONS, and a
    constructor that calls `_take_options`."""

    _SOLVERS: ClassVar[dict[str, Solve]] = {}
    # options that Overcomplete gives to a solver function beside max_iter and tol
    passed_on: ClassVar[dict[str, tuple[str, ...]]] = {"fit": (), "encode": ("verbose",)}
    # options that only its class has
    _OWN_OPTIONS: ClassVar[tuple[str, ...]] = ()

    @one_at_a_time
    def fit(
        self,
        A: Any,
        max_iter: int | None = None,
        *,
        weights: Any = None,
        codes: str | os.PathLike[str] | None = "memory",
        callback: Callback | None = None,
        max_seconds: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        validation: Any = None,
        **unknown: Any,
    ) -> tuple[Tensor | None, Tensor]:
        """Learn the dictionary of A.

        Parameters
        ----------
        A : (n, d), non-negative in NMF
            A tensor, an array or a memory map; a data frame, lists of numbers, or an array of
            another library; a sparse matrix of SciPy or torch, or an AnnData, of which X is taken;
            the path of a .npy, .safetensors, .npz or .h5ad file, of a folder, or a list of paths; a
            DataLoader, or an iterable of batches. Data that do not fit in memory are read in every
            iteration. float64 is computed in float64, all else in float32.
        max_iter : int, optional
            Largest number of iterations; by default the constructor's.
        weights : matrix, optional
            Weights w ≥ 0 of the squared errors, ½ Σ w (A − Z D)²: (n, 1) for rows, (1, d) for
            features or (n, d) for entries, bool or numbers, a tensor, an array, a sparse matrix,
            which is 0 where nothing is stored, or the path of a file. The largest is from 1e-30 to
            1e30. What has the weight 0 is missing: it is ignored, and may be NaN. 'stored': of a
            sparse A only the entries that it stores are observed.
        codes : 'memory', 'sparse', path or None, default 'memory'
            Where the codes go: to memory; to memory in compressed rows, as a CSR tensor of torch;
            to this .npy file, then Z is a map of it on the CPU; to this .npz file of scipy.sparse,
            then Z is a CSR tensor on the CPU; or nowhere, then each pass computes them anew and Z
            is None. Sparse codes are for fits with a penalty, and never dense as a whole: rows are
            processed in chunks.
        callback : callable, optional
            A function that is called with an `Iteration` after each iteration. The fit ends when it
            returns a true value.
        max_seconds : float, optional
            Time limit in seconds, above 0, checked between iterations.
        checkpoint : path, optional
            A .safetensors file for progress, written whole or not at all. It is saved at the end of
            an iteration once ``Tuning.checkpoint_seconds`` have passed, and before the process
            leaves on Ctrl-C or SIGTERM.
        resume : bool, default False
            Continue from the file `checkpoint`, to the same bits as a fit that was not interrupted,
            on the same machine and with as many threads. Without such a file the fit starts.
            max_iter and tol may differ from those before.
        validation : (m, d), path or float, optional
            Rows that the fit is not trained on, as what `A` may be, or a fraction of the rows of A,
            which are drawn by `seed` and left out; Z has their exact codes in their places. Every
            10 iterations the error and L0 of their exact codes go into the history. With
            ``stop='validation'`` the fit ends where they stop to improve, with the best dictionary.

        Returns
        -------
        Z : Tensor (n, K) or None
            The codes.
        D : Tensor (K, d)
            The dictionary. Both are on the model's device, and contiguous where they are dense.

        Raises
        ------
        InvalidInput
            For data, options or a checkpoint that cannot be used.
        BackendUnavailable
            If a backend that was named cannot be used.
        ArithmeticError
            If A is too large or too small to be squared, or the factors overflow.
        OSError
            If a file cannot be written.

        Notes
        -----
        A fit that fails or is interrupted leaves the model and the file of codes as they were.

        With `distributed`, A holds the rows of this process, which may be none, and Z their codes.
        A file of codes is named Z-00000-of-00004.npy for 'Z.npy', and a checkpoint likewise. All
        processes call fit with the same options and get the same D. Options, data and files that
        one of them cannot use are an InvalidInput in all. If one fails otherwise or ends, the
        others raise ConnectionError, at the latest after the timeout of the default group.

        Examples
        --------
        >>> import torch
        >>> from fastnmf import NMF
        >>> A = torch.rand(100, 8, generator=torch.Generator().manual_seed(0))
        >>> errors = []
        >>> nmf = NMF(3, seed=0)
        >>> Z, D = nmf.fit(A, callback=lambda iteration: errors.append(iteration.relative_error))
        >>> errors[-1] < errors[0]
        True
        """
        from ..fit import batch

        refuse_unknown(unknown, "fit", _names(Factorization.fit))
        run = {"weights": weights, "codes": codes, "callback": callback}
        run |= {"max_seconds": max_seconds, "checkpoint": checkpoint, "resume": resume}
        run["validation"] = validation
        options = with_run(self._options(), max_iter, **run)
        if (function := own_parts.own_function(self)) is not None:
            return self._fit_by(function, A, options)
        A, pair = own_parts.own_start(self, A)
        options = options.starting_from(pair)
        fitted = batch.fit(A, options)
        self.D, self.offset_, self.fit_info_ = fitted.D, fitted.offset, fitted.info
        self._set_fitted(**fitted.info.as_dict())
        self._take_mixture(fitted.W)
        return fitted.Z, fitted.D

    @one_at_a_time
    def partial_fit(
        self, A: Any, *, weights: Any = None, half_life: float | None = None, **unknown: Any
    ) -> Self:
        """Learn from a batch of rows that are seen once (online learning).

        Parameters
        ----------
        A : (m, d), non-negative in NMF
            What `fit` takes, except paths; m is at least 1.
        weights : matrix, optional
            Weights of the rows of the batch, (m, 1), or of features, (1, d), as in `fit`. Give
            the same weights of features in every call.
        half_life : float, optional
            Rows after which a row counts half, above 0; by default 16 rows per concept. math.inf
            never forgets. Give the same in every call.

        Returns
        -------
        model
            The model itself; `online_info_` is the summary so far.

        Raises
        ------
        InvalidInput
            For data or options that cannot be used.
        ArithmeticError
            If A is too large or too small to be squared.

        Notes
        -----
        The codes of the batch, by the model's solver, are added to the statistics ZᵀZ (K, K) and
        ZᵀA (K, d). Older rows lose half their weight in them every `half_life` rows. The dictionary
        follows by half-steps in normal form.

        The first batch gives the start, by `init`. A pair (Z0, D0) must fit it; load_dictionary(D0)
        takes any batch. A batch of zeros leaves the start to the next one. After `fit` or
        `load_dictionary`, learning continues from their dictionary. It counts as much as the rows
        of a half-life, at most 16 per concept. A concept that no row has used stays as it is.

        The statistics are in copies and pickles of the model, but not in its state_dict; `fit`
        drops them. max_iter and tol are not used. A call that fails or is interrupted leaves the
        model as it was.

        With `distributed`, the batch is the rows of all processes in their order. A holds those of
        this process: it may have no rows (a tensor (0, d)), or be a path. All processes call
        partial_fit, with equal models, and get the same D. If one fails, all raise an error and
        their models stay as they were. If one ends, the others raise ConnectionError.

        References
        ----------
        .. [1] J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online learning for matrix factorization
           and sparse coding", 2010.

        Examples
        --------
        >>> import torch
        >>> from fastnmf import NMF
        >>> nmf = NMF(3, seed=0)
        >>> for batch in torch.rand(100, 8).split(20):
        ...     nmf = nmf.partial_fit(batch)
        >>> nmf.online_info_.rows
        100
        """
        from ..fit import online
        from ..fit.weighted.online import partial_fit

        refuse_unknown(unknown, "partial_fit", _names(Factorization.partial_fit))
        half_life = checks.half_life(half_life)
        device = torch.device(self.device) if self.D is None else self.D.device
        # a group of their own would take longer to make than a small batch
        processes = Processes.present(device) if self.distributed else ALONE
        kept = self._gram, self._cross, self.online_info_, self.offset_, self._totals
        before = online.Learned(self.D, *kept)
        options = replace(self._options(), weights=weights)
        if own_parts.own_function(self) is not None:
            own_parts.refuse_for_own_function(self, "partial_fit")
        if self.D is None:
            A, pair = own_parts.own_start(self, A)
            options = options.starting_from(pair)
        given = A, options, before, half_life, device, processes
        learned = partial_fit(*given)
        assert learned.info is not None
        self.D, self.offset_ = learned.D, learned.offset
        self.fit_info_ = None
        self._set_fitted(**learned.info.as_dict())
        self._gram, self._cross, self._totals = learned.gram, learned.cross, learned.totals
        self.online_info_ = learned.info
        return self

    @isolated
    def encode(
        self,
        A: Any,
        max_iter: int = 300,
        tol: float | None = None,
        *,
        Z0: Any = None,
        weights: Any = None,
        method: str = "auto",
        top_k: int | None = None,
        refit: bool = False,
        codes: str | os.PathLike[str] = "memory",
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, EncodeInfo]:
        """Compute codes for A with a fixed dictionary (scikit-learn: ``transform``).

        They are exact: with any method but 'sweeps' the optimum of a convex problem, whatever the
        model's solver is.

        Parameters
        ----------
        A : (…, d), non-negative in NMF
            What `fit` takes. A tensor or an array may have any number of leading dimensions, and no
            rows.
        max_iter : int, default 300
            Largest number of sweeps. With method='sweeps' the codes are then those that they are;
            otherwise rows that have not converged are solved exactly. 0 returns the start.
        tol : float, optional
            Only with method='sweeps': stop when ‖ΔZ‖ ≤ tol ‖Z‖; by default a hundredth of the
            model's tol.
        Z0 : (n, K), optional
            Codes to start from, dense or sparse. They change the time, and the codes only with
            method='sweeps'. By default all concepts start alike, so that the same A gives the same
            codes.
        weights : matrix, optional
            Weights of the squared errors as in `fit`: (n, 1), (1, d), (n, d) or 'stored'; of A
            (…, d) they may have its leading dimensions. What has the weight 0 is ignored, and may
            be NaN; rows without any weight get zero codes. With weights of entries codes are exact.
        method : {'auto', 'exact', 'sweeps'}, default 'auto'
            'exact' solves each row by an active set. 'auto' does so, or sweeps first over all rows
            where that is faster, as with fewer concepts than features. 'sweeps' are iterations of
            the model's solver, as in Overcomplete: their error never rises with `max_iter`, and
            they may end before the optimum.
        top_k : int, optional
            At most that many concepts for each row, by orthogonal matching pursuit as in `nnls`:
            the steepest concept enters, and codes become the optimum on the support, with the
            penalty; by default the model's top_k. Where the model has one, concepts are then
            exchanged while that lowers the error of a row, as in its fit. `max_iter` and `tol` have
            no effect. Not with Z0 or another method.
        refit : bool, default False
            Replace the coefficients of each row by the least squares on its active concepts,
            without the penalty, which shrinks them. Concepts may leave, none enters.
        codes : 'memory', 'sparse' or path, default 'memory'
            Where the codes go: to memory; to memory in compressed rows, as a CSR tensor of torch;
            to this .npy file, then Z is a map of it on the CPU; or to this .npz file of
            scipy.sparse, then Z is a CSR tensor on the CPU.
        return_info : bool, default False
            Also return how it ended.

        Returns
        -------
        Z : Tensor (…, K)
            argmin ½ ‖A − Z D‖² + alpha_Z d P(Z) over Z ≥ 0. Without 'sweeps' it is differentiable
            with respect to A, any number of times, if A requires a gradient; then A must be in
            memory. Where concepts in use depend on each other, the gradient is that of the
            solution of least norm.
        info : EncodeInfo
            What ran, iterations, whether all rows are solved, the KKT residual of each row, and the
            relative error. Only with `return_info`. Print it.

        Warns
        -----
        ConvergenceWarning
            If rows could not be solved, as their concepts nearly depend on each other; with
            'sweeps', if max_iter is reached before `tol`.

        Raises
        ------
        NotFitted
            If there is no dictionary yet.
        InvalidInput
            For data that cannot be used.

        Examples
        --------
        >>> import torch
        >>> from fastnmf import NMF
        >>> nmf = NMF(2).load_dictionary(torch.eye(2, 5))
        >>> nmf.encode(torch.rand(3, 4, 5)).shape
        torch.Size([3, 4, 2])
        """
        from ..fit import encode, rows
        from ..fit.weighted.codes import encode_weighted

        D = self.get_dictionary()
        iterations = checks.whole("max_iter", max_iter, at_least=0) or 0
        stop_at = self.tol / 100 if tol is None else checks.tolerance(tol)
        wants_info = checks.flag("return_info", return_info)
        most = checks.whole("top_k", top_k, at_least=1, optional=True)
        refits = checks.flag("refit", refit)
        kind = checks.one_of("method", method, encode.METHODS)
        most, of_model = most or self.top_k, most is None
        exchanges = self.top_k is not None
        A, weights, leading = rows.with_weights_as_rows(A, weights, D.shape[1])
        run = encode.Run(kind, iterations, stop_at, most, refits, of_model, weights, exchanges)
        rows.refuse_leading(destination(codes, optional=False), leading, D.shape[1])
        if (function := own_parts.own_function(self)) is not None:
            asked = {"codes": codes, "method": method, "top_k": top_k, "refit": refits}
            own_parts.refuse_asked(self, **asked, weights=weights, return_info=wants_info)
            Z = own_parts.encode_by(function, self, A, Z0, iterations, tol)
            return Z if leading is None else Z.reshape(*leading, len(D))
        if Z0 is None and run.top_k is None:
            A, Z0 = own_parts.own_codes(self, A)
        given = A, encode.Fixed(D, self.offset_), self._options(), run
        Z, info = encode_weighted(*given, Z0=Z0, codes=codes, return_info=wants_info)
        Z = Z if leading is None else Z.reshape(*leading, len(D))
        return (Z, info) if wants_info and info is not None else Z

    @isolated
    def decode(self, Z: Any, out: str | os.PathLike[str] | None = None) -> Tensor:
        """Compute the reconstruction Z D of codes (scikit-learn: ``inverse_transform``).

        Parameters
        ----------
        Z : (…, K), of any sign
            Codes, as what `fit` takes, dense or sparse. A tensor or an array may have any number of
            leading dimensions, and no rows.
        out : path, optional
            A .npy file to write to. Then a map of it is returned, on the CPU, and Z must not
            require a gradient.

        Returns
        -------
        Tensor (…, d)
            On the model's device; differentiable with respect to Z.

        Raises
        ------
        NotFitted
            If there is no dictionary yet.
        InvalidInput
            For codes that cannot be used.

        Examples
        --------
        >>> import torch
        >>> from fastnmf import NMF
        >>> NMF(2).load_dictionary(torch.eye(2, 3)).decode(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2., 0.]])
        """
        from ..fit import encode, rows

        D = self.get_dictionary()
        budget = self._options().budget(D.device, width=D.shape[1])
        Z, leading = rows.as_rows(Z, len(D))
        A = encode.decode(Z, encode.Fixed(D, self.offset_), budget, out)
        return A if leading is None else A.reshape(*leading, D.shape[1])

    def get_dictionary(self) -> Tensor:
        """Return the dictionary.

        Returns
        -------
        Tensor (K, d)
            D itself, not a copy.

        Raises
        ------
        NotFitted
            If there is no dictionary yet.
        """
        self._assert_fitted()
        assert self.D is not None
        if self.D.is_meta:
            raise NotFitted(
                "the dictionary is on the meta device and holds no values: load one by "
                "load_state_dict(…, assign=True), or move the model before it is fitted"
            )
        return self.D

    @one_at_a_time
    def load_dictionary(self, D: Any, offset: Any = None) -> Self:
        """Use a given dictionary; the model is then fitted.

        Parameters
        ----------
        D : (K, d), non-negative in NMF
            A tensor or an array. It is copied.
        offset : (d,), optional
            The offset of a model with ``offset=True``, by default zeros. It is copied.

        Returns
        -------
        model
            The model itself.

        Raises
        ------
        InvalidInput
            For a matrix that cannot be used, or has another number of rows than `nb_concepts`.
        """
        if offset is not None and not self.offset:
            raise InvalidInput(
                "the model has no offset to load; make it by SemiNMF(…, offset=True), or leave "
                "offset out"
            )
        D = self._checked_dictionary(D, self.device).detach().clone()
        row = self._checked_offset(offset, D, self.device).clone() if self.offset else None
        self.D, self.offset_, self.fit_info_ = D, row, None
        self._set_fitted()
        return self

    @isolated
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model (D, solver, tol, penalties, fit_info_) to a file.

        Parameters
        ----------
        path : path
            A .safetensors file. It is written whole or not at all.

        Raises
        ------
        NotFitted
            If there is no dictionary yet.
        InvalidInput
            For another suffix.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import tempfile, torch
        >>> from fastnmf import NMF
        >>> nmf = NMF(2).load_dictionary(torch.rand(2, 5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nmf.save(f"{folder}/model.safetensors")
        ...     NMF.load(f"{folder}/model.safetensors").fitted
        True
        """
        from ..results import report
        from . import saved

        D = self.get_dictionary()
        names = ("solver", "tol", *saved.PENALTIES, *saved.SPARSITY, *self._OWN_OPTIONS)
        # nb_concepts may have been set for another fit
        options = {"nb_concepts": len(D), **{name: getattr(self, name) for name in names}}
        content = saved.Saved(
            options,
            D,
            self.fit_info_,
            model=self.public_name(),
            W=self._mixture(),
            offset=self.offset_,
            made=report.facts(),
        )
        saved.write(path, content)

    @classmethod
    @isolated
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : path
            The .safetensors file.
        device : str or torch.device, default 'cpu'
            Where to compute and to keep D.

        Returns
        -------
        NMF
            The fitted model.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        InvalidInput
            For a file that is damaged, holds something else, or comes from a newer version.
        """
        from . import saved

        found = saved.read(path)
        found.check_model(path, cls.public_name())
        options: dict[str, Any] = {"device": device, **found.options}
        model = cls(**options).load_dictionary(found.D, found.offset)
        model.fit_info_ = found.info
        model._take_mixture(found.W)
        return model

    @property
    def alpha_Z_(self) -> float | None:
        """The penalty of the codes of the last `fit`: `alpha_Z`, or the one that was found for
        `target_l0`; None without a summary of a fit."""
        return None if self.fit_info_ is None else self.fit_info_.alpha_Z

    @property
    def solver_fn(self) -> Solve:
        """The solver as a function (A, Z, D, …) → (Z, D), as Overcomplete's models have it.

        A function of your own may be assigned: fit and encode then call it as Overcomplete does.
        """
        return own_parts.function_of(self)

    @solver_fn.setter
    def solver_fn(self, function: Solve) -> None:
        self._solver_fn = checks.function("solver_fn", function)

    def extra_repr(self) -> str:
        """Return what repr shows: concepts, device, solver, and whether the model is fitted."""
        state = "fitted" if self.fitted else "not fitted"
        return f"{self.nb_concepts}, device={str(self.device)!r}, solver={self.solver!r}, {state}"

    def _constraint(self) -> Constraint:
        """The constraint of the dictionary, as the attributes are now."""
        return self.constraint

    def _mixture(self) -> Tensor | None:
        """The rows of A that concepts are mixtures of, W (K, n), sparse, in models that have it."""
        return None

    def _take_mixture(self, W: Tensor | None) -> None:
        """Keep W (K, n), in models that have it."""

    def _options(self) -> Options:
        """The options as the attributes are now."""
        given: dict[str, Any] = {name: getattr(self, name) for name in OPTIONS}
        given |= {"solver": own_parts.native_solver(self), "constraint": self._constraint()}
        try:
            return (_checked if isinstance(self.init, str) else Options)(**given)
        except TypeError:
            # not hashable, or what Options raises
            return Options(**given)

    def _take_options(self, given: dict[str, Any], unknown: dict[str, Any]) -> None:
        """Check the arguments of the constructor, and keep them."""
        own_parts.refuse_unknown_options(self, unknown)
        solver = given["solver"]
        self.solver = solver
        given = {**given, "solver": own_parts.native_solver(self), "constraint": self._constraint()}
        checked = Options(**given)
        for name in OPTIONS:
            setattr(self, name, getattr(checked, name))
        self.solver = solver
        own_parts.own_function(self)

    @classmethod
    def public_name(cls) -> str:
        """The name of the model of fastnmf that this class is, or extends."""
        return cls.public_class().__name__

    def _fit_by(self, function: Solve, A: Any, options: Options) -> tuple[Tensor, Tensor]:
        """Fit by a solver function of the user's; there is no summary."""
        if options.codes is None:
            own_parts.refuse_for_own_function(self, "codes=None")
        own_parts.refuse_asked(self, **{name: getattr(options, name) for name in OF_A_RUN})
        Z, D = own_parts.fit_by(function, self, self._matrix(A), options.iterations)
        self.D, self.offset_, self.fit_info_ = D.detach(), None, None
        self._set_fitted()
        return Z.detach(), self.D

    def _matrix(self, A: Any) -> Tensor:
        """A, beside which codes and a dictionary fit in memory."""
        A = read_matrix(A, self.device, self.expected())
        names, K = ("the codes", "the dictionary"), self.nb_concepts
        sizes = {name: m * K * A.itemsize for name, m in zip(names, A.shape, strict=True)}
        refuse_too_large(sizes, A.device, "give fewer concepts")
        return A


def _names(function: Callable[..., Any]) -> list[str]:
    """The arguments of a function that are given by name."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]


# a call of a few rows takes as long as five checks; factors to start from are not kept
_checked = functools.lru_cache(maxsize=64, typed=True)(Options)
OF_A_RUN = (
    "weights",
    "codes",
    "callback",
    "max_seconds",
    "checkpoint",
    "resume",
    "validation",
)
# the constructor's arguments
OPTIONS = tuple(
    field.name for field in fields(Options) if field.name not in (*OF_A_RUN, "constraint")
)
