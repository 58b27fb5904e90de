"""ConvexNMF: a class that users see, for concepts that are mixtures of rows of the data. All but
its constructor, its starts and W is in factorization.py."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from .. import checks
from ..errors import InvalidInput
from ..fit.options import generator
from ..init import signed as starts
from ..init.mixed import random_weights
from ..isolation import isolated
from ..planning.plan import Tuning
from ..solvers.constraints import CONVEX, MIXED, Constraint
from ..solvers.registry import solvers_of
from . import own_parts
from .factorization import OPTIONS, Factorization
from .hints import with_hints
from .own_parts import Solve

# options of the other models, and their defaults
_OTHERS = {"accelerate": "auto", "revive": False, "unit_norm": False, "distributed": False}


class ConvexNMF(Factorization):
    """Convex-NMF A ≈ Z D with D = W A: codes Z ≥ 0, and concepts that are mixtures, W ≥ 0, of rows
    of A, which may have any signs.

    A (n, d), Z (n, K) and D (K, d) are those of `fastnmf.NMF`, and so is all that is not described
    here. `fit` minimises, over Z ≥ 0 and W ≥ 0::

        ½ ‖A − Z W A‖² + alpha_Z d P(Z) + ½ alpha_D n ‖W A‖²
        P(Z) = l1_ratio Σ Z + ½ (1 − l1_ratio) ‖Z‖²

    The interface is that of Overcomplete's ConvexNMF. Options beyond it are given by name.

    Parameters
    ----------
    nb_concepts : int
        K, the number of concepts, at least 1. It may be more than n or d.
    device : str or torch.device, default 'cpu'
        Where to compute and to keep D and W. It follows ``.to()``.
    tol : float, default 1e-4
        Relative change at which a fit stops, see `stop`. 0 never stops early.
    strict_convex : bool, default False
        Let the weights of each concept sum to 1: it then lies in the convex hull of the rows.
    solver : {'anls', 'hals', 'pgd', 'mu'}, default 'anls'
        Method of the half-steps of the codes: exact non-negative least squares, block coordinate
        descent, projected gradient with momentum, or Overcomplete's multiplicative updates. The
        weights of each concept are exact for the others, whatever the solver is.
    verbose : bool, default False
        Show a progress bar: how far the fit is on the way to its stopping rule, the time left,
        relative change and relative error.
    l1_penalty : float, default 0.0
        Overcomplete's weight of an l1 penalty on the codes, at least 0: the same objective as
        ``alpha_Z=l1_penalty / (2 K)``, ``l1_ratio=1`` and ``alpha_D=0``, which it sets.
    max_iter : int, optional
        Largest number of iterations of `fit`, at least 0; by default 500.
    init : {'auto', 'random', 'rows', 'spread'} or (Z0, W0), default 'auto'
        The start. 'spread' and 'rows' take rows of A as concepts, such as differ from each other or
        any; 'random' mixes some rows in each concept, with random codes. 'auto' is 'spread', and
        with 'mu' 'random'. A pair is used as it is, and (None, W0) with codes for W0 A; W0
        (K, n) may be sparse.
    n_init : int, default 1
        Starts to choose from, up to 10,000: short runs of all of them, of which the better half
        goes on, twice as long, until one is left. Needs rows and codes in memory.
    seed : int, optional
        Seed of random numbers, as for NMF.
    alpha_Z : float, default 0.0
        Weight of the penalty on the codes, at least 0.
    alpha_D : float or 'same', default 'same'
        Weight of the penalty on the dictionary, at least 0. 'same' is alpha_Z.
    l1_ratio : float, default 0.0
        Share of the penalty on the codes that is l1, from 0 to 1. Above 0 only without a penalty on
        the dictionary, which is bounded with ``strict_convex=True``.
    stop : {'change', 'error', 'validation'}, default 'change'
        What must change by at most `tol`, as for NMF.
    backend : str, default 'auto'
        What supplies the operations, see `fastnmf.available_backends`.
    max_memory : int or str, optional
        Bytes by which the process may grow, as for NMF.
    tuning : fastnmf.Tuning, optional
        What the plan otherwise chooses. The form is 'normal'.

    Attributes
    ----------
    D : Tensor (K, d) or None
        The dictionary W A, a buffer of the module. None before `fit`.
    W : Tensor (K, n) or None
        The weights of the rows of A in each concept: a sparse (COO) tensor and a buffer of the
        module. ``W.indices()`` and ``W.values()`` list them. None before `fit`, and for a
        dictionary that was loaded.
    fitted : bool
        Whether there is a dictionary.
    fit_info_ : FitInfo or None
        Summary of the last `fit`. Print it.

    Raises
    ------
    InvalidInput
        For an option value that cannot be used. It is a ValueError.
    TypeError
        For an option of the wrong type, or one that does not exist.

    See Also
    --------
    fastnmf.SemiNMF : For a dictionary of any signs, which leaves a lower error.

    Notes
    -----
    `fit` takes A in memory, or files of rows such as .npy, which may be larger than memory; sparse
    data, batches that are read in passes, several processes and `partial_fit` are refused, since
    concepts may mix any rows. A Aᵀ (n × n) is never formed, nor is W dense.

    References
    ----------
    .. [1] C. Ding, T. Li and M. I. Jordan, "Convex and semi-nonnegative matrix factorizations",
       2010.

    Examples
    --------
    >>> import torch
    >>> from fastnmf import ConvexNMF
    >>> A = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> model = ConvexNMF(3, strict_convex=True, seed=0)
    >>> Z, D = model.fit(A)
    >>> torch.allclose(model.W @ A, D, atol=1e-5)
    True
    >>> rows_of_first_concept = model.W[0].coalesce().indices()[0]
    >>> model.encode(A[:2]).shape
    torch.Size([2, 3])
    """

    constraint: ClassVar[Constraint] = MIXED
    _OWN_BUFFERS: ClassVar[tuple[str, ...]] = ("D", "offset_", "W")
    _SOLVERS: ClassVar[dict[str, Solve]] = {}
    _OWN_OPTIONS: ClassVar[tuple[str, ...]] = ("strict_convex",)
    W: Tensor | None

    @with_hints
    def __init__(
        self,
        nb_concepts: int,
        device: str | torch.device = "cpu",
        tol: float = 1e-4,
        strict_convex: bool = False,
        solver: str = "anls",
        verbose: bool = False,
        l1_penalty: float = 0.0,
        *,
        max_iter: int | None = None,
        init: str | tuple[Any, Any] = "auto",
        n_init: int = 1,
        seed: int | None = None,
        alpha_Z: float = 0.0,
        alpha_D: float | str = "same",
        l1_ratio: float = 0.0,
        stop: str = "change",
        backend: str = "auto",
        max_memory: int | str | None = None,
        tuning: Tuning | None = None,
        **unknown: Any,
    ) -> None:
        """Check the options; the class describes them."""
        given: dict[str, Any] = {n: value for n, value in locals().items() if n in OPTIONS}
        super().__init__()
        self.register_buffer("W", None)
        self.strict_convex = checks.flag("strict_convex", strict_convex)
        # refused with the reason unless they ask for nothing
        given |= {name: unknown.pop(name, default) for name, default in _OTHERS.items()}
        self._take_options(own_parts.with_l1_penalty(given, l1_penalty), unknown)

    @property
    def l1_penalty(self) -> float:
        """The weight of the l1 penalty on the codes, as Overcomplete has it."""
        return own_parts.l1_penalty_of(self)

    @l1_penalty.setter
    def l1_penalty(self, weight: float) -> None:
        own_parts.set_l1_penalty(self, weight)

    def partial_fit(self, A: Any, *, half_life: float | None = None, **unknown: Any) -> NoReturn:
        """Raise InvalidInput: a concept may mix rows of all batches."""
        raise InvalidInput(
            "ConvexNMF has no partial_fit: a concept may mix any rows of A, and those of earlier "
            "batches are gone; give all rows to fit, or the path of a .npy file of them, or learn "
            "by SemiNMF"
        )

    @isolated
    def init_random_z(self, A: Any) -> Tensor:
        """Return random codes (n, K) for A (n, d): |normal| · sqrt(mean(|A|) / K).

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with its
        codes as Overcomplete does, and encode too.
        """
        return starts.random_codes(self._matrix(A), self.nb_concepts, generator(self.seed))

    @isolated
    def init_random_w(self, A: Any) -> Tensor:
        """Return random weights (K, n) of some rows of A (n, d) in each concept; they sum to 1.

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with it.
        """
        return random_weights(self._matrix(A), self.nb_concepts, generator(self.seed, 1))

    def _own_starts(self) -> dict[str, own_parts.Start]:
        return {"random": lambda A: (self.init_random_z(A), self.init_random_w(A))}

    def _constraint(self) -> Constraint:
        return CONVEX if self.strict_convex else MIXED

    def _mixture(self) -> Tensor | None:
        return self.W if self.W is None or self.W.is_sparse else self.W.to_sparse().coalesce()

    def _take_mixture(self, W: Tensor | None) -> None:
        if W is not None:
            # as Overcomplete's class has it, in its place
            W = W.to_dense() if hasattr(self, "stands_in_for") else W
            W = W.to(self.get_dictionary())
        self.W = W

    def _set_fitted(self, **info: Any) -> None:
        super()._set_fitted(**info)
        self.W = None

    def _forget(self) -> None:
        super()._forget()
        self.W = None

    def _load_more(self, state_dict: Mapping[str, Any], prefix: str, error_msgs: list[str]) -> None:
        """Load W where the state has it."""
        key = prefix + "W"
        if key not in state_dict or self.D is None:
            return
        W = state_dict[key]
        if not isinstance(W, Tensor) or W.ndim != 2 or len(W) != len(self.D):
            shape = tuple(W.shape) if isinstance(W, Tensor) else type(W).__name__
            error_msgs.append(f"{key} cannot be loaded: it is {shape}, and must be (K, n)")
            return
        sparse = W.detach() if W.is_sparse else W.detach().to_sparse()
        self._take_mixture(sparse.coalesce())


for _name in solvers_of(MIXED):
    ConvexNMF._SOLVERS[_name] = own_parts.SolverFunction(_name, ConvexNMF)  # pyright: ignore[reportPrivateUsage]
