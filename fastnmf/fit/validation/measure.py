"""Rows that a fit is not trained on, measured during the fit: error and number of active concepts
of their exact codes; and the end of a fit with the dictionary that was best on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...backends.products import Rebuilt, dense
from ...data.arrays import Expected
from ...data.dataset import Data
from ...data.opening.opened import opened
from ...data.storage import NotKept
from ...engine.codes import chunk_rows
from ...engine.state import VALIDATED_EVERY, Best, State
from ...errors import InvalidInput
from ...exact.encoder import ExactEncoder
from ...exact.final import take_exact_codes_
from ...exact.pursuit import PursuitEncoder
from ...numerics import wide
from ...precision import products_in
from ..checkpoint import Checkpoint
from ..options import Options
from ..sparsity.end import end_at_target_
from ..sparsity.penalty import Near, penalties_for

# sweeps of rows, before those that have not converged are solved exactly
_SWEEPS = 300
BEST = "validation"


class Validation:
    """Measures a State on rows V of their own, as `encode` would: with the penalties of the fit,
    with those that give the target of active concepts, or at most top_k concepts a row.

    With stop='validation' the State keeps the dictionary that was best.
    """

    def __init__(self, data: Data, options: Options) -> None:
        self.data, self._options = data, options
        self._method = options.method_of_codes(data.device)
        self._keeps_best = options.stop == BEST

    @classmethod
    def of(
        cls, options: Options, data: Data, stack: ExitStack, checkpoint: Checkpoint | None
    ) -> Validation | None:
        """That of the options beside the data of a fit, open until the stack ends; or None. A fit
        that resumes from the checkpoint must have the same rows. Raises
        InvalidInput for rows that do not suit the data, and where stop='validation' has none."""
        if options.validation is None:
            if options.stop == BEST:
                raise InvalidInput(
                    f"stop={BEST!r} needs rows that the fit is not trained on: "
                    "fit(A, validation=…), rows, a file of them, or a fraction of A"
                )
            return None
        if not data.processes.alone:
            raise InvalidInput(
                "validation= cannot be shared by processes, which would have to agree on what each "
                "of them measures; leave it out, or fit by one process"
            )
        signed = options.constraint.signed
        expected = Expected("validation", data.d, dtype=data.dtype, signed=signed)
        budget = options.budget(data.device, "memory", width=options.nb_concepts)
        rows = stack.enter_context(opened(options.validation, expected, budget))
        if checkpoint is not None:
            checkpoint.also(validation=[rows.n, float(rows.squared_norm)])
        return cls(rows, options)

    def check(self, state: State, *, last: bool = False) -> None:
        """Measure the last iteration into the history, where it is due or the last one of all."""
        if not state.history or not (last or len(state.history) % VALIDATED_EVERY == 0):
            return
        now = state.history[-1]
        if now.validation_error is not None:
            return
        error, mean = self.measure(state)
        state.history[-1] = now = replace(now, validation_error=error, validation_l0=mean)
        if self._keeps_best and (state.best is None or error < state.best.error):
            l1 = None if state.target is None else state.target.l1
            state.best = Best.of(now, state.D, state.offset, state.mixture, l1)

    def measure(self, state: State) -> tuple[float, float]:
        """‖V − Z D‖ / ‖V‖, and the mean number of active concepts."""
        squares, active, rebuilt = 0.0, 0, Rebuilt(state.D)
        for X, Z in self._encoded(state):
            with products_in("highest"):
                squares += float(rebuilt.squared_error(X, Z))
            active += int(torch.count_nonzero(Z))
        total = float(self.data.squared_norm)
        return (squares / total) ** 0.5 if total > 0 else 0.0, active / self.data.n

    def codes(self, state: State) -> Tensor:
        """The codes of the rows (n, K)."""
        return torch.cat([Z for _, Z in self._encoded(state)])

    @torch.no_grad()
    def _encoded(self, state: State) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows, and their codes."""
        self.data.subtract(state.offset)
        encoder = self._encoder(state)
        for X, _, _ in self.data.tiles(None, chunk_rows(encoder.D, encoder.method)):
            X = dense(X).to(state.D.dtype)
            with products_in("highest"):
                Z, _ = encoder(X.to(encoder.D.dtype))
            yield X, Z.to(state.D.dtype)

    def _encoder(self, state: State) -> Any:
        D, options, method = state.D, self._options, self._method
        if state.target is not None:
            near = Near(state.target.l1)
            found, _ = penalties_for(state.target.target, self.data, D, method, near=near)
            method = method.with_penalties(found)
        D = D.to(wide(D.device)) if options.constraint.signed else D
        if options.top_k is not None:
            return PursuitEncoder(D, method, options.top_k, exchanges=True)
        return ExactEncoder(D, self.data.n, method, _SWEEPS)


def end_with_best_(
    state: State, data: Data, options: Options, validation: Validation | None
) -> None:
    """Measure the last dictionary; with stop='validation', give the State the one that was best,
    and codes for it. Where the last one was best, nothing changes."""
    if validation is not None:
        validation.check(state, last=True)
    if options.stop != BEST:
        # that of a checkpoint
        state.best = None
    best = state.best
    if best is None or best.measured.iteration == len(state.history):
        return
    exact = options.method_of_codes(data.device)
    best.restore_(state)
    if isinstance(state.Z, NotKept):
        return
    if state.target is not None:
        end_at_target_(state, data, exact, gains=True)
    elif options.top_k is None:
        take_exact_codes_(state, data, exact)
    else:
        encoder = PursuitEncoder(state.D, exact, options.top_k, exchanges=True)
        for X, Z, _ in data.tiles(state.Z, chunk_rows(state.D, exact), save=True):
            assert Z is not None
            Z.copy_(encoder(dense(X))[0])
