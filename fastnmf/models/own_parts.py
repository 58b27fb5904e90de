"""What Overcomplete's users replace in its models: solvers as functions of (A, Z, D), and methods
that give the start. Those of fastnmf have the same form, and those of a user are run."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import checks
from ..data.arrays import Expected, read_matrix
from ..errors import InvalidInput
from ..fit.options import Options
from ..isolation import isolated
from ..solvers.least_squares import solution
from ..solvers.registry import OTHER_NAMES
from .hints import refuse_unknown_option

Solve = Callable[..., tuple[Tensor, Tensor]]
Start = Callable[[Tensor], tuple[Tensor, Tensor]]
# options that a function of the user's gets, or that do not concern it
_KNOWN_TO_A_FUNCTION = (
    *("nb_concepts", "device", "solver", "tol", "verbose", "max_iter", "init", "seed"),
)
# methods that a user may replace, and the start that they give
_STARTS = {"init_nndsvda": "nndsvda"}
_STARTS |= dict.fromkeys(("init_random_z", "init_random_d", "init_random_w"), "random")


class SolverFunction:
    """A solver of fastnmf as a function, with the arguments of Overcomplete's.

    name: of the solver. model: the class that computes.
    """

    def __init__(self, name: str, model: type) -> None:
        self.name, self._model = name, model

    @isolated
    def __call__(
        self,
        A: Any,
        Z: Any,
        D: Any,
        update_Z: bool = True,
        update_D: bool = True,
        max_iter: int = 500,
        tol: float = 1e-5,
        verbose: bool = False,
        **penalty: float,
    ) -> tuple[Tensor, Tensor]:
        """(Z, D) from a start Z (n, K), D (K, d), which are not changed: both of them fitted to A
        (n, d), or one for the other as it is. penalty: l1_penalty, where Overcomplete's has it."""
        if self._model.constraint.of_rows:
            raise InvalidInput(
                "solvers of ConvexNMF are no functions of (A, Z, W) here; give the start to the "
                "model: ConvexNMF(K, init=(Z0, W0)).fit(A)"
            )
        device = A.device if isinstance(A, Tensor) else torch.device("cpu")
        signed = self._model.constraint.signed
        A, Z, D = (
            read_matrix(F, device, Expected(name, signed=signed and name != "Z"))
            for name, F in (("A", A), ("Z", Z), ("D", D))
        )
        self._check_penalty(penalty)
        options = {"solver": self.name, "device": device, "tol": tol, "verbose": verbose}
        options |= penalty
        if checks.flag("update_Z", update_Z) and checks.flag("update_D", update_D):
            return self._model(len(D), init=(Z, D), **options).fit(A, max_iter)
        model = self._model(len(D), **options)
        given = {"max_iter": max_iter, "tol": tol, "method": "sweeps"}
        if update_Z:
            return model.load_dictionary(D).encode(A, Z0=Z, **given), D
        if update_D and signed:
            return Z, D + solution(Z.T @ (A - Z @ D), Z.T @ Z)
        if update_D:
            # Aᵀ ≈ Dᵀ Zᵀ
            return Z, model.load_dictionary(Z.T).encode(A.T, Z0=D.T, **given).T.contiguous()
        return Z, D

    def _check_penalty(self, penalty: dict[str, float]) -> None:
        name = next((name for name in penalty if name not in self._model.passed_on["fit"]), None)
        if name is not None:
            raise TypeError(f"the solver {self.name!r} has no argument {name!r}")

    def __repr__(self) -> str:
        return f"<solver {self.name!r} of fastnmf: (A, Z, D, …) → (Z, D)>"


def with_l1_penalty(given: dict[str, Any], l1_penalty: float) -> dict[str, Any]:
    """The options with Overcomplete's l1_penalty, mean(|A − Z D|²) + l1_penalty · mean(Z), as
    penalties of fastnmf: the same objective."""
    if checks.penalty("l1_penalty", l1_penalty) == 0:
        return given
    checks.whole("nb_concepts", given["nb_concepts"], at_least=1, at_most=checks.MOST)
    alpha_Z = l1_penalty / (2 * given["nb_concepts"])
    if given["alpha_Z"] or given["l1_ratio"] or given["alpha_D"] not in ("same", 0):
        raise InvalidInput(
            f"l1_penalty={l1_penalty:g} is alpha_Z={alpha_Z:.4g}, l1_ratio=1 and alpha_D=0, and "
            "goes with none of them; give it, or these"
        )
    return given | {"alpha_Z": alpha_Z, "l1_ratio": 1.0, "alpha_D": 0}


def l1_penalty_of(model: Any) -> float:
    """Overcomplete's l1_penalty of a model."""
    return 2 * model.nb_concepts * model.alpha_Z * model.l1_ratio


def set_l1_penalty(model: Any, weight: float) -> None:
    """Set Overcomplete's l1_penalty of a model."""
    weight = checks.penalty("l1_penalty", weight)
    model.alpha_Z, model.l1_ratio, model.alpha_D = weight / (2 * model.nb_concepts), 1.0, 0


def refuse_unknown_options(model: Any, unknown: dict[str, Any]) -> None:
    """Raise TypeError for an option of the constructor that does not exist."""
    parameters = inspect.signature(model.public_class().__init__).parameters.values()
    valid = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD][1:]
    refuse_unknown_option(type(model), model.public_class(), unknown, valid)


def function_of(model: Any) -> Solve:
    """The solver of a model as a function: the one assigned to its solver_fn, or that of its class
    for its solver."""
    assigned = vars(model).get("_solver_fn")
    if assigned is not None:
        return assigned
    return model._SOLVERS[checks.one_of("solver", model.solver, model._SOLVERS, OTHER_NAMES)]


def own_function(model: Any) -> Solve | None:
    """The solver function of a model if it is the user's, with which all its options must go."""
    function = function_of(model)
    if isinstance(function, SolverFunction):
        return None
    if model.constraint.of_rows:
        raise InvalidInput(
            f"the solver {model.solver!r} is a function of your own, which {type(model).__name__} "
            f"does not take; give one of {', '.join(model.public_class()._SOLVERS)}"
        )
    defaults = {field.name: field.default for field in fields(Options)}
    known = {*_KNOWN_TO_A_FUNCTION, *_passed_on_as_l1_penalty(model)}
    for name in vars(model).keys() & defaults.keys() - known:
        value = getattr(model, name)
        if value != defaults[name] and value not in (False, 0):
            refuse_for_own_function(model, f"{name}={value!r}")
    return function


def _passed_on_as_l1_penalty(model: Any) -> tuple[str, ...]:
    """The options that a function of the user's gets as l1_penalty."""
    if "l1_penalty" in model.passed_on["fit"] and (model.l1_ratio, model.alpha_D) == (1, 0):
        return ("alpha_Z", "alpha_D", "l1_ratio")
    return ()


def native_solver(model: Any) -> str:
    """The name of the solver of fastnmf that a model computes with; where it has a function of the
    user's, the default."""
    function = function_of(model)
    if isinstance(function, SolverFunction):
        return function.name
    return Options.solver


def refuse_for_own_function(model: Any, what: str) -> NoReturn:
    """Raise InvalidInput: `what` is asked for, which a function of the user's cannot do."""
    raise InvalidInput(
        f"{what} does not go with the solver {model.solver!r}, which is a function of your own: it "
        "is given A, Z, D, max_iter, tol and verbose; leave it out, or take a solver of fastnmf"
    )


def refuse_asked(model: Any, **asked: Any) -> None:
    """Raise InvalidInput for the first of these arguments, by name, that is not as it is by
    default, which a function of the user's does not know."""
    for name, value in asked.items():
        plain = isinstance(value, str | bool) and value in ("memory", "auto", False)
        if value is not None and not plain:
            refuse_for_own_function(model, "weights" if name == "weights" else f"{name}={value!r}")


def fit_by(function: Solve, model: Any, A: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
    """Fit by a function of the user's, as Overcomplete calls it, from the start that it takes."""
    pair, starts = model.init, model._own_starts()
    if isinstance(pair, str):
        if pair not in ("auto", *starts):
            refuse_for_own_function(model, f"init={pair!r}")
        pair = starts[_start_of(model, A)](A)
    Z = read_matrix(pair[0], A.device, Expected("Z")).clone()
    D = read_matrix(pair[1], A.device, model.expected("D")).clone()
    given = {"max_iter": max_iter, "tol": model.tol, **_passed_on(model, "fit")}
    return _checked(function(A, Z, D, **given), model, A)


def encode_by(
    function: Solve, model: Any, A: Any, Z0: Any, max_iter: int, tol: float | None
) -> Tensor:
    """The codes of A by a function of the user's, as Overcomplete calls it."""
    D = model.D
    checked = read_matrix(A, model.device, model.expected(features=D.shape[1]))
    A = A.to(checked) if isinstance(A, Tensor) and A.requires_grad else checked
    Z0 = model.init_random_z(checked) if Z0 is None else Z0
    Z = read_matrix(Z0, checked.device, Expected("Z0")).clone()
    tol = model.tol if tol is None else tol
    kept = {"update_Z": True, "update_D": False}
    given = {**kept, "max_iter": max_iter, "tol": tol, **_passed_on(model, "encode")}
    return _checked(function(A, Z, D, **given), model, checked)[0]


def _passed_on(model: Any, call: str) -> dict[str, Any]:
    return {name: getattr(model, name) for name in model.passed_on[call]}


def own_start(model: Any, A: Any) -> tuple[Any, tuple[Tensor, Tensor] | None]:
    """A, and a start of it by those methods that the user has replaced; as it is and None where the
    start is not one of theirs, or none is replaced. Otherwise A is read into memory."""
    ways = {start for name, start in _STARTS.items() if _replaced(model, name)}
    if not ways or not isinstance(model.init, str) or model.init not in ("auto", *ways):
        return A, None
    _refuse_sharing(model)
    A = read_matrix(A, model.device, model.expected())
    way = _start_of(model, A)
    return (A, model._own_starts()[way](A)) if way in ways else (A, None)


def own_codes(model: Any, A: Any) -> tuple[Any, Tensor | None]:
    """A, and codes to encode from where the user has replaced init_random_z, which Overcomplete
    calls for them; else None."""
    if not _replaced(model, "init_random_z"):
        return A, None
    checked = read_matrix(A, model.device, model.expected())
    differentiates = isinstance(A, Tensor) and A.requires_grad
    return A if differentiates else checked, model.init_random_z(checked)


def _refuse_sharing(model: Any) -> None:
    if model.distributed:
        raise InvalidInput(
            f"{type(model).__name__} has a start of its own, which processes cannot share; give "
            "distributed=False, or a pair init=(Z0, D0)"
        )


def _replaced(model: Any, name: str) -> bool:
    """Whether a method of the model is another than that of fastnmf's class."""
    native = getattr(model.public_class(), name, None)
    return native is not None and getattr(getattr(model, name), "__func__", None) is not native


def _start_of(model: Any, A: Tensor) -> str:
    """The start that Overcomplete takes where `init` means this one: the same, or random where it
    does not have it."""
    from ..init.start import resolve

    name = resolve(model.init, len(A), A.shape[1], model.nb_concepts, model.constraint)
    return name if name in model._own_starts() else "random"


def _checked(found: Any, model: Any, A: Tensor) -> tuple[Tensor, Tensor]:
    """(Z, D) as a function of the user's returned it."""
    shapes = (len(A), model.nb_concepts), (model.nb_concepts, A.shape[1])
    pair = isinstance(found, tuple | list) and len(found) == 2
    tensors = pair and all(isinstance(F, Tensor) for F in found)
    if not tensors or tuple(tuple(F.shape) for F in found) != shapes:
        given = [tuple(F.shape) for F in found] if tensors else type(found).__name__
        raise InvalidInput(
            f"the solver {model.solver!r}, a function of your own, returned {given}; it must "
            f"return two tensors (Z, D) of shapes {shapes[0]} and {shapes[1]}"
        )
    return tuple(found)
