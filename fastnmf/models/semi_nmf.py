"""SemiNMF: a class that users see, for data of any signs. All but its constructor and its starts is
in factorization.py."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.arrays import Expected, read_matrix
from ..fit.options import generator
from ..init import signed as starts
from ..isolation import isolated
from ..planning.plan import Tuning
from ..solvers.constraints import FREE, Constraint
from ..solvers.least_squares import solution
from ..solvers.registry import solvers_of
from . import own_parts
from .factorization import OPTIONS, Factorization
from .hints import with_hints
from .own_parts import Solve


class SemiNMF(Factorization):
    """Semi-NMF A ≈ Z D of data of any signs, with codes Z ≥ 0 and a dictionary D of any signs.

    A (n, d), Z (n, K) and D (K, d) are those of `fastnmf.NMF`, and so is all that is not described
    here. `fit` minimises::

        ½ ‖A − Z D‖² + alpha_Z d P(Z) + ½ alpha_D n ‖D‖²
        P(Z) = l1_ratio Σ Z + ½ (1 − l1_ratio) ‖Z‖²

    With ``offset=True`` Z D + b is in place of Z D, there and in `encode`, `decode` and all errors.

    The interface is that of Overcomplete's SemiNMF. Options beyond it are given by name.

    Parameters
    ----------
    nb_concepts : int
        K, the number of concepts, at least 1. It may be more than n or d.
    solver : {'hals', 'mu', 'pgd', 'anls'}, default 'hals'
        Method of the half-steps: block coordinate descent, Overcomplete's multiplicative updates,
        projected gradient with momentum, or exact non-negative least squares. With 'mu' and 'anls'
        the dictionary is the exact least squares solution for the codes.
    device : str or torch.device, default 'cpu'
        Where to compute and to keep D. It follows ``.to()``.
    tol : float, default 1e-4
        Relative change at which a fit stops, see `stop`. 0 never stops early.
    l1_penalty : float, default 0.0
        Overcomplete's weight of an l1 penalty on the codes, at least 0: the same objective as
        ``alpha_Z=l1_penalty / (2 K)``, ``l1_ratio=1`` and ``alpha_D=0``, which it sets.
    verbose : bool, default False
        Show a progress bar: how far the fit is on the way to its stopping rule, the time left,
        relative change and relative error.
    max_iter : int, optional
        Largest number of iterations of `fit`, at least 0; by default 500.
    init : {'auto', 'random', 'svd', 'rows', 'spread', 'sample'} or (Z0, D0), default 'auto'
        The start. 'svd' takes singular vectors with the sign that explains more, 'random' is
        Overcomplete's, 'rows' and 'spread' take rows of A as concepts: any rows, or rows that
        differ from each other. 'auto' is 'svd' if K ≤ min(n, d), else 'random'. A pair is used as
        it is, and (None, D0) with codes for D0. 'sample' fits some of the rows, drawn at random,
        and goes on from their dictionary with all rows: for many rows, and for data that are read
        in passes.
    n_init : int, default 1
        Starts to choose from, up to 10,000: short runs of all of them, of which the better half
        goes on, twice as long, until one is left. 'auto' is then taken once, and 'random' for the
        others. Needs rows and codes in memory, but not with ``init='sample'``, whose sample all
        starts share.
    seed : int, optional
        Seed of random numbers, as for NMF.
    alpha_Z : float, default 0.0
        Weight of the penalty on the codes, at least 0.
    alpha_D : float or 'same', default 'same'
        Weight of the penalty on the dictionary, at least 0. 'same' is alpha_Z, or 0 with
        `unit_norm`.
    l1_ratio : float, default 0.0
        Share of the penalty on the codes that is l1, from 0 to 1. Above 0 only without a penalty on
        the dictionary.
    unit_norm : bool, default False
        Keep concepts at Euclidean norm 1 and their scale in Z, so that a penalty on the codes alone
        has a minimum.
    offset : bool, default False
        Learn a row b (d,) with A ≈ Z D + b, which is not penalised, so that no concept carries the
        mean: what an autoencoder calls the bias of its decoder.
    target_l0 : float, optional
        Mean number of active concepts per row, above 0, up to nb_concepts. `fit` finds the l1
        penalty of the codes for it, with concepts of norm 1 (``alpha_Z_`` afterwards), and `encode`
        one of its own for the rows it is given. Not with `alpha_Z`, `alpha_D` or the solver 'mu'.
    top_k : int, optional
        Largest number of active concepts of a row, from 1 to nb_concepts, in `fit` and by default
        in `encode`: codes by orthogonal matching pursuit. Not with `target_l0` or `alpha_Z`.
    accelerate : bool or 'auto', default 'auto'
        Extrapolate the factors between iterations, as for NMF.
    revive : bool, default False
        Re-initialise dead concepts and near-duplicates, as for NMF.
    stop : {'change', 'error', 'validation'}, default 'change'
        What must change by at most `tol`, as for NMF.
    backend : str, default 'auto'
        What supplies the operations, see `fastnmf.available_backends`.
    max_memory : int or str, optional
        Bytes by which the process may grow, as for NMF.
    distributed : bool, default False
        Share `fit` and `partial_fit` between processes, as for NMF.
    tuning : fastnmf.Tuning, optional
        What the plan otherwise chooses. 'mu' has the form 'normal' only.

    Attributes
    ----------
    D : Tensor (K, d) or None
        The dictionary, a buffer of the module. None before `fit`.
    offset_ : Tensor (d,) or None
        The offset b, a buffer of the module. None before `fit`, and without `offset`.
    fitted : bool
        Whether there is a dictionary.
    alpha_Z_ : float or None
        The penalty of the codes of the last `fit`, given or found for `target_l0`.
    fit_info_ : FitInfo or None
        Summary of the last `fit`. Print it.
    online_info_ : OnlineInfo or None
        Summary of `partial_fit` so far. Print it.

    Raises
    ------
    InvalidInput
        For an option value that cannot be used. It is a ValueError.
    TypeError
        For an option of the wrong type, or one that does not exist.

    See Also
    --------
    fastnmf.NMF : For data without negative entries.

    Notes
    -----
    Without a penalty most codes are in use: concepts of any signs cancel. With ``unit_norm=True``
    and an l1 penalty on the codes few are.

    References
    ----------
    .. [1] C. Ding, T. Li and M. I. Jordan, "Convex and semi-nonnegative matrix factorizations",
       2010.
    .. [2] N. Gillis and A. Kumar, "Exact and heuristic algorithms for semi-nonnegative matrix
       factorization", 2015.

    Examples
    --------
    >>> import torch
    >>> from fastnmf import SemiNMF
    >>> A = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> model = SemiNMF(3, seed=0)
    >>> Z, D = model.fit(A)
    >>> Z.shape, D.shape
    (torch.Size([100, 3]), torch.Size([3, 8]))
    >>> bool((Z >= 0).all()), bool((D < 0).any())
    (True, True)
    >>> model.encode(A[:2]).shape
    torch.Size([2, 3])
    """

    constraint: ClassVar[Constraint] = FREE
    passed_on: ClassVar = {"fit": ("l1_penalty", "verbose"), "encode": ("l1_penalty",)}
    _SOLVERS: ClassVar[dict[str, Solve]] = {}

    @with_hints
    def __init__(
        self,
        nb_concepts: int,
        solver: str = "hals",
        device: str | torch.device = "cpu",
        tol: float = 1e-4,
        l1_penalty: float = 0.0,
        verbose: bool = False,
        *,
        max_iter: int | None = None,
        init: str | tuple[Any, Any] = "auto",
        n_init: int = 1,
        seed: int | None = None,
        alpha_Z: float = 0.0,
        alpha_D: float | str = "same",
        l1_ratio: float = 0.0,
        unit_norm: bool = False,
        offset: bool = False,
        target_l0: float | None = None,
        top_k: int | None = None,
        accelerate: bool | str = "auto",
        revive: bool = False,
        stop: str = "change",
        backend: str = "auto",
        max_memory: int | str | None = None,
        distributed: bool = False,
        tuning: Tuning | None = None,
        **unknown: Any,
    ) -> None:
        """Check the options; the class describes them."""
        given: dict[str, Any] = {n: value for n, value in locals().items() if n in OPTIONS}
        super().__init__()
        given = own_parts.with_l1_penalty(given, l1_penalty)
        self._take_options(given, unknown)

    @property
    def l1_penalty(self) -> float:
        """The weight of the l1 penalty on the codes, as Overcomplete has it."""
        return own_parts.l1_penalty_of(self)

    @l1_penalty.setter
    def l1_penalty(self, weight: float) -> None:
        own_parts.set_l1_penalty(self, weight)

    @isolated
    def init_random_z(self, A: Any) -> Tensor:
        """Return random codes (n, K) for A (n, d): |normal| · sqrt(mean(|A|) / K).

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with its
        codes as Overcomplete does, and encode too.
        """
        return starts.random_codes(self._matrix(A), self.nb_concepts, generator(self.seed))

    @isolated
    def init_random_d(self, A: Any, Z: Any) -> Tensor:
        """Return the least squares dictionary (K, d) for A (n, d) and codes Z (n, K).

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with it.
        """
        A = self._matrix(A)
        Z = read_matrix(Z, A.device, Expected("Z")).to(A.dtype)
        return solution(Z.T @ A, Z.T @ Z)

    def _own_starts(self) -> dict[str, own_parts.Start]:
        def random(A: Tensor) -> tuple[Tensor, Tensor]:
            Z = self.init_random_z(A)
            return Z, self.init_random_d(A, Z)

        return {"random": random}


for _name in solvers_of(FREE):
    SemiNMF._SOLVERS[_name] = own_parts.SolverFunction(_name, SemiNMF)  # pyright: ignore[reportPrivateUsage]
