"""NMF: a class that users see, a torch module with Overcomplete's interface. All but its
constructor and its starts is in factorization.py."""

# torch's own types are incomplete; matrices are upper case
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportConstantRedefinition=false

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..fit.options import generator
from ..isolation import isolated
from ..planning.plan import Tuning
from ..solvers.registry import SOLVERS
from . import own_parts
from .factorization import OPTIONS, Factorization
from .hints import with_hints
from .own_parts import Solve


class NMF(Factorization):
    """Non-negative matrix factorization A ≈ Z D, with codes Z ≥ 0 and a dictionary D ≥ 0.

    A (n, d) holds n rows of d features. Z (n, K) holds a code for each row, D (K, d) one *concept*
    in each row. In scikit-learn's words, a concept is a component, D is ``components_`` and Z is
    what ``fit_transform`` returns. `fit` minimises::

        ½ ‖A − Z D‖² + alpha_Z d P(Z) + alpha_D n P(D)
        P(F) = l1_ratio Σ F + ½ (1 − l1_ratio) ‖F‖²

    Penalties are scaled as in scikit-learn, whose names are ``alpha_W`` and ``alpha_H``. The
    interface is that of Overcomplete's NMF. Options beyond it are given by name.

    Parameters
    ----------
    nb_concepts : int
        K, the number of concepts (scikit-learn: ``n_components``), at least 1. It may be more than
        n or d.
    device : str or torch.device, default 'cpu'
        Where to compute and to keep D. It follows ``.to()``.
    solver : {'hals', 'mu', 'pgd', 'anls'}, default 'hals'
        Method of the half-steps: hierarchical alternating least squares (scikit-learn: ``'cd'``),
        multiplicative updates, projected gradient with momentum, or exact non-negative least
        squares.
    tol : float, default 1e-4
        Relative change at which a fit stops, see `stop`. 0 never stops early.
    verbose : bool, default False
        Show a progress bar: how far the fit is on the way to its stopping rule, the time left,
        relative change and relative error.
    max_iter : int, optional
        Largest number of iterations of `fit`, at least 0; by default 500.
    init : str or (Z0, D0), default 'auto'
        The start. 'auto' is 'nndsvda' if K ≤ min(n, d), else 'random'. 'nndsvda', 'nndsvd' and
        'nndsvdar' take singular vectors of A, with the mean of A, nothing or small random numbers
        in place of zeros. 'rows' and 'spread' take rows of A as concepts: any rows, or rows that
        differ from each other. These starts are scaled to A; a pair is used as it is, and
        (None, D0) with codes for D0. 'sample' fits some of the rows, drawn at random, and goes on
        from their dictionary with all rows: for many rows, and for data that are read in passes.
    n_init : int, default 1
        Starts to choose from, up to 10,000: short runs of all of them, of which the better half
        goes on, twice as long, until one is left. 'auto' is then taken once, and 'random' for the
        others. Needs rows and codes in memory, but not with ``init='sample'``, whose sample all
        starts share.
    seed : int, optional
        Seed of random numbers (scikit-learn: ``random_state``), at least 0. The same seed gives the
        same bits every time. By default torch's global generator draws one, which the summary
        (``fit_info_.seed``) has, so that the fit can be repeated.
    alpha_Z : float, default 0.0
        Weight of the penalty on the codes, at least 0.
    alpha_D : float or 'same', default 'same'
        Weight of the penalty on the dictionary, at least 0. 'same' is alpha_Z, or 0 with
        `unit_norm`.
    l1_ratio : float, default 0.0
        Share of the penalties that is l1, from 0 to 1.
    unit_norm : bool, default False
        Keep concepts at Euclidean norm 1 and their scale in Z, so that a penalty on the codes alone
        has a minimum.
    target_l0 : float, optional
        Mean number of active concepts per row, above 0, up to nb_concepts. `fit` finds the l1
        penalty of the codes for it, with concepts of norm 1 (``alpha_Z_`` afterwards), and `encode`
        one of its own for the rows it is given. Not with `alpha_Z`, `alpha_D` or the solver 'mu'.
    top_k : int, optional
        Largest number of active concepts of a row, from 1 to nb_concepts, in `fit` and by default
        in `encode`: codes by orthogonal matching pursuit. Not with `target_l0` or `alpha_Z`.
    accelerate : bool or 'auto', default 'auto'
        True extrapolates the factors between iterations of several half-steps. 'auto' does so where
        it pays, if neither a pair (Z0, D0) nor ``Tuning.form`` is given. False gives the iterates
        of the plain loop.
    revive : bool, default False
        Re-initialise dead concepts and near-duplicates from the rows of A that are explained worst,
        where that lowers the objective.
    stop : {'change', 'error', 'validation'}, default 'change'
        What must change by at most `tol`: both factors, ‖ΔZ‖ ≤ tol ‖Z‖ and ‖ΔD‖ ≤ tol ‖D‖; or the
        relative error (with penalties, the objective) over 10 iterations; or the error of the rows
        of ``fit(A, validation=…)``, in three measurements, and the best dictionary is kept.
    backend : str, default 'auto'
        What supplies the operations, see `fastnmf.available_backends`. A backend that is named is
        used, or raises.
    max_memory : int or str, optional
        Bytes by which the process may grow, such as '2GB' or '512MiB'; by default 70 % of the
        available memory. Data that do not fit are read in passes.
    distributed : bool, default False
        Share `fit` and `partial_fit` between the processes of torch.distributed's default group,
        each of which gives rows of its own.
    tuning : fastnmf.Tuning, optional
        What the plan otherwise chooses: form, block, chunk_rows, precision, cuda_graph,
        checkpoint_seconds.

    Attributes
    ----------
    D : Tensor (K, d) or None
        The dictionary, a buffer of the module. None before `fit`.
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
    fastnmf.nnls : Exact codes for a given dictionary, of any signs.
    fastnmf.Tuning : How a fit is computed.

    Notes
    -----
    There is no ``transform``: use `encode`. Penalties and `unit_norm` do not go together with
    ``accelerate=True`` or with `partial_fit`.

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
    >>> nmf.fit_info_.converged
    True
    >>> nmf.encode(A[:2]).shape
    torch.Size([2, 3])
    """

    _SOLVERS: ClassVar[dict[str, Solve]] = {}

    @with_hints
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
        n_init: int = 1,
        seed: int | None = None,
        alpha_Z: float = 0.0,
        alpha_D: float | str = "same",
        l1_ratio: float = 0.0,
        unit_norm: bool = False,
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
        self._take_options(given, unknown)

    @isolated
    def init_random_z(self, A: Any) -> Tensor:
        """Return random codes (n, K) for A (n, d): |normal| · sqrt(mean(A) / K).

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with its
        codes as Overcomplete does, and encode too.
        """
        from ..init.start import random_codes

        drawn = generator(self.seed)
        return random_codes(self._matrix(A), self.nb_concepts, drawn)

    @isolated
    def init_random_d(self, A: Any) -> Tensor:
        """Return a random dictionary (K, d) for A (n, d): |normal| · sqrt(mean(A) / K).

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with it.
        """
        from ..init.start import random_dictionary

        drawn = generator(self.seed, 1)
        return random_dictionary(self._matrix(A), self.nb_concepts, drawn)

    @isolated
    def init_nndsvda(self, A: Any) -> tuple[Tensor, Tensor]:
        """Return a start (Z, D) from the leading singular vectors of A, zeros filled with its mean.

        For Overcomplete's users, who may call it. Where a subclass replaces it, fit starts with its
        pair. Source: Boutsidis & Gallopoulos, "SVD based initialization", 2008.
        """
        from ..init.start import nndsvda

        drawn = generator(self.seed)
        return nndsvda(self._matrix(A), self.nb_concepts, drawn)

    def _own_starts(self) -> dict[str, own_parts.Start]:
        # Overcomplete's order: codes first
        return {
            "nndsvda": self.init_nndsvda,
            "random": lambda A: (self.init_random_z(A), self.init_random_d(A)),
        }


for _name in SOLVERS:
    NMF._SOLVERS[_name] = own_parts.SolverFunction(_name, NMF)  # pyright: ignore[reportPrivateUsage]
