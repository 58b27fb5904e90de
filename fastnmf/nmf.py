"""The facade: NMF, an nn.Module with Overcomplete's interface. Arguments, state, fit, partial_fit,
encode, decode."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import budget, options, pictures, plan
from .ahead import Ahead
from .backends import BACKENDS, select
from .encoding import Encoder, Method
from .engine import STOPPING_RULES, Iteration
from .errors import InvalidInput, NotFitted
from .fitting import Fitter
from .info import FitInfo, OnlineInfo
from .init import nndsvda as nndsvda_start
from .init import random_codes, random_dictionary
from .online import Learned, OnlineFitter
from .penalties import Penalties
from .precision import PRECISIONS, products_in
from .progress import Progress
from .ranks import ALONE, Ranks
from .resident import Resident
from .rows import Rows, as_numpy32, read_rows
from .solvers import SOLVERS
from .streamed import SWEEPS, Taking, shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .checkpoint import Checkpoint

# options that a fit which goes on, or is shared, must have as they were, or as others have them
_OF_A_FIT = (
    *("nb_concepts", "solver", "seed", "form", "block", "precision", "accelerate", "revive"),
    *("alpha_Z", "alpha_D", "l1_ratio", "unit_norm"),
)


class NMF(nn.Module):
    """A ≈ Z D with Z ≥ 0 and D ≥ 0: codes Z (n, K) and a dictionary D (K, d) of K concepts for data
    A (n, d).

    nb_concepts: K, from 1 to any number; K > d is fine. device: where to compute and keep D;
    follows `.to()`. solver: 'hals', 'mu', 'pgd' or 'anls'. tol: stop when ‖ΔZ‖ ≤ tol ‖Z‖ (or see
    stop); 0 never stops early. verbose: show a bar with iteration, relative change and relative
    error. Options, by name:

    max_iter: iterations of fit where it is not told; None is 500.
    init: 'auto' ('nndsvda' if K ≤ min(n, d), else 'random'), 'random', 'nndsvda', 'rows' or
        'spread' (concepts that are rows of A, any or such as differ), all scaled to the data; or a
        pair (Z0, D0), taken as it is.
    seed: an int gives the same bits every time; None draws from torch's global generator.
    backend: 'auto', or the name of one that must be used (`fastnmf.backends()` shows which can be).
    form: 'auto', 'normal' or 'residual': how a half-step is computed (README, design); the iterates
    are the same. precision: 'auto' takes tf32 where torch.set_float32_matmul_precision allows it
    and it does no harm, 'strict' never. chunk_rows: rows in hand at a time at most; None lets the
    plan choose. max_memory: bytes, or '2GB', '512MiB', by which the process may grow; data that do
    not fit are read in passes (README, larger than memory); None is what is free. accelerate: True
    extrapolates the factors over iterations of several half-steps, 'auto' where it pays and neither
    a start nor a form is given (README, design), False gives the iterates of the plain loop.
    cuda_graph: 'auto' repeats the iterations of small fits on NVIDIA GPUs from a CUDA graph, True
    does so or raises, False never; the iterates are the same. stop:
    what must settle, the 'codes', ‖ΔZ‖ ≤ tol ‖Z‖, or the 'error', by no more than tol of it over 10
    iterations. max_seconds: by when fit ends, between iterations; None is no limit. callback:
    called with an `Iteration` after each; a true answer ends the fit. checkpoint: a file
    (.safetensors) that fit saves its progress to, whole or not at all, at the end of an iteration
    once checkpoint_seconds (60; 0 is every iteration) have passed, and before it leaves on Ctrl-C
    or SIGTERM. half_life: rows after which partial_fit counts a row half; None is 16 rows a
    concept, math.inf never forgets. alpha_Z, alpha_D, l1_ratio: fit minimises ½‖A − Z D‖² +
    alpha_Z d P(Z) + alpha_D n P(D), P(F) = l1_ratio ΣF + ½ (1 − l1_ratio) ‖F‖², as scikit-learn's
    NMF does (alpha_W, alpha_H), and encode has the penalty of the codes. Numbers ≥ 0, l1_ratio ≤ 1;
    alpha_D='same' is alpha_Z, or 0 with unit_norm. unit_norm: True keeps concepts at Euclidean norm
    1, zero ones at zero, and their scale in Z, so that a penalty of the codes alone says something;
    encode takes D as it is. Penalties and unit_norm have no accelerate=True and no partial_fit.
    distributed: whether fit and partial_fit are shared by the processes of torch.distributed's
    default group, each of which gives rows of its own. revive: give concepts that are dead, or
    near-duplicates of others, the rows of A that are explained worst, where that lowers the
    objective (README, design); codes must be kept, and partial_fit does not.

    After fit: D, fitted, and fit_info_, the account (printable); after partial_fit online_info_
    instead. Raises InvalidInput (a ValueError) for bad values and TypeError for bad types and
    unknown options. Sources of the methods: solvers.py.
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
        backend: str = "auto",
        form: str = "auto",
        precision: str = "auto",
        block: int | None = None,
        chunk_rows: int | None = None,
        max_memory: int | str | None = None,
        accelerate: bool | str = "auto",
        cuda_graph: bool | str = "auto",
        stop: str = "codes",
        max_seconds: float | None = None,
        callback: Callable[[Iteration], bool | None] | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_seconds: float = 60.0,
        half_life: float | None = None,
        alpha_Z: float = 0.0,
        alpha_D: float | str = "same",
        l1_ratio: float = 0.0,
        unit_norm: bool = False,
        revive: bool = False,
        distributed: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        options.refuse_unknown(unknown, type(self))
        self.nb_concepts = options.whole("nb_concepts", nb_concepts, at_least=1)
        self.device = options.device(device)
        self.solver = options.one_of("solver", solver, SOLVERS)
        self.tol = options.tolerance(tol)
        self.verbose = bool(verbose)
        self.max_iter = options.whole("max_iter", max_iter, at_least=0, optional=True)
        self.init = options.start(init)
        self.seed = options.whole("seed", seed, at_least=0, optional=True)
        self.backend = options.one_of("backend", backend, ("auto", *BACKENDS))
        self.form = options.one_of("form", form, ("auto", *plan.FORMS))
        self.precision = options.one_of("precision", precision, PRECISIONS)
        self.block = options.whole("block", block, at_least=1, optional=True)
        self.chunk_rows = options.whole("chunk_rows", chunk_rows, at_least=1, optional=True)
        self.accelerate = options.automatic("accelerate", accelerate)
        self.cuda_graph = options.automatic("cuda_graph", cuda_graph)
        self.stop = options.one_of("stop", stop, STOPPING_RULES)
        self.max_seconds = options.time_limit("max_seconds", max_seconds)
        self.max_memory = max_memory
        budget.bytes_of(max_memory)
        self.callback = options.function("callback", callback)
        self.checkpoint = options.file("checkpoint", checkpoint)
        self.checkpoint_seconds = options.seconds("checkpoint_seconds", checkpoint_seconds)
        self.half_life = options.half_life(half_life)
        self.alpha_Z = options.penalty("alpha_Z", alpha_Z)
        self.alpha_D = options.penalty("alpha_D", alpha_D, other="same")
        self.l1_ratio = options.penalty("l1_ratio", l1_ratio, most=1.0)
        self.unit_norm = options.unit_norm(unit_norm, self.alpha_D)
        self.revive = options.flag("revive", revive)
        self.distributed = options.flag("distributed", distributed)
        plan.forms_of(self.solver, self.form)
        self.fitted = False
        self.fit_info_: FitInfo | None = None
        self.online_info_: OnlineInfo | None = None
        self._fitted_info: dict[str, Any] = {}
        self.register_buffer("D", None)
        # what a stream has left, beside D: moved, copied and pickled with the model
        self.register_buffer("_gram", None, persistent=False)
        self.register_buffer("_cross", None, persistent=False)

    def fit(
        self,
        A: Any,
        max_iter: int | None = None,
        *,
        codes: str | os.PathLike | None = "memory",
        resume: bool = False,
    ) -> tuple[Tensor | None, Tensor]:
        """Learn the dictionary of A; returns (Z, D): (n, K) and (K, d), contiguous, on the model's
        device.

        A (n, d) ≥ 0: a tensor, an array or memory map, the path of a .npy or .safetensors file or
        of a folder of them, a list of paths, a DataLoader, or an iterable of batches; what does not
        fit in memory is read in every iteration. float64 is computed in float64, all else in
        float32. max_iter: None is the constructor's. codes: 'memory'; the .npy file they are
        written to, then Z is a map of it on the CPU; or None, then each pass computes them anew
        and Z is None. A fit that fails or is interrupted leaves the model and that file as they
        were. resume: go on from the file `checkpoint`, to the same bits as a fit that was not
        interrupted, on the same machine and with as many threads; start where there is no such file
        yet. max_iter and tol may differ from those before. Raises InvalidInput for data, options or
        a checkpoint that cannot be used, BackendUnavailable, ArithmeticError if A is too large or
        too small to be squared or the factors overflow, OSError if the checkpoint cannot be
        written.

        distributed: A is the rows of this process, which may be none, and Z their codes; a file for
        them is named Z-00000-of-00004.npy for 'Z.npy', a checkpoint alike, from which as many
        processes with the same rows go on. All processes call fit, with the same options, and get
        the same D, that of one process. Options, data and files that one of them cannot use are an
        InvalidInput in all; where one fails otherwise or ends, the others raise ConnectionError, at
        the latest after the timeout of the default group (where it is NCCL's, torch may end the
        process instead).
        """
        begun, device = time.perf_counter(), torch.device(self.device)
        with Ranks.joined(device) if self.distributed else nullcontext(ALONE) as ranks:
            Z, D, info = self._fit(A, max_iter, codes, resume, begun, device, ranks)
        self.D = D
        self.fit_info_ = info
        self._set_fitted(**info.as_dict())
        return Z, D

    def _fit(
        self,
        A: Any,
        max_iter: int | None,
        codes: str | os.PathLike | None,
        resume: bool,
        begun: float,
        device: torch.device,
        ranks: Ranks,
    ) -> tuple[Tensor | None, Tensor, FitInfo]:
        K = self.nb_concepts
        with ExitStack() as stack:
            with ranks.agreed():
                max_iter = options.iterations(max_iter, self.max_iter)
                by = self._method(device)
                checkpoint = self._checkpoint(by.backend, resume, ranks)
                wanted = {"optional": True, "ranks": ranks, "revives": self.revive}
                asked = self._taking(device, codes, **wanted)
                taking = stack.enter_context(asked)
            kept = "in a file" if isinstance(taking.codes, Path) else taking.codes
            saved = None if checkpoint is None else "a file"
            shared = {name: getattr(self, name) for name in (*_OF_A_FIT, "tol", "stop")}
            shared |= {"init": self._init_name(), "max_iter": max_iter, "codes": kept}
            ranks.agree({**shared, "checkpoint": saved, "resume": resume})

            def encoder(D: Tensor) -> Encoder:
                return Encoder(D, by, SWEEPS, 0.0)

            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(self._products())
            data = stack.enter_context(taking.for_fit(A, K, self.init, encoder, ranks))
            progress = Progress(self.verbose, max_iter, self.callback, data.chunk_rows is not None)
            fitter = Fitter(
                K,
                by,
                self.init,
                self._generator(0),
                max_iter,
                self.tol,
                begun,
                stack.enter_context(progress),
                self.accelerate,
                self.stop,
                begun + self.max_seconds,
                checkpoint,
                self.revive,
                self.cuda_graph,
            )
            Z, D, info = fitter(data)
        # a file of codes is in its place now
        return data.codes(Z), D, info

    def partial_fit(self, A: Any) -> NMF:
        """Learn from a batch A (m, d) ≥ 0 of a stream, whose rows are seen once; returns the model.

        A is what fit takes, but no path; m any number from 1 on. Codes of the batch, by the model's
        solver, are added to the statistics ZᵀZ (K, K) and ZᵀA (K, d), of which older rows lose half
        their weight every half_life rows, and the dictionary follows by half-steps in normal form.

        The first batch gives the start, by `init` (a pair must fit it; load_dictionary(D0) takes
        any batch); a batch of zeros leaves that to the next. After fit or load_dictionary the
        stream goes on from their dictionary, which counts as much as the rows of a half-life, 16 a
        concept at most. A concept that no row has used stays as it is. State beside D is no part of
        state_dict; copies and pickles have it, fit drops it. max_iter, tol and callback have no
        part in it. A call that fails or is interrupted leaves the model as it was. The account is
        online_info_. Raises as fit does. Source: Mairal, Bach, Ponce & Sapiro, 2010.

        distributed: the batch is the rows that all processes give, in the order of these; A is
        those of this one, which may be none (a tensor (0, d)), also a path then. All call it, with
        models that are alike, and have the same D then, that of one process which gets the batch
        whole. What fails in one is an error in all, whose models stay as they were; where one ends,
        the others raise ConnectionError. They meet in the default group: one that leaves by Ctrl-C
        and lives on is waited for until the timeout.
        """
        begun = time.perf_counter()
        device = torch.device(self.device) if self.D is None else self.D.device
        # a group of their own would take longer to make than a small batch
        ranks = Ranks.present(device) if self.distributed else ALONE
        before = Learned(self.D, self._gram, self._cross, self.online_info_)
        stream = self._learned(A, before, begun, device, ranks)
        self.D = stream.D
        self.fit_info_ = None
        self._set_fitted(**stream.info.as_dict())
        self._gram, self._cross, self.online_info_ = stream.gram, stream.cross, stream.info
        return self

    def _learned(
        self, A: Any, before: Learned, begun: float, device: torch.device, ranks: Ranks
    ) -> Learned:
        K, D = self.nb_concepts, before.D
        known = {} if D is None else {"features": D.shape[1], "dtype": D.dtype}
        with ExitStack() as stack:
            with ranks.agreed():
                if self._penalties:
                    raise InvalidInput(
                        "partial_fit has no penalties, whose weight goes by the number of rows, "
                        "and no unit_norm; use fit, or alpha_Z=0, alpha_D=0 and unit_norm=False"
                    )
                by = self._method(device)
            fitter = OnlineFitter(K, by, self.init, self._generator(0), self.half_life, begun)
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(torch.cuda.device_of(torch.empty(0, device=device)))
            stack.enter_context(self._products())
            if ranks.alone:
                return fitter(Resident(read_rows(A, device=device, **known)), before)
            shared = {name: getattr(self, name) for name in (*_OF_A_FIT, "half_life")}
            ranks.agree({**shared, "init": self._init_name(), **before.told()})
            taking = stack.enter_context(self._taking(device, "memory", ranks=ranks))
            batch = taking.for_fit(A, K, self.init, fitter.encoder, ranks, **known)
            return fitter(stack.enter_context(batch), before)

    def encode(
        self,
        A: Any,
        max_iter: int = 300,
        tol: float | None = None,
        *,
        Z0: Any = None,
        codes: str | os.PathLike = "memory",
    ) -> Tensor:
        """Z (n, K) for A (n, d) with the dictionary as it is: argmin ‖A − Z D‖² over Z ≥ 0, by the
        model's solver; with alpha_Z, of ½‖A − Z D‖² + alpha_Z d P(Z).

        Stops when ‖ΔZ‖ ≤ tol ‖Z‖ or after max_iter iterations; anls is exact. tol=None is a
        hundredth of the model's: then the training data are encoded at least as well as fit encoded
        them, if max_iter does (at K > d it may not). Starts from Z0 (n, K) if given, else from
        codes that use all concepts alike: the same A gives the same codes. Large A is encoded in
        chunks of rows, each until it has settled. A and codes: as for fit, but for None.
        Differentiable with respect to A when A requires a gradient; then it must be in memory.
        Raises NotFitted, or InvalidInput for data that cannot be used.
        """
        self._assert_fitted()
        max_iter = options.whole("max_iter", max_iter, at_least=0)
        tol = self.tol / 100 if tol is None else options.tolerance(tol)
        K, d = self.D.shape
        device = self.D.device
        by = self._method(device)
        with (
            self._taking(device, codes) as taking,
            torch.autocast(device.type, enabled=False),
            self._products(),
            ExitStack() as shown,
        ):
            keeps = isinstance(A, Tensor) and A.requires_grad
            taken = taking.take(A, K, features=d, dtype=self.D.dtype, narrow=not keeps)
            n, dtype = shape_of(taken)
            if Z0 is not None:
                Z0 = read_rows(Z0, device=device, name="Z0", features=K, columns="concepts").A
                if len(Z0) != n:
                    raise InvalidInput(f"Z0 has {len(Z0)} rows, A has {n}; they must agree")
                Z0 = Z0.to(dtype)
            each = shown.enter_context(Progress(self.verbose, max_iter, None))
            encoder = Encoder(self.D.to(dtype), by, max_iter, tol, each)
            if isinstance(taken, Rows) and taking.codes == "memory":
                return encoder(A.to(taken.A) if keeps else taken.A, Z0)

            options.no_gradient("A", keeps)

            def encode(part: slice, X: Tensor) -> Tensor:
                return encoder.encode(X, None if Z0 is None else Z0[part])[0]

            return taking.through(taken, encode, K, encoder.rows_in_hand())

    def decode(self, Z: Any, *, out: str | os.PathLike | None = None) -> Tensor:
        """Â (n, d) = Z D for codes Z (n, K) of any sign, on the model's device. Differentiable with
        respect to Z.

        Z: what fit takes as A; a tensor may have any shape (…, K). out: the .npy file to write Â
        to; then a map of it is returned, on the CPU, and Z may need no gradient.
        """
        self._assert_fitted()
        (K, d), device = self.D.shape, self.D.device
        if out is not None or not isinstance(Z, Tensor):
            options.no_gradient("Z", isinstance(Z, Tensor) and Z.requires_grad)
            wanted = {"name": "Z", "features": K, "columns": "concepts", "signed": True}
            with self._taking(device, "memory" if out is None else out) as taking:
                taken = taking.take(Z, d, dtype=self.D.dtype, **wanted)
                if not isinstance(taken, Rows) or out is not None:
                    D = self.D.to(shape_of(taken)[1])
                    return taking.through(taken, lambda _, Zi: Zi @ D, d)
            Z = taken.A
        if Z.ndim == 0 or Z.shape[-1] != K:
            raise InvalidInput(
                f"Z has shape {tuple(Z.shape)}; codes must be (n, {K}) or (…, {K}), an entry for "
                "each concept"
            )
        dtype = torch.promote_types(Z.dtype, self.D.dtype)
        return Z.to(device, dtype) @ self.D.to(dtype)

    def get_dictionary(self) -> Tensor:
        """D (K, d). Raises NotFitted."""
        self._assert_fitted()
        return self.D

    def load_dictionary(self, D: Any) -> NMF:
        """Take D (K, d) ≥ 0, a tensor or an array, as the dictionary; the model is then fitted.
        Returns the model."""
        D = read_rows(D, device=self.device, name="D").A
        if len(D) != self.nb_concepts:
            raise InvalidInput(f"D has {len(D)} rows; the model has {self.nb_concepts} concepts")
        self.D = D.detach().clone()
        self.fit_info_ = None
        self._set_fitted()
        return self

    def plot(self) -> Figure:
        """A matplotlib Figure of fit_info_: error over time, active concepts of the rows, energy of
        the concepts. pyplot is left alone: save it by `savefig`, or let a notebook display it.

        Raises NotFitted without an account of a fit, ModuleNotFoundError without the extra `plot`.
        """
        self._assert_fitted()
        if self.fit_info_ is None:
            raise NotFitted(
                "there is no account of a fit to draw, the dictionary was loaded or learned by "
                "partial_fit: call fit(A)"
            )
        return pictures.draw(self.fit_info_)

    def init_random_z(self, A: Any) -> Tensor:
        """Random codes (n, K): |normal| · sqrt(mean(A) / K)."""
        return random_codes(self._data(A), self.nb_concepts, self._generator(0))

    def init_random_d(self, A: Any) -> Tensor:
        """A random dictionary (K, d): |normal| · sqrt(mean(A) / K)."""
        return random_dictionary(self._data(A), self.nb_concepts, self._generator(1))

    def init_nndsvda(self, A: Any) -> tuple[Tensor, Tensor]:
        """(Z, D) from the leading singular vectors of A, zeros filled with its mean (Boutsidis &
        Gallopoulos, 2008)."""
        return nndsvda_start(self._data(A), self.nb_concepts, self._generator(0))

    def sanitize_np_input(self, x: Any) -> np.ndarray:
        """x (n, d), a tensor, an array or a DataLoader, as a float32 array. Raises InvalidInput if
        it is not 2-D."""
        return as_numpy32(x)

    def sanitize_np_codes(self, z: Any) -> np.ndarray:
        """z (n, K), a tensor, an array or a DataLoader, as a float32 array. Raises InvalidInput for
        another shape."""
        return as_numpy32(z, name="Z", columns=self.nb_concepts)

    def extra_repr(self) -> str:
        state = "fitted" if self.fitted else "not fitted"
        return f"{self.nb_concepts}, device={str(self.device)!r}, solver={self.solver!r}, {state}"

    def _checkpoint(self, backend: str, resume: bool, ranks: Ranks) -> Checkpoint | None:
        if self.checkpoint is None:
            if resume:
                raise InvalidInput("resume=True goes on from a file: name it, NMF(checkpoint=…)")
            return None
        from .checkpoint import Checkpoint

        settings = {name: getattr(self, name) for name in (*_OF_A_FIT, "chunk_rows")}
        settings |= {"init": self._init_name(), "backend": backend}
        seconds = self.checkpoint_seconds
        return Checkpoint(self.checkpoint, seconds, settings, resume=resume, ranks=ranks)

    def _init_name(self) -> str:
        return self.init if isinstance(self.init, str) else "given"

    def _products(self) -> AbstractContextManager:
        return products_in("highest") if self.precision == "strict" else nullcontext()

    def _method(self, device: torch.device) -> Method:
        backend, ops = select(self.solver, device, self.backend)
        asked = self.form, self.block, self.chunk_rows
        return Method(self.solver, backend, ops, *asked, self._penalties)

    @property
    def _penalties(self) -> Penalties:
        same = 0.0 if self.unit_norm else self.alpha_Z
        alpha_D = same if self.alpha_D == "same" else self.alpha_D
        return Penalties(self.alpha_Z, alpha_D, self.l1_ratio, self.unit_norm)

    @contextmanager
    def _taking(
        self,
        device: torch.device,
        codes: Any,
        *,
        optional: bool = False,
        ranks: Ranks = ALONE,
        revives: bool = False,
    ):
        """How data are taken and where what is made of them goes, with a thread that reads."""
        if isinstance(codes, str | os.PathLike) and codes != "memory":
            codes = ranks.own(codes)
        codes, most = options.codes(codes, optional=optional), budget.bytes_of(self.max_memory)
        with Ahead() as ahead:
            saved = None if self.checkpoint is None else ranks.own(self.checkpoint).resolve()
            rows = self.chunk_rows
            yield Taking(ahead, device, most, rows, codes, saved, ranks.on_host, revives)

    def _data(self, A: Any) -> Tensor:
        return read_rows(A, device=self.device).A

    def _generator(self, stream: int) -> torch.Generator | None:
        """A generator for the seed; codes and dictionary drawn one at a time take different
        streams."""
        if self.seed is None:
            return None
        return torch.Generator().manual_seed((self.seed + stream * 0x9E3779B97F4A7C15) % 2**63)

    def _assert_fitted(self) -> None:
        if not self.fitted:
            raise NotFitted("the model must be fitted first: call fit(A), or load a dictionary")

    def _set_fitted(self, **info: Any) -> None:
        """D is new: what a stream has left belongs to the one before."""
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
            moved = options.device_after(fn, torch.device(self.device))
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
