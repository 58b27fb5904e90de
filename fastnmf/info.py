"""The account of a fit: what was run, how it ended, and what a reader of the codes wants to know
first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .engine import Iteration


@dataclass(frozen=True)
class FitInfo:
    """How a fit went; printed, a readable account.

    n, d, nb_concepts: the sizes. solver, backend, form, block, piece_rows: what computed it (see
    plan.py). dictionary_solver: what updated the dictionary: the solver, or hals where there are
    more concepts than it goes to. init: the start taken. iterations, stopped_by ('tol', 'max_iter'
    or 'callback'), converged: how it ended. relative_error: ‖A − Z D‖ / ‖A‖ of the factors
    returned. relative_change: ‖ΔZ‖ / ‖Z‖ in the last iteration. precision: of the products, the
    dtype or 'tf32'. drift: the most by which a residual carried in tf32 differed from a new one, or
    None. mean_l0: mean number of non-zero codes a row.
    dead_concepts: concepts whose codes or dictionary row are all zero. seconds: the whole fit,
    start included. history: one Iteration for each.
    """

    n: int
    d: int
    nb_concepts: int
    dtype: str
    device: str
    solver: str
    dictionary_solver: str
    backend: str
    form: str
    block: int
    piece_rows: int
    init: str
    iterations: int
    stopped_by: str
    relative_error: float
    relative_change: float
    mean_l0: float
    dead_concepts: int
    seconds: float
    precision: str
    drift: float | None
    history: tuple[Iteration, ...] = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether the fit ended because the codes had settled."""
        return self.stopped_by == "tol"

    def as_dict(self) -> dict[str, Any]:
        """Everything in it, as plain Python values."""
        return {**asdict(self), "converged": self.converged}

    def __str__(self) -> str:
        reasons = {
            "tol": "converged: the codes have settled",
            "max_iter": "not converged: max_iter reached",
            "callback": "stopped by the callback",
        }
        solver = self.solver
        if self.dictionary_solver != solver:
            solver += f" (dictionary: {self.dictionary_solver})"
        lines = {
            "data": f"{self.n:,} × {self.d:,} {self.dtype} on {self.device}",
            "concepts": f"{self.nb_concepts:,}, of which {self.dead_concepts:,} dead",
            "solver": f"{solver}, {self.form} form, backend {self.backend}, start {self.init}",
            "pieces": f"{self.piece_rows:,} rows, blocks of {self.block} concepts",
            "relative error": f"{self.relative_error:.6g}",
            "mean L0": f"{self.mean_l0:.4g} concepts a row",
            "iterations": f"{self.iterations} ({reasons[self.stopped_by]})",
            "last change": f"{self.relative_change:.3g} of ‖Z‖",
            "time": f"{self.seconds:.3g} s",
        }
        if self.precision != self.dtype:
            drift = "not measured" if self.drift is None else f"{self.drift:.2g} of the residual"
            lines["precision"] = f"{self.precision}, largest drift {drift}"
        return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())


def count_codes(Z: Tensor, D: Tensor) -> tuple[float, int]:
    """The mean number of non-zero codes a row of Z (n, K), and how many concepts are dead."""
    used = torch.zeros(Z.shape[1], dtype=torch.int64, device=Z.device)
    # Z ≥ 0: its signs are counted, in a small copy; count_nonzero takes 8 bytes an entry
    for piece in Z.split(max(1, (1 << 20) // Z.shape[1])):
        used += piece.sign().sum(0).long()
    dead = (used == 0) | (D.amax(1) == 0)
    return float(used.sum()) / Z.shape[0], int(dead.sum())
