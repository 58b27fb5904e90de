"""Codes for a dictionary that stays as it is: in chunks that bound memory, differentiable where A
asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import memory
from .engine import Iteration, factorize_
from .init import cold_start
from .momentum import Momentum
from .penalties import NO_PENALTIES, Penalties
from .rows import Rows
from .solvers import SOLVERS
from .sweeps import Operations

# bytes of codes, and of what is prepared for them, in hand at a time
_CHUNK_BYTES = 64 << 20
# sweeps that encoding usually takes; the plan weighs what is prepared once against what each costs
_USUAL_SWEEPS = 50


@dataclass(frozen=True)
class Method:
    """How half-steps are computed, whatever they are for: the solver, its operations, and backend,
    the name of what supplies them; form, block and chunk_rows as in plan.choose; and what is added
    to the objective."""

    solver: str
    backend: str
    ops: Operations
    form: str = "auto"
    block: int | None = None
    chunk_rows: int | None = None
    penalties: Penalties = NO_PENALTIES


@dataclass(frozen=True)
class Encoder:
    """argmin ½‖A − Z D‖² and the penalty of Z over Z ≥ 0 by one of the solvers, each chunk of rows
    until ‖ΔZ‖ ≤ tol ‖Z‖ or max_iter.

    D (K, d) is not changed. each is called after every iteration of every chunk.
    """

    D: Tensor
    by: Method
    max_iter: int
    tol: float
    each: Callable[[Iteration], bool | None] | None = None

    def __call__(self, A: Tensor, Z0: Tensor | None = None) -> Tensor:
        """Z (n, K) for A (n, d) on D's device and of its dtype, or one of rows.NARROW; from Z0 (n,
        K), else from `cold_start`.

        Has a gradient with respect to A where A requires one: that of the iterations taken, from
        the start on. Then the backward pass repeats them chunk by chunk out of place (K small
        operations an iteration for hals).
        """
        if torch.is_grad_enabled() and A.requires_grad:
            return _Differentiable.apply(A, Z0, self)
        return self.encode(A, Z0)[0]

    @torch.no_grad()
    def encode(self, A: Tensor, Z0: Tensor | None) -> tuple[Tensor, list[int]]:
        """The codes, and the number of iterations that each chunk took."""
        K = self.D.shape[0]
        Z = self.D.new_empty(A.shape[0], K)
        taken = []
        iterations = min(self.max_iter, 1) if SOLVERS[self.by.solver].exact else self.max_iter
        for part, X in Rows(A).chunks(self.rows_in_hand()):
            Z[part] = cold_start(X, self.D) if Z0 is None else Z0[part]
            # what is kept for the sweeps of a chunk is bounded already
            chosen = memory.choose(
                X,
                K,
                self.by.solver,
                self.by.backend,
                None,
                form=self.by.form,
                learn=False,
                sweeps=_USUAL_SWEEPS,
                block=self.by.block,
            )
            outcome = factorize_(
                Z[part],
                self.D,
                Rows(X),
                solver=self.by.solver,
                ops=self.by.ops,
                plan=chosen,
                max_iter=iterations,
                tol=self.tol,
                learn=False,
                penalties=self.by.penalties,
                each=self.each,
            )
            taken.append(len(outcome.history))
        return Z, taken

    def gradient(self, A: Tensor, Z0: Tensor | None, iterations: list[int], upstream: Tensor):
        """(∂Z / ∂A)ᵀ upstream (n, d), repeating the iterations of each chunk of rows under
        autograd."""
        solver = SOLVERS[self.by.solver]
        penalty = self.by.penalties.of_codes(A.shape[1])
        G = penalty.gram(self.D @ self.D.T)
        downstream = torch.empty_like(A)
        for (part, X), times in zip(Rows(A).chunks(self.rows_in_hand()), iterations, strict=True):
            with torch.enable_grad():
                X = X.detach().requires_grad_()
                if solver.exact:
                    # nothing to repeat; where the solution is not unique, the one that was given
                    F = self.encode(X, None)[0].T
                else:
                    F = (cold_start(X, self.D) if Z0 is None else Z0[part]).T
                C = self.D @ X.T
                momentum = Momentum(solver, self.D, penalised=bool(penalty))
                for _ in range(times):
                    F = solver.unrolled(momentum.extrapolate(F), C, G, penalty.l1)
                (downstream[part],) = torch.autograd.grad(
                    F.T, X, upstream[part], allow_unused=True, materialize_grads=True
                )
        return downstream

    def rows_in_hand(self) -> int:
        """Rows that are encoded together, and widened where A is stored in 16 bits."""
        K, d = self.D.shape
        # a GPU is filled by its memory only
        in_hand = max(_CHUNK_BYTES, (memory.free_bytes(self.D.device) or 0) // 4)
        bounded = max(1, in_hand // ((5 * K + 2 * d) * self.D.element_size()))
        return min(bounded, self.by.chunk_rows or bounded)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A: Tensor, Z0: Tensor | None, encoder: Encoder) -> Tensor:
        Z, ctx.iterations = encoder.encode(A, Z0)
        ctx.save_for_backward(A)
        ctx.Z0, ctx.encoder = Z0, encoder
        return Z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        (A,) = ctx.saved_tensors
        return ctx.encoder.gradient(A, ctx.Z0, ctx.iterations, upstream), None, None
