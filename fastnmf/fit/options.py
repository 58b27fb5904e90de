"""Options: the arguments of the caller, checked once, and what follows from them without data."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from .. import checks
from ..backends.registry import BACKENDS, choice_of, select, select_each
from ..data.sparse.codes import SPARSE, are_sparse
from ..data.storage import output
from ..distributed import ALONE, Processes
from ..engine.state import STOPPING_RULES, Callback, Method
from ..planning.memory import Budget, bytes_of
from ..planning.plan import Tuning, forms_of
from ..solvers import anls, hals
from ..solvers.base import Solver
from ..solvers.constraints import NON_NEGATIVE, Constraint
from ..solvers.penalties import Penalties
from ..solvers.registry import OTHER_NAMES, learner, solvers_of
from .sparsity.request import check_requested
from .starts.request import MOST_STARTS, check_starts, checked_init

# iterations of fit where neither it nor the constructor has a number
MAX_ITER = 500
# distance of the seeds of codes and dictionary where they are drawn one at a time
_SEQUENCE = 0x9E3779B97F4A7C15
# options of scikit-learn and of other methods, and what to write instead
ELSEWHERE = {
    **{
        name: f"NMF(tuning=fastnmf.Tuning({name}=…))"
        for name in (field.name for field in fields(Tuning))
    },
    **{name: f"fit(A, {name}=…)" for name in ("codes", "callback", "max_seconds", "checkpoint")},
    "validation": "fit(A, validation=…)",
    "weights": "fit(A, weights=…)",
    "resume": "fit(A, checkpoint=…, resume=True)",
    "half_life": "partial_fit(A, half_life=…)",
    "n_components": "NMF(nb_concepts=…)",
    "random_state": "NMF(seed=…)",
    "alpha_W": "NMF(alpha_Z=…)",
    "alpha_H": "NMF(alpha_D=…)",
    **dict.fromkeys(("W", "H"), "NMF(init=(Z0, D0))"),
    "forget_factor": "partial_fit(A, half_life=…)",
    "batch_size": "partial_fit(batch) for each batch",
}


@dataclass(frozen=True)
class Options:
    """The arguments of a model and of fit, by their names, checked; and the constraint of its
    dictionaries, which is that of its class."""

    nb_concepts: int
    device: str | torch.device = "cpu"
    solver: str = "hals"
    tol: float = 1e-4
    verbose: bool = False
    max_iter: int | None = None
    init: str | tuple[Any, Any] = "auto"
    n_init: int = 1
    seed: int | None = None
    alpha_Z: float = 0.0
    alpha_D: float | str = "same"
    l1_ratio: float = 0.0
    unit_norm: bool = False
    offset: bool = False
    target_l0: float | None = None
    top_k: int | None = None
    accelerate: bool | str = "auto"
    revive: bool = False
    stop: str = "change"
    backend: str = "auto"
    max_memory: int | str | None = None
    distributed: bool = False
    tuning: Tuning | None = None
    codes: str | os.PathLike[str] | None = "memory"
    callback: Callback | None = None
    max_seconds: float | None = None
    checkpoint: str | os.PathLike[str] | None = None
    resume: bool = False
    validation: Any = None
    weights: Any = None
    constraint: Constraint = NON_NEGATIVE

    def __post_init__(self) -> None:
        whole, automatic, flag = checks.whole, checks.automatic, checks.flag
        self._set(
            nb_concepts=whole("nb_concepts", self.nb_concepts, at_least=1, at_most=checks.MOST),
            device=checks.device(self.device),
            solver=checks.one_of("solver", self.solver, self.solvers, OTHER_NAMES),
            tol=checks.tolerance(self.tol),
            verbose=bool(self.verbose),
            max_iter=whole("max_iter", self.max_iter, at_least=0, optional=True),
            init=checked_init(self.init, self.constraint),
            n_init=whole("n_init", self.n_init, at_least=1, at_most=MOST_STARTS),
            seed=whole("seed", self.seed, at_least=0, optional=True),
            backend=checks.one_of("backend", self.backend, ("auto", *BACKENDS)),
            accelerate=automatic("accelerate", self.accelerate),
            stop=checks.one_of("stop", self.stop, STOPPING_RULES, {"codes": "change"}),
            alpha_Z=checks.penalty("alpha_Z", self.alpha_Z),
            alpha_D=checks.penalty("alpha_D", self.alpha_D, other="same"),
            l1_ratio=checks.penalty("l1_ratio", self.l1_ratio, most=1.0),
            target_l0=checks.mean_l0(self.target_l0, self.nb_concepts),
            top_k=checks.most_concepts(self.top_k, self.nb_concepts),
            revive=flag("revive", self.revive),
            distributed=flag("distributed", self.distributed),
            callback=checks.function("callback", self.callback),
            checkpoint=checks.file("checkpoint", self.checkpoint),
            weights=None if self.weights is None else _read_weights(self.weights),
        )
        checks.time_limit("max_seconds", self.max_seconds)
        bytes_of(self.max_memory)
        if self.tuning is not None and not isinstance(self.tuning, Tuning):
            raise TypeError(f"tuning={self.tuning!r} must be a fastnmf.Tuning or None")
        checks.unit_norm(self.unit_norm, self.alpha_D)
        kind = {"signed": self.constraint.signed, "mixes": self.constraint.of_rows}
        checks.l1_of_signed(self.penalties.alpha_D, self.l1_ratio, **kind)
        checks.mixtures(self, self.tuned.form, mixes=self.constraint.of_rows)
        checks.offset(self.offset, signed=self.constraint.signed)
        check_requested(self, self.solvers[self.solver])
        check_starts(self)
        forms_of(self.solvers[self.solver], self.tuned.form)

    @property
    def solvers(self) -> dict[str, Solver]:
        """The solvers of the model, by name."""
        return solvers_of(self.constraint)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def tuned(self) -> Tuning:
        """The tuning, or one that leaves every choice to the plan."""
        return self.tuning or Tuning()

    @property
    def iterations(self) -> int:
        """The most iterations of fit."""
        return MAX_ITER if self.max_iter is None else self.max_iter

    @property
    def start_name(self) -> str:
        """The name of the start; 'given' for a pair."""
        return self.init if isinstance(self.init, str) else "given"

    @property
    def begin(self) -> str | tuple[Any, Any]:
        """init; but 'random' for 'auto' where updates of the codes multiply, and the dictionary may
        have any signs: small codes of other starts then grow slowly."""
        multiplies = self.constraint.signed and self.solvers[self.solver].least_share > 0
        return "random" if multiplies and self.init == "auto" else self.init

    @property
    def penalties(self) -> Penalties:
        """Those that are given; with target_l0 that of the codes is found by the fit."""
        if self.target_l0 is not None:
            return Penalties(0.0, 0.0, 1.0, True)
        same = 0.0 if self.unit_norm else self.alpha_Z
        alpha_D = same if self.alpha_D == "same" else self.alpha_D
        return Penalties(self.alpha_Z, alpha_D, self.l1_ratio, self.unit_norm)

    @property
    def precision(self) -> str | None:
        """The precision of float32 products, or None for what torch allows."""
        return "highest" if self.tuned.precision == "strict" else None

    def starting_from(self, pair: tuple[Any, Any] | None) -> Options:
        """The same, but for the start: a pair (Z0, D0), of which Z0 is left out where codes are not
        kept; None changes nothing."""
        if pair is None:
            return self
        return replace(self, init=(None if self.codes is None else pair[0], pair[1]))

    def method(self, device: torch.device) -> Method:
        """How half-steps are computed on a device. Raises BackendUnavailable."""
        solver, more = self.solvers[self.solver], self.constraint.operations
        backend, ops = select(solver.operations + solver.fused + more, device, self.backend)
        if self.top_k is not None:
            # few fits need what this imports
            from ..solvers.supports.top_k import solver_of

            solver = solver_of(self.top_k, solver)
        return Method(solver, backend, ops, self.tuned, self.penalties, self.constraint)

    def method_of_codes(self, device: torch.device) -> Method:
        """How exact codes are computed on a device, whatever the solver. Raises
        BackendUnavailable."""
        groups = hals.SOLVER.operations + hals.SOLVER.fused, anls.SOLVER.operations
        backend, ops = select_each(groups, device, self.backend)
        return Method(anls.SOLVER, backend, ops, self.tuned, self.penalties, self.constraint)

    def of_codes(self) -> tuple[Any, ...]:
        """All that method_of_codes depends on besides the device, to compare."""
        threads = torch.get_num_threads()
        return self.penalties, self.tuned, threads, *choice_of(self.backend)

    def shared(self, destination: Path | str | None) -> dict[str, Any]:
        """The options that must be the same in all processes of a fit. destination: of the
        codes."""
        return {
            **self.of_a_fit(),
            "tol": self.tol,
            "stop": self.stop,
            "max_iter": self.iterations,
            "codes": "in a file" if isinstance(destination, Path) else destination,
            "checkpoint": None if self.checkpoint is None else "a file",
            "resume": self.resume,
        }

    def seed_of_start(self, processes: Processes) -> int | None:
        """The seed of the start: the one that is given, else one that is drawn; None for a pair,
        which needs none. All processes call this."""
        if self.seed is None and self.start_name != "given":
            return processes.draw_seed()
        return self.seed

    def destination(self, processes: Processes = ALONE) -> Path | str | None:
        """Where codes go: 'memory', 'sparse', the file of this process, or None."""
        return destination(self.codes, processes, optional=True)

    def budget(
        self,
        device: torch.device,
        codes: Path | str | None = "memory",
        processes: Processes = ALONE,
        *,
        width: int | None = None,
    ) -> Budget:
        """The memory that a fit may use; with `width` another call, which computes that many
        entries for each row."""
        fits = width is None
        place = "none" if codes is None else "memory" if codes == "memory" else "file"
        place = SPARSE if fits and are_sparse(codes) else place
        chunked = place == "none" or (place == SPARSE and not self._sweeps_sparse(device))
        return Budget(
            device,
            width or self.nb_concepts,
            place,
            bytes_of(self.max_memory),
            self.tuned.chunk_rows,
            self.start_name if fits else "random",
            self.revive and fits,
            processes.on_host,
            chunked=chunked,
        )

    def _sweeps_sparse(self, device: torch.device) -> bool:
        """Whether the dictionary half-step of a fit of one process takes codes in compressed rows,
        in both forms."""
        by = learner(self.solvers[self.solver], self.nb_concepts, self.constraint)
        plain = self.weights is None and not self.offset and not self.distributed
        return by.restricts and plain and device.type == "cpu"

    def of_a_fit(self) -> dict[str, Any]:
        """The options that must be the same when a fit resumes from a checkpoint, and in all
        processes that share one."""
        names = ("nb_concepts", "solver", "n_init", "seed", "accelerate", "revive")
        names += ("alpha_Z", "alpha_D", "l1_ratio", "unit_norm", "offset", "target_l0", "top_k")
        tuning, weights = self.tuned, self.weights
        return {
            "weights": None if weights is None else weights.identity(),
            **{name: getattr(self, name) for name in names},
            "init": self.start_name,
            "dictionary": self.constraint.name,
            "form": tuning.form or "auto",
            "block": tuning.block,
            "precision": tuning.precision or "auto",
        }


def _read_weights(given: Any) -> Any:
    # few fits need what this imports
    from ..data.weights.given import read_weights

    return read_weights(given)


def generator(seed: int | None, sequence: int = 0) -> torch.Generator | None:
    """A generator for the seed, or None without one. Codes and dictionary that are drawn one at a
    time are of different sequences of random numbers."""
    if seed is None:
        return None
    return torch.Generator().manual_seed((seed + sequence * _SEQUENCE) % 2**63)


@overload
def destination(
    codes: Any, processes: Processes = ALONE, *, optional: Literal[False]
) -> Path | str: ...


@overload
def destination(
    codes: Any, processes: Processes = ALONE, *, optional: bool
) -> Path | str | None: ...


def destination(codes: Any, processes: Processes = ALONE, *, optional: bool) -> Path | str | None:
    """Where codes go: 'memory'; 'sparse', in memory too; the .npy or .npz file of this process that
    `codes` names; or None where that is optional."""
    if codes is None and optional:
        return None
    if not isinstance(codes, str | os.PathLike):
        none = ", or None to compute them anew in every pass" if optional else ""
        kinds = "'memory', 'sparse' or the path of a .npy or .npz file"
        raise TypeError(f"codes={codes!r} must be {kinds}{none}")
    if codes in ("memory", SPARSE):
        return str(codes)
    return output(processes.own(codes), sparse=True)


def with_run(options: Options, max_iter: int | None, **run: Any) -> Options:
    """The options with those of a call of fit; max_iter=None is the constructor's."""
    return replace(options, max_iter=options.max_iter if max_iter is None else max_iter, **run)
