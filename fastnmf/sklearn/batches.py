"""The arithmetic of MiniBatchNMF: half-steps of the codes of a batch, and components that follow
sums over batches, of which older ones count less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.products import Matrix, dot, operand
from ..backends.sparse import SparseMatrix
from ..data.arrays import Expected, read_matrix
from ..data.sparse.arrays import is_sparse, sparse_matrix
from ..engine.statistics import squared_error
from ..fit.options import Options
from ..numerics import squared_norm
from ..planning import hardware
from ..solvers.half_step import Compute, NormalData, Workspace
from ..solvers.registry import learner

# half-steps of the components in each step, where they are not multiplied
_HALF_STEPS = 2


@dataclass(frozen=True)
class Sums:
    """Sums over batches, with smaller weights for older ones.

    Components H that are multiplied are first / second, both (K, d): of H ∘ WᵀX and of what it is
    divided by. Others are the minimum for first = WᵀX (K, d) and second = WᵀW (K, K). rows: those
    that are counted, with their weights. multiplied: which of them.
    """

    first: Tensor
    second: Tensor
    rows: float = 0.0
    multiplied: bool = True


def matrix_of(X: Any, device: Any) -> Matrix:
    """X, which scikit-learn has checked, as what is computed with."""
    if is_sparse(X):
        return sparse_matrix(X, Expected(), device)
    return read_matrix(X, device)


class Steps:
    """Steps of mini-batch learning with the solver and the penalties of the options."""

    def __init__(self, options: Options, like: Tensor) -> None:
        """like: a tensor of the dtype and on the device that are computed with."""
        self.method, K = options.method(like.device), options.nb_concepts
        self.penalties, self.solver = options.penalties, self.method.solver
        self.learner = learner(self.solver, K)
        block = hardware.machine_of(like, self.method.backend).blocks[-1]
        scratch = Workspace(like.dtype, like.device)
        self.compute = Compute(self.method.ops, min(block, K), scratch)
        self.sums = torch.zeros(4, dtype=torch.float64, device=like.device)

    def begin(self, H: Tensor) -> Sums:
        """The sums before the first batch, with which H has some weight if it is multiplied."""
        if self.learner.keeps_zeros:
            return Sums(H.clone(), torch.ones_like(H))
        return Sums(torch.zeros_like(H), H.new_zeros(len(H), len(H)), multiplied=False)

    def goes_on_from(self, sums: Sums) -> bool:
        """Whether these are sums of the solver."""
        return sums.multiplied == self.learner.keeps_zeros

    def code_(self, W: Tensor, X: Matrix, H: Tensor, times: int = 1, tol: float = 0.0) -> int:
        """Up to `times` half-steps of W (m, K) for H, until ‖ΔW‖ ≤ tol ‖W‖; how many they were."""
        m, d = X.shape
        C = dot(X, operand(X, H)).T
        fixed = self.solver.fix("normal", H, None, m, self.penalties.of_codes(d), self.compute)
        data, F = NormalData(self.solver.penalise(C, fixed, out=C)), W.T
        for number in range(1, times + 1):
            self.sums.zero_()
            self.solver.half_steps_(F, data, fixed, self.compute, self.sums, 1)
            if tol > 0:
                change, size = self.sums[:2].tolist()
                if change <= tol * tol * size:
                    return number
        return times

    def solve(self, X: Matrix, H: Tensor, max_iter: int, tol: float) -> Tensor:
        """W (m, K) from equal codes, by up to max_iter half-steps."""
        m, d = X.shape
        total = X.values.sum() if isinstance(X, SparseMatrix) else X.sum()
        W = H.new_empty(m, len(H)).fill_(float((total / (m * d * len(H))).sqrt()))
        self.code_(W, X, H, max_iter, tol)
        return W

    def learn(
        self, X: Matrix, W: Tensor, H: Tensor, sums: Sums, keep: float
    ) -> tuple[Tensor, Sums, float]:
        """H after a batch X (m, d) with codes W (m, K), the sums with it, and the objective of its
        rows before, less ½ ‖X‖². keep: the weight of the sums until now, which are overwritten."""
        m, d = X.shape
        cross, gram = X.tdot(W).T if isinstance(X, SparseMatrix) else W.T @ X, W.T @ W
        of_W, of_H = self.penalties.of_codes(d), self.penalties.of_dictionary(m)
        product = gram @ H
        cost = 0.5 * _dot(product, H) - _dot(cross, H)
        cost = cost + of_W.value(W) + of_H.value(H)
        # l2 counts twice here in scikit-learn, whose ends these are
        cost = cost + 0.5 * (of_W.l2 * squared_norm(W) + of_H.l2 * squared_norm(H))
        rows = m + keep * sums.rows
        if not self.learner.keeps_zeros:
            first = sums.first.mul_(keep).add_(cross)
            sums = Sums(first, gram.add_(sums.second, alpha=keep), rows, multiplied=False)
            return self._updated(H, sums), sums, float(cost)
        if of_H:
            product.add_(of_H.l1).add_(H, alpha=of_H.l2)
        product.masked_fill_(product == 0, torch.finfo(torch.float32).eps)
        first = sums.first.mul_(keep).addcmul_(cross, H)
        second = sums.second.mul_(keep).add_(product)
        return first / second, Sums(first, second, rows), float(cost)

    def _updated(self, H: Tensor, sums: Sums) -> Tensor:
        """H after half-steps towards the minimum for the sums."""
        H, solver = H.clone(), self.learner
        penalty = self.penalties.of_dictionary(1)
        penalty = replace(penalty, l1=penalty.l1 * sums.rows, l2=penalty.l2 * sums.rows)
        fixed = solver.fix("normal", None, sums.second, 1, penalty, self.compute)
        data = NormalData(solver.penalise(sums.first, fixed))
        times = 1 if solver.exact else _HALF_STEPS
        solver.half_steps_(H, data, fixed, self.compute, self.sums, times)
        return H


def half_square(X: Matrix) -> float:
    """½ ‖X‖²."""
    return 0.5 * float(squared_norm(X))


def error_of(X: Matrix, W: Tensor, H: Tensor) -> float:
    """‖X − W H‖."""
    return float(squared_error(X, W, H, max(1, (1 << 22) // X.shape[1]))) ** 0.5


def _dot(X: Tensor, Y: Tensor) -> Tensor:
    """⟨X, Y⟩ in float64."""
    return torch.dot(X.double().reshape(-1), Y.double().reshape(-1))


def as_array(X: Tensor) -> np.ndarray:
    """The matrix as a contiguous array."""
    return np.ascontiguousarray(X.cpu().numpy())
