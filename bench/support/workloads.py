"""The problems that are timed: sizes, data and starting factors, the same for every library."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from support.gaussian import rectified_gaussian


@dataclass(frozen=True)
class Workload:
    """The size of a problem: n rows, d features, K concepts."""

    name: str
    n: int
    d: int
    K: int

    @property
    def title(self) -> str:
        return f"{self.n:,} × {self.d:,}, K = {self.K:,}"

    @property
    def heavy(self) -> bool:
        """Whether the 2 n K² flops of the Gram product of the codes take seconds."""
        return self.n * self.K**2 > 10**11


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("digits", 1797, 64, 32),
        Workload("concepts_50", 20_000, 384, 50),
        Workload("concepts_2k", 4_000, 384, 2_000),
        Workload("concepts_4k", 8_000, 384, 4_000),
        Workload("wide_4k", 4_000, 1_536, 4_000),
        Workload("concepts_10k", 2_000, 384, 10_000),
    )
}
# for the solvers that are not the default
FEW = (
    "digits",
    "concepts_50",
    pytest.param("concepts_2k", marks=pytest.mark.slow),
    "concepts_10k",
)
# for the cost model: near the sizes where its choice changes
GRID = {
    f"n{n}-d{d}-K{K}": Workload(f"n{n}-d{d}-K{K}", n, d, K)
    for n, d, K in (
        (1797, 64, 32),
        (20_000, 384, 50),
        (8_000, 384, 300),
        (4_000, 384, 800),
        (2_000, 384, 3_000),
        (2_000, 1_536, 1_000),
    )
}
# for --quick, unless marked slow
QUICK = ("digits", "concepts_50", "concepts_2k", "n1797-d64-K32")


@dataclass(frozen=True, eq=False)
class Problem:
    """A (n, d), float32, and the starting factors Z (n, K), D (K, d); source says what A is."""

    workload: Workload
    A: Tensor
    Z: Tensor
    D: Tensor
    source: str

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.workload.n, self.workload.d, self.workload.K


@functools.cache
def load(name: str, files: tuple[str, ...] = ()) -> Problem:
    """Return the problem of a workload.

    A is taken from the first .npy file that has d features and at least n rows. Without such a
    file it is scikit-learn's digits where they have this size, else rectified Gaussian noise.
    """
    workload = {**WORKLOADS, **GRID}[name]
    generator = torch.Generator().manual_seed(0)
    A, source = from_file(workload, files) or _digits(workload) or _gaussian(workload, generator)
    n, d = A.shape
    Z = torch.randn(n, workload.K, generator=generator).abs_()
    D = torch.randn(workload.K, d, generator=generator).abs_()
    # scale Z D to A: otherwise the first steps only find the scale
    ZD = Z @ D
    D *= (A * ZD).sum() / ZD.square().sum()
    return Problem(workload, A, Z, D, source)


def relative_error(A: Tensor, Z: Tensor, D: Tensor) -> float:
    """‖A − Z D‖ / ‖A‖; the residual in the dtype of A, its norm in float64."""
    residual = torch.linalg.vector_norm(A - Z @ D, dtype=torch.float64)
    return float(residual / torch.linalg.vector_norm(A, dtype=torch.float64))


def from_file(workload: Workload, files: tuple[str, ...]) -> tuple[Tensor, str] | None:
    for file in files:
        rows = np.load(file, mmap_mode="r")
        if rows.ndim == 2 and rows.shape[1] == workload.d and len(rows) >= workload.n:
            A = torch.from_numpy(rows[: workload.n].astype(np.float32)).clamp_(min=0)
            return A, Path(file).name
    return None


def _digits(workload: Workload) -> tuple[Tensor, str] | None:
    if (workload.n, workload.d) != (1797, 64):
        return None
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return None
    return torch.from_numpy(load_digits().data.astype(np.float32)), "digits"


def _gaussian(workload: Workload, generator: torch.Generator) -> tuple[Tensor, str]:
    return rectified_gaussian(workload.n, workload.d, generator), "rectified Gaussian"
