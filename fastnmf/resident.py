"""What a fit asks of its data where all of them are in memory. The counterpart of streamed.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Generator, Tensor

from . import memory
from .codes import CodesInfo, describe, r_squared
from .init import start
from .penalties import Penalty
from .plan import Plan
from .ranks import ALONE
from .rows import Rows
from .solvers import squared_norm
from .statistics import squared_error
from .store import OnDisk, mapped


class Measured(NamedTuple):
    """‖A − Z D‖² and ‖A‖², R², what is said of the codes, and their penalty."""

    squared_error: float
    squared_data: float
    r_squared: float
    codes: CodesInfo
    penalty: float


@dataclass(frozen=True)
class Resident:
    """A (n, d), checked and on its device. target: the file that the codes go to at the end."""

    rows: Rows
    target: OnDisk | None = None
    ranks = ALONE
    store = None
    rows_in_memory = True
    chunk_rows = None
    passes = 1

    @property
    def largest(self) -> float:
        return float(self.rows.A.amax())

    def plan(self, K: int, solver: str, backend: str, **asked: Any) -> Plan:
        free = memory.free_bytes(self.rows.A.device)
        return memory.choose(self.rows.A, K, solver, backend, free, **asked)

    def start(self, K: int, init: Any, generator: Generator | None) -> tuple[Tensor, Tensor]:
        return start(self.rows.A, K, init, generator)

    def resume(self, Z: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        return Z, D

    def measure(self, Z: Tensor, D: Tensor, chosen: Plan, penalty: Penalty) -> Measured:
        A = self.rows.A
        whole, error = float(squared_norm(A)), squared_error(self.rows, Z, D, chosen.piece_rows)
        explained = r_squared(A, float(error), whole)
        return Measured(float(error), whole, explained, describe(Z, D), float(penalty.value(Z)))

    @property
    def place(self) -> str:
        return "memory" if self.target is None else self.target.place

    def keep(self, Z: Tensor) -> None:
        """Bring the codes where they are to be."""
        if self.target is not None:
            self.target.save(slice(0, len(Z)), Z)

    def codes(self, Z: Tensor) -> Tensor:
        """The codes for the caller, after all is done."""
        return Z if self.target is None else mapped(Path(self.target.place))
