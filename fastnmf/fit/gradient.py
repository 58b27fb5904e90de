"""The gradient of codes with respect to the data, by repeating the iterations backwards; and what
has no gradient here, which is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..data.arrays import refuse_transformed
from ..data.storage import row_blocks
from ..engine.acceleration import FIRST, Momentum
from ..engine.codes import Encoder, Ended
from ..errors import InvalidInput
from ..init.start import cold_start
from ..isolation import without_autocast
from ..numerics import widened
from ..precision import products_in

# half-steps in the gradient for each that led to the codes by line searches
_SERIES = 3


def differentiable(A: Tensor, Z0: Tensor | None, encoder: Encoder) -> tuple[Tensor, list[Ended]]:
    """The codes of A (n, d), differentiable with respect to A where it requires a gradient; and how
    each chunk ended.

    The gradient is that of the iterations done, the start included. With line searches it is that
    of plain half-steps from the codes found, at the optimum its own (Neumann series). The backward
    pass repeats iterations out of place, chunk by chunk (for hals K small operations an iteration).
    """
    if torch.is_grad_enabled() and A.requires_grad:
        ended: list[Ended] = []
        return _Codes.apply(A, encoder.D, Z0, encoder, ended), ended
    return encoder(A, Z0)


def refuse_derivatives(where: str, **tensors: Any) -> None:
    """Raise InvalidInput for a derivative that would be dropped without a word: with respect to one
    of these tensors, or of forward mode. where: the function that has none."""
    for name, X in tensors.items():
        if not isinstance(X, Tensor):
            continue
        refuse_tangent(where, name, X)
        if X.requires_grad and torch.is_grad_enabled():
            raise InvalidInput(
                f"{name} requires a gradient, and {where} has none with respect to it; give "
                f"{name}.detach() (NMF.encode has one with respect to A)"
            )


def refuse_tangent(where: str, name: str, X: Any) -> None:
    """Raise InvalidInput for a tensor that carries a tangent of forward-mode differentiation."""
    refuse_transformed(X, name)
    if isinstance(X, Tensor) and forward_ad.unpack_dual(X).tangent is not None:
        raise InvalidInput(
            f"{name} carries a tangent of forward-mode differentiation, which {where} does not "
            "follow; take the gradient by backward() or torch.autograd.grad, or give "
            f"torch.autograd.forward_ad.unpack_dual({name}).primal"
        )


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, A: Tensor, D: Tensor, Z0: Tensor | None, encoder: Encoder, ended: list[Ended]
    ) -> Tensor:
        """ended: receives how each chunk ended."""
        encoder = replace(encoder, rows=encoder.chunk_rows())
        Z, chunks = encoder(A, Z0)
        ended += chunks
        ctx.iterations = [end.iterations for end in ended]
        # saved so, torch refuses a backward pass after one of them was changed in place
        ctx.save_for_backward(A, *(None if X is None else _savable(X) for X in (D, Z0)))
        ctx.encoder = encoder
        return Z

    @staticmethod
    def backward(ctx, upstream: Tensor):
        A, D, Z0 = ctx.saved_tensors
        with without_autocast(), products_in("highest"), torch.no_grad():
            encoder = replace(ctx.encoder, D=D, each=None)
            gradient = _gradient(encoder, A, Z0, ctx.iterations, upstream)
        if torch.is_grad_enabled():
            gradient = _NoSecond.apply(gradient, A, upstream)
        return gradient, None, None, None, None


class _NoSecond(torch.autograd.Function):
    """A gradient, where a second one was prepared for (create_graph=True), which is refused."""

    @staticmethod
    def forward(ctx, gradient: Tensor, A: Tensor, upstream: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        raise InvalidInput(
            "encode has a first derivative only, and a second one was asked for; take the gradient "
            "without create_graph=True, or detach it"
        )


def _savable(X: Tensor) -> Tensor:
    """X, or a copy of a tensor of inference mode, which autograd cannot save."""
    return X.clone() if X.is_inference() else X


def _gradient(
    encoder: Encoder, A: Tensor, Z0: Tensor | None, iterations: list[int], upstream: Tensor
) -> Tensor:
    """(∂Z / ∂A)ᵀ upstream (n, d), by repeating the iterations of each chunk under autograd."""
    D, method = encoder.D, encoder.method
    solver, penalty = method.solver, method.penalties.of_codes(A.shape[1])
    G, downstream = penalty.gram(D @ D.T), torch.zeros_like(A)
    chunks = row_blocks(len(A), encoder.chunk_rows())
    for part, times in zip(chunks, iterations, strict=True):
        with torch.enable_grad():
            X = widened(A[part]).detach().requires_grad_()
            if solver.searches_line and times > FIRST:
                # at the optimum, plain half-steps have its derivative; that of a line search
                # depends on rounding there
                F, times = encoder(X, None if Z0 is None else Z0[part])[0].T, _SERIES * times
            elif solver.exact and times:
                # nothing to repeat, but where the solution is not unique it must be the same one
                F = encoder(X, None if Z0 is None else Z0[part])[0].T
            else:
                F = (cold_start(X, D) if Z0 is None else Z0[part]).T
            C = D @ X.T
            momentum = None if solver.searches_line else Momentum(solver)
            for _ in range(times):
                start = F if momentum is None else momentum.extrapolate(F)
                F = solver.unrolled(start, C, G, penalty.l1)
            # no iteration from a given start: constant codes
            if F.requires_grad:
                (downstream[part],) = torch.autograd.grad(
                    F.T, X, upstream[part], allow_unused=True, materialize_grads=True
                )
    return downstream
