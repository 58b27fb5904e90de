"""How an encoding ended: the summary that `encode` returns, and what it warns of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.nnls.residual import Terms, measure
from ..backends.products import Matrix, dense
from ..data.storage import row_blocks
from ..engine.codes import Ended
from ..errors import ConvergenceWarning, warn
from ..notebook import folded
from ..numerics import squared_norm
from ..solvers.penalties import NO_PENALTIES, Penalties, Penalty
from ..solvers.supports.pursuit import support_kkt

# entries of scratch arrays
_SCRATCH = 1 << 22


@dataclass(frozen=True)
class EncodeInfo:
    """Report how `encode` ended.

    Attributes
    ----------
    method : str
        What ran: 'exact', 'hals' or 'hals, then exact' (sweeps, which were exact for all rows or
        for most); with method='sweeps' the solver, 'hals', 'mu', 'pgd' or 'anls'; with top_k
        'pursuit'; 'start' with max_iter=0; with refit ', then refit' at the end.
    iterations : int
        The most sweeps of a row, with one for the exact method; with method='sweeps' the most
        iterations of a chunk of rows, and with top_k the most concepts that entered a support.
    converged : bool
        Whether all rows are solved, their KKT residual being at most 1e-6, or 1e-9 in float64. With
        method='sweeps', whether ‖ΔZ‖ ≤ tol ‖Z‖ in all chunks before max_iter was reached.
    kkt : Tensor (n,), float64
        The KKT residual of the codes of each row, computed in float64 from A and D: the largest
        slope of a concept, or of the absolute slopes of those in use, relative to max_k (|D_k aᵀ| +
        Σ_j |D_k D_jᵀ| z_j + l1). 0 is best; 1e-6 is usual for exact codes in float32. With top_k
        or refit only concepts in use count, and with refit no penalty.
    relative_error : float
        ‖A − Z D‖ / ‖A‖, 0 for A of zeros; at least 0.
    alpha_Z : float
        Weight of the penalty of the codes: the model's, or the one that was found for its
        target_l0. 0 or more.

    Examples
    --------
    >>> import torch
    >>> from fastnmf import NMF
    >>> nmf = NMF(2).load_dictionary(torch.eye(2, 5))
    >>> Z, info = nmf.encode(torch.eye(2, 5), return_info=True)
    >>> info.converged, float(info.kkt.max())
    (True, 0.0)
    """

    method: str
    iterations: int
    converged: bool
    kkt: Tensor
    relative_error: float
    alpha_Z: float = 0.0

    def __str__(self) -> str:
        rows = len(self.kkt)
        end = "converged" if self.converged else "not converged"
        largest = f"{float(self.kkt.max()):.1e}" if rows else "none"
        return (
            f"{rows:,} rows by {self.method}: {self.iterations} iterations ({end}); relative error "
            f"{self.relative_error:.6g}, largest KKT residual {largest}"
        )

    def _repr_html_(self) -> str:
        largest = f"{float(self.kkt.max()):.1e}" if len(self.kkt) else "none"
        end = "converged" if self.converged else "not converged"
        lines = {
            "rows": f"{len(self.kkt):,}",
            "method": self.method,
            "iterations": f"{self.iterations}",
            "relative error": f"{self.relative_error:.6g}",
            "largest KKT residual": largest,
            "alpha_Z": f"{self.alpha_Z:g}",
        }
        return folded(f"Codes: relative error {self.relative_error:.4g}, {end}", lines)


class EncodeRecord:
    """What is added up over the chunks of an encoding."""

    def __init__(
        self,
        penalties: Penalties,
        D: Tensor,
        *,
        measures: bool,
        offset: Tensor | None = None,
        refits: bool = False,
    ) -> None:
        """measures: whether the summary is asked for, which takes 2 n K (4 d) flops in float64.
        offset: a row (1, d) that was subtracted from A, or None. refits: whether coefficients are
        refitted without the penalties."""
        self._offset = offset
        self._methods: dict[str, None] = {}
        self._alpha_Z, self._refits = penalties.alpha_Z, refits
        penalties = NO_PENALTIES if refits else penalties
        self._D, self._measures, self._unsolved = D, measures, 0
        self._penalty = penalties.of_codes(D.shape[1])
        self._iterations, self._converged = 0, True
        self._kkt: list[Tensor] = []
        self._squares = torch.zeros(2, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def add(self, A: Matrix, Z: Tensor, ended: list[Ended]) -> None:
        """Add the codes Z (m, K) of the rows A (m, d)."""
        self._iterations = max([self._iterations, *(end.iterations for end in ended)])
        self._converged &= all(end.converged for end in ended)
        self._unsolved += sum(end.unsolved for end in ended)
        for end in ended:
            self._methods |= dict.fromkeys(end.methods)
        if self._measures and len(A):
            for part in row_blocks(len(A), max(1, _SCRATCH // max(self._D.shape))):
                X = dense(A[part]).detach()
                on_support = self._refits or "pursuit" in self._methods
                residual_of = support_kkt if on_support else kkt_residual
                self._kkt.append(residual_of(X, self._D, Z[part], self._penalty).cpu())
                residual = X.to(Z.dtype) - Z[part] @ self._D.to(Z.dtype)
                total = squared_norm(X if self._offset is None else X + self._offset)
                self._squares += torch.stack((squared_norm(residual), total)).cpu()

    def info(self) -> EncodeInfo:
        """The summary of what was added."""
        kkt = torch.cat([torch.zeros(0, dtype=torch.float64, device="cpu"), *self._kkt])
        error, total = self._squares.tolist()
        relative = (error / total) ** 0.5 if total > 0 else 0.0
        methods = sorted(self._methods, key=lambda name: name == "exact") or ["start"]
        method = ", then ".join([*methods, "refit"] if self._refits else methods)
        ended = method, self._iterations, self._converged
        return EncodeInfo(*ended, kkt, relative, self._alpha_Z)

    def warn(self, max_iter: int, tol: float) -> None:
        """Warn where max_iter was reached before tol, or rows are not solved."""
        if self._unsolved:
            warn(
                f"encode: {self._unsolved} rows are not solved exactly, since concepts nearly "
                "depend on each other; give A as float64, or fewer concepts (return_info=True "
                "tells the KKT residual of each row)",
                ConvergenceWarning,
            )
        elif not self._converged and tol > 0 and max_iter > 0:
            warn(
                f"encode: not converged after max_iter={max_iter} iterations of "
                f"{', '.join(self._methods)}, with tol={tol:g}; give method='exact' or 'auto', a "
                "larger max_iter, or a larger tol (tol=0 runs all iterations without this "
                "warning)",
                ConvergenceWarning,
            )


def kkt_residual(A: Tensor, D: Tensor, Z: Tensor, penalty: Penalty) -> Tensor:
    """The KKT residual (m,) of the codes Z (m, K) ≥ 0 of A (m, d), in float64: see EncodeInfo."""
    return measure(A, D, Z, terms=Terms(penalty.l1, penalty.l2)).kkt
