"""NMF: the class that users see, a torch module with Overcomplete's interface."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..data.arrays import Expected, as_numpy32, read_matrix
from ..distributed import ALONE, Processes
from ..engine.state import Callback
from ..errors import InvalidInput, NotFitted
from ..fit.options import Options, refuse_unknown, with_run
from ..init import start as starts
from ..planning.plan import Tuning
from ..results.info import FitInfo, OnlineInfo
from ..solvers.registry import SOLVERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what scikit-learn's users may look for, and what it is here
_HINTS = {
    "transform": "encode(A)",
    "fit_transform": "fit(A), which returns (Z, D)",
    "inverse_transform": "decode(Z)",
    "components_": "get_dictionary() or D",
    "reconstruction_err_": "fit_info_.relative_error",
    "n_iter_": "fit_info_.iterations",
}


class NMF(nn.Module):
    """Non-negative matrix factorization A ≈ Z D, with codes Z ≥ 0 and a dictionary D ≥ 0.

    A (n, d) holds n rows of d features, Z (n, K) a code for each row, D (K, d) one *concept* (a
    component, in scikit-learn's words) in each row. `fit` minimises

        ½ ‖A − Z D‖² + alpha_Z d P(Z) + alpha_D n P(D),
        P(F) = l1_ratio Σ F + ½ (1 − l1_ratio) ‖F‖²,

    with the scaling of scikit-learn's NMF (alpha_W, alpha_H). The interface is that of Overcomplete's
    NMF; options beyond it are given by name.

    Parameters
    ----------
    nb_concepts : int
        K, the number of concepts, from 1 to any number; K > d is fine.
    device : str or torch.device, default 'cpu'
        Where to compute, and to keep D; follows ``.to()``.
    solver : {'hals', 'mu', 'pgd', 'anls'}, default 'hals'
        The method of the half-steps: hierarchical alternating least squares, multiplicative
        updates, projected gradient with momentum, or exact non-negative least squares.
    tol : float, default 1e-4
        Stop when ‖ΔZ‖ ≤ tol ‖Z‖ in an iteration (or see `stop`); 0 never stops early.
    verbose : bool, default False
        Show a bar with iteration, relative change and relative error.
    max_iter : int, optional
        Iterations of `fit`, at most; 500 by default.
    init : {'auto', 'random', 'nndsvda', 'rows', 'spread'} or (Z0, D0), default 'auto'
        The start: 'auto' is 'nndsvda' if K ≤ min(n, d), else 'random'; 'rows' and 'spread' take
        rows of A as concepts, any or such as differ. All are scaled to the data. A pair is taken as
        it is.
    seed : int, optional
        The same seed gives the same bits every time; by default torch's global generator draws.
    alpha_Z, alpha_D : float, default 0 and 'same'
        Weights of the penalties, at least 0; 'same' is alpha_Z, or 0 with `unit_norm`.
    l1_ratio : float, default 0
        Share of the penalty that is l1, from 0 to 1.
    unit_norm : bool, default False
        Keep concepts at Euclidean norm 1 and their scale in Z, so that a penalty on the codes alone
        is meaningful.
    accelerate : bool or 'auto', default 'auto'
        True extrapolates the factors over iterations of several half-steps; 'auto' does where it
        pays and neither a start nor a form is given; False gives the iterates of the plain loop.
    revive : bool, default False
        Give concepts that are dead, or near-duplicates of others, the rows of A that are explained
        worst, where that lowers the objective.
    stop : {'codes', 'error'}, default 'codes'
        What must change by no more than `tol`: the codes, ‖ΔZ‖ ≤ tol ‖Z‖, or the error over 10
        iterations.
    backend : str, default 'auto'
        The supplier of operations, see `fastnmf.available_backends`; one that is named must be
        usable.
    max_memory : int or str, optional
        Bytes, or for example '2GB' or '512MiB', by which the process may grow; data that do not fit
        are read in passes. By default what is free.
    distributed : bool, default False
        Share `fit` and `partial_fit` between the processes of torch.distributed's default group,
        each of which gives rows of its own.
    tuning : fastnmf.Tuning, optional
        What the plan otherwise chooses: form, block, chunk_rows, precision, cuda_graph,
        checkpoint_seconds.

    Attributes
    ----------
    D : Tensor (K, d) or None
        The dictionary; a buffer of the module. None before `fit`.
    fitted : bool
        Whether there is a dictionary.
    fit_info_ : FitInfo or None
        The summary of the last `fit`; print it.
    online_info_ : OnlineInfo or None
        The summary of `partial_fit` so far.

    Raises
    ------
    InvalidInput
        (a ValueError) For an option value that cannot be used.
    TypeError
        For an option of the wrong type, or one that does not exist.

    Notes
    -----
    Solvers and their sources are described in docs/solvers.md, starts in docs/starts.md. Penalties
    and unit_norm have no accelerate=True and no partial_fit.

    References
    ----------
    .. [1] A. Cichocki and A.-H. Phan, "Fast local algorithms for large scale nonnegative matrix and
       tensor factorizations", 2009.
    .. [2] A. M. S. Ang and N. Gillis, "Accelerating nonnegative matrix factorization algorithms
       using extrapolation", 2019.

    Examples
    --------
    >>> import torch
    >>> from fastnmf import NMF
    >>> A = torch.rand(100, 8, generator=torch.Generator().manual_seed(0))
    >>> nmf = NMF(3, seed=0)
    >>> Z, D = nmf.fit(A)
    >>> Z.shape, D.shape
    (torch.Size([100, 3]), torch.Size([3, 8]))
    >>> nmf.encode(A[:2]).shape
    torch.Size([2, 3])
    """

    _SOLVERS = SOLVERS

    def __init__(
        self,
        nb_concepts: int,
        device: str | torch.device = "cpu",
        solver: str = "hals",
        tol: float = 1e-4,
        verbose: bool = False,
        *,
        max_iter: int | None = None,
        init: str | tuple[Any, Any] = "auto",
        seed: int | None = None,
        alpha_Z: float = 0.0,
        alpha_D: float | str = "same",
        l1_ratio: float = 0.0,
        unit_norm: bool = False,
        accelerate: bool | str = "auto",
        revive: bool = False,
        stop: str = "codes",
        backend: str = "auto",
        max_memory: int | str | None = None,
        distributed: bool = False,
        tuning: Tuning | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name in _OPTIONS}
        refuse_unknown(unknown, "NMF", list(_OPTIONS))
        options = Options(**given)
        for name in _OPTIONS:
            setattr(self, name, getattr(options, name))
        self.fitted = False
        self.fit_info_: FitInfo | None = None
        self.online_info_: OnlineInfo | None = None
        self._fitted_info: dict[str, Any] = {}
        self.register_buffer("D", None)
        # what online learning has left, beside D: moved, copied and pickled with the model
        self.register_buffer("_gram", None, persistent=False)
        self.register_buffer("_cross", None, persistent=False)

    def fit(
        self,
        A: Any,
        max_iter: int | None = None,
        *,
        codes: str | os.PathLike | None = "memory",
        callback: Callback | None = None,
        max_seconds: float | None = None,
        checkpoint: str | os.PathLike | None = None,
        resume: bool = False,
        **unknown: Any,
    ) -> tuple[Tensor | None, Tensor]:
        """Learn the dictionary of A.

        Parameters
        ----------
        A : (n, d), non-negative
            A tensor, an array or memory map; the path of a .npy or .safetensors file, of a folder
            of them, or a list of paths; a DataLoader, or an iterable of batches. What does not fit
            in memory is read in every iteration. float64 is computed in float64, all else in
            float32.
        max_iter : int, optional
            Iterations, at most; by default the constructor's.
        codes : 'memory', path or None, default 'memory'
            Where codes are kept: in memory; in this .npy file, then Z is a map of it on the CPU; or
            nowhere, then each pass computes them anew and Z is None.
        callback : callable, optional
            Called with an `Iteration` after each; a true answer ends the fit.
        max_seconds : float, optional
            The fit ends between iterations once so many seconds have passed.
        checkpoint : path, optional
            A .safetensors file to which progress is saved, whole or not at all, at the end of an
            iteration once ``Tuning.checkpoint_seconds`` have passed, and before the process leaves
            on Ctrl-C or SIGTERM.
        resume : bool, default False
            Go on from the file `checkpoint`, to the same bits as a fit that was not interrupted, on
            the same machine and with as many threads; start where there is no such file yet.
            max_iter and tol may differ from those before.

        Returns
        -------
        Z : Tensor (n, K) or None
            The codes.
        D : Tensor (K, d)
            The dictionary; both contiguous and on the model's device.

        Raises
        ------
        InvalidInput
            For data, options or a checkpoint that cannot be used.
        BackendUnavailable
            Where a backend that was named cannot be used.
        ArithmeticError
            If A is too large or too small to be squared, or the factors overflow.
        OSError
            If a file cannot be written.

        Notes
        -----
        A fit that fails or is interrupted leaves the model and the file of codes as they were. With
        `distributed`, A is the rows of this process, which may be none, and Z their codes; a file
        for them is named Z-00000-of-00004.npy for 'Z.npy', a checkpoint alike. All processes call
        fit with the same options and get the same D. Options, data and files that one of them
        cannot use are an InvalidInput in all; where one fails otherwise or ends, the others raise
        ConnectionError, at the latest after the timeout of the default group.
        """
        from ..fit import batch

        refuse_unknown(unknown, "fit", _names(NMF.fit))
        run = {"codes": codes, "callback": callback, "max_seconds": max_seconds}
        run |= {"checkpoint": checkpoint, "resume": resume}
        options, device = with_run(self._options(), max_iter, **run), torch.device(self.device)
        joined = Processes.joined(device) if self.distributed else nullcontext(ALONE)
        with joined as processes:
            Z, D, info = batch.fit(A, options, device, processes)
        self.D = D
        self.fit_info_ = info
        self._set_fitted(**info.as_dict())
        return Z, D

    def partial_fit(self, A: Any, *, half_life: float | None = None, **unknown: Any) -> NMF:
        """Learn from a batch of rows that are seen once (online learning).

        Parameters
        ----------
        A : (m, d), non-negative
            What `fit` takes, but no path; m is any number from 1 on.
        half_life : float, optional
            Rows after which a row counts half; by default 16 rows a concept; math.inf never
            forgets. Give the same in every call.

        Returns
        -------
        NMF
            The model itself; `online_info_` is the summary so far.

        Notes
        -----
        Codes of the batch, by the model's solver, are added to the statistics ZᵀZ (K, K) and ZᵀA
        (K, d), of which older rows lose half their weight every `half_life` rows, and the dictionary
        follows by half-steps in normal form. The first batch gives the start, by `init` (a pair must
        fit it; load_dictionary(D0) takes any batch); a batch of zeros leaves that to the next. After
        `fit` or `load_dictionary` learning goes on from their dictionary, which counts as much as
        the rows of a half-life, 16 a concept at most. A concept that no row has used stays as it is.
        The statistics are no part of state_dict; copies and pickles have them, `fit` drops them.
        max_iter, tol and callbacks have no part in it. A call that fails or is interrupted leaves
        the model as it was. Raises as `fit` does.

        With `distributed` the batch is the rows that all processes give, in their order; A is those
        of this one, which may be none (a tensor (0, d)), also a path then. All call it, with models
        that are alike, and have the same D then. What fails in one is an error in all, whose models
        stay as they were; where one ends, the others raise ConnectionError.

        References
        ----------
        .. [1] J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online learning for matrix factorization
           and sparse coding", 2010.
        """
        from ..fit import online

        refuse_unknown(unknown, "partial_fit", _names(NMF.partial_fit))
        half_life = checks.half_life(half_life)
        device = torch.device(self.device) if self.D is None else self.D.device
        # a group of their own would take longer to make than a small batch
        processes = Processes.present(device) if self.distributed else ALONE
        before = online.Learned(self.D, self._gram, self._cross, self.online_info_)
        given = A, self._options(), before, half_life, device, processes
        learned = online.partial_fit(*given)
        self.D = learned.D
        self.fit_info_ = None
        self._set_fitted(**learned.info.as_dict())
        self._gram, self._cross, self.online_info_ = learned.gram, learned.cross, learned.info
        return self

    def encode(
        self,
        A: Any,
        max_iter: int = 300,
        tol: float | None = None,
        *,
        Z0: Any = None,
        codes: str | os.PathLike = "memory",
    ) -> Tensor:
        """Compute codes for A with the dictionary as it is.

        Parameters
        ----------
        A : (…, d), non-negative
            As for `fit`; a tensor or an array may have any leading shape.
        max_iter : int, default 300
            Iterations for each chunk of rows, at most; 'anls' is exact.
        tol : float, optional
            Stop when ‖ΔZ‖ ≤ tol ‖Z‖; by default a hundredth of the model's: then the training data
            are encoded at least as well as `fit` encoded them, if max_iter allows it (at K > d it
            may not).
        Z0 : (n, K), optional
            Codes to start from; by default all concepts alike, so that the same A gives the same
            codes.
        codes : 'memory' or path, default 'memory'
            Where the codes go: memory, or this .npy file, then Z is a map of it on the CPU.

        Returns
        -------
        Tensor (…, K)
            argmin ½ ‖A − Z D‖² + alpha_Z d P(Z) over Z ≥ 0, by the model's solver. Differentiable
            with respect to A when A requires a gradient; then it must be in memory.

        Raises
        ------
        NotFitted
            Before there is a dictionary.
        InvalidInput
            For data that cannot be used.
        """
        from ..fit import encode

        self._assert_fitted()
        max_iter = checks.whole("max_iter", max_iter, at_least=0)
        tol = self.tol / 100 if tol is None else checks.tolerance(tol)
        leading = None
        if isinstance(A, Tensor | np.ndarray) and A.ndim > 2 and A.shape[-1] == self.D.shape[1]:
            leading, A = A.shape[:-1], A.reshape(-1, A.shape[-1])
        given = A, self.D, self._options()
        Z = encode.encode(*given, max_iter=max_iter, tol=tol, Z0=Z0, codes=codes)
        return Z if leading is None else Z.reshape(*leading, -1)

    def decode(self, Z: Any, *, out: str | os.PathLike | None = None) -> Tensor:
        """Compute the reconstruction Z D of codes.

        Parameters
        ----------
        Z : (…, K), of any sign
            What `fit` takes as A; a tensor may have any leading shape.
        out : path, optional
            A .npy file to write to; then a map of it is returned, on the CPU, and Z may need no
            gradient.

        Returns
        -------
        Tensor (…, d)
            On the model's device; differentiable with respect to Z.
        """
        from ..fit import encode

        self._assert_fitted()
        budget = self._options().budget(self.D.device, width=self.D.shape[1])
        return encode.decode(Z, self.D, budget, out)

    def get_dictionary(self) -> Tensor:
        """Return D (K, d). Raises NotFitted."""
        self._assert_fitted()
        return self.D

    def load_dictionary(self, D: Any) -> NMF:
        """Take D (K, d), a non-negative tensor or array, as the dictionary; the model is then
        fitted. Returns the model."""
        D = read_matrix(D, self.device, Expected("D"))
        if len(D) != self.nb_concepts:
            raise InvalidInput(f"D has {len(D)} rows; the model has {self.nb_concepts} concepts")
        self.D = D.detach().clone()
        self.fit_info_ = None
        self._set_fitted()
        return self

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted model (D, solver, tol, penalties, fit_info_) to a .safetensors file.

        The file appears whole or not at all. Raises NotFitted, InvalidInput for another suffix,
        OSError.

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
        from . import saved

        D, names = self.get_dictionary(), ("nb_concepts", "solver", "tol", *saved.PENALTIES)
        saved.write(path, {name: getattr(self, name) for name in names}, D, self.fit_info_)

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> NMF:
        """Return the fitted model that `save` wrote, on a device.

        Raises FileNotFoundError, or InvalidInput for a file that is damaged, of another kind or too
        new.
        """
        from . import saved

        found = saved.read(path)
        nmf = cls(device=device, **found.options).load_dictionary(found.D)
        nmf.fit_info_ = found.info
        return nmf

    def plot(self) -> Figure:
        """Draw fit_info_: error over time, active concepts of the rows, energy of the concepts.

        Returns a matplotlib Figure; pyplot is left alone: save it by `savefig`, or let a notebook
        display it. Raises NotFitted without the summary of a fit, ModuleNotFoundError without
        matplotlib (the extra `plot`).
        """
        from ..results import plot

        self._assert_fitted()
        if self.fit_info_ is None:
            raise NotFitted(
                "there is no summary of a fit to draw, the dictionary was loaded or learned by "
                "partial_fit: call fit(A)"
            )
        return plot.draw(self.fit_info_)

    def init_random_z(self, A: Any) -> Tensor:
        """Return random codes (n, K): |normal| · sqrt(mean(A) / K)."""
        generator = self._options().generator(0)
        return starts.random_codes(self._matrix(A), self.nb_concepts, generator)

    def init_random_d(self, A: Any) -> Tensor:
        """Return a random dictionary (K, d): |normal| · sqrt(mean(A) / K)."""
        generator = self._options().generator(1)
        return starts.random_dictionary(self._matrix(A), self.nb_concepts, generator)

    def init_nndsvda(self, A: Any) -> tuple[Tensor, Tensor]:
        """Return (Z, D) from the leading singular vectors of A, zeros filled with its mean
        (Boutsidis & Gallopoulos, 2008)."""
        generator = self._options().generator(0)
        return starts.nndsvda(self._matrix(A), self.nb_concepts, generator)

    def sanitize_np_input(self, x: Any) -> np.ndarray:
        """Return x (n, d), a tensor, an array or a DataLoader, as a float32 array. Raises
        InvalidInput if it is not 2-D."""
        return as_numpy32(x)

    def sanitize_np_codes(self, z: Any) -> np.ndarray:
        """Return z (n, K), a tensor, an array or a DataLoader, as a float32 array. Raises
        InvalidInput for another shape."""
        return as_numpy32(z, name="Z", columns=self.nb_concepts)

    def extra_repr(self) -> str:
        state = "fitted" if self.fitted else "not fitted"
        return f"{self.nb_concepts}, device={str(self.device)!r}, solver={self.solver!r}, {state}"

    def __getattr__(self, name: str) -> Any:
        if name in _HINTS:
            raise AttributeError(f"NMF has no {name!r}; it is {_HINTS[name]} here")
        return super().__getattr__(name)

    def _options(self) -> Options:
        """The options as the attributes are now."""
        return Options(**{name: getattr(self, name) for name in _OPTIONS})

    def _matrix(self, A: Any) -> Tensor:
        return read_matrix(A, self.device)

    def _assert_fitted(self) -> None:
        if not self.fitted:
            raise NotFitted("the model must be fitted first: call fit(A), or load a dictionary")

    def _set_fitted(self, **info: Any) -> None:
        """D is new: what online learning has left belongs to the one before."""
        self.fitted = True
        self._fitted_info = info
        self._gram = self._cross = self.online_info_ = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NMF:
        """Move as every module does, and let `device` follow; an unfitted model has no tensor to
        move."""
        super()._apply(fn, recurse)
        if self.D is not None:
            moved = self.D.device
        else:
            moved = _device_after(fn, torch.device(self.device))
        if moved != torch.device(self.device):
            self.device = moved
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *rest) -> None:
        """Load D into a model that has none yet, too."""
        D = state_dict.get(prefix + "D")
        if isinstance(D, Tensor) and D.ndim == 2 and len(D) == self.nb_concepts:
            if self.D is None or self.D.shape != D.shape:
                self.D = torch.empty_like(D, device=self.device)
            self.fit_info_ = None
            self._set_fitted()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)


def _names(function: Callable) -> list[str]:
    """The arguments of a function that are given by name."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]


_OF_A_RUN = ("codes", "callback", "max_seconds", "checkpoint", "resume")
# the constructor's arguments
_OPTIONS = tuple(field.name for field in fields(Options) if field.name not in _OF_A_RUN)


def _device_after(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """Where a module without tensors is after `fn` was applied to it: fn may move, or only change
    the dtype."""
    moved = fn(torch.empty(0)).device
    if moved.type != "cpu" or device.type == "cpu":
        return moved
    try:
        # a change of dtype leaves a meta tensor where it is; a move to the CPU does not, or cannot
        # be done
        return device if fn(torch.empty(0, device="meta")).device.type == "meta" else moved
    except NotImplementedError:
        return moved
