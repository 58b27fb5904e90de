"""Weights that are asked for: what they go with, and the data that they scale or stand beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...backends.products import Matrix
from ...data.arrays import Expected, as_matrix, read_matrix
from ...data.dataset import Data
from ...data.opening.first_pass import Drawing
from ...data.opening.opened import opened
from ...data.shards import Shards, in_memory
from ...data.sparse.arrays import is_sparse
from ...data.sparse.files import matrix_of
from ...data.weights.entries import EntryWeights
from ...data.weights.given import Weights, read_weights
from ...data.weights.observed import observed, refuse_sparse
from ...data.weights.read import EntriesRead, filled, read_entries, source_of
from ...data.weights.scaled import Scale, ScaledRows, scaled
from ...data.weights.stored import stored_entries
from ...distributed import Processes
from ...engine.state import State
from ...errors import InvalidInput
from ...init.start import SAMPLE
from ...planning.memory import Budget
from ...planning.weighted import with_weights
from ...solvers import hals
from ..options import Options
from ..refusals import refuse_overwriting

_ANY = Expected("D0", signed=True)
# what is not scaled
_ENTRIES = "entries, and of rows or features with a penalty that they would scale,"


class Weighted:
    """The weights of a fit, checked against its options: those of rows and features scale the data,
    unless a penalty would be scaled as well; others stand beside them."""

    def __init__(self, options: Options) -> None:
        weights = options.weights
        self.scale: Scale | None = None
        self._weights: Weights | None = None
        self._entries: Tensor | None = None
        self._beside: EntryWeights | EntriesRead | None = None
        if weights is None:
            return
        if options.constraint.of_rows:
            _refuse("ConvexNMF, whose concepts are mixtures of rows of A as they are")
        if options.offset:
            _refuse("offset=True, the mean of what is left, which would be a weighted one")
        if options.validation is not None:
            _refuse("validation=, whose rows would need weights of their own")
        self._weights = weights
        beside = weights.stored or weights.entries is not None
        if not beside and not _scales_penalties(weights, options):
            self.scale = Scale.of_weights(weights)
            weights.warn_of_unobserved()
        else:
            _refuse_with_entries(options)

    def open(self, A: Any, expected: Expected, budget: Budget) -> tuple[Any, Budget]:
        """A as it is to be opened, and the memory for that."""
        weights, device = self._weights, budget.device
        if self.scale is not None:
            return scaled(A, self.scale, expected), budget
        if weights is None:
            return A, budget
        if weights.sparse:
            self._beside = stored_entries(A, weights, expected, device)
            return self._beside.X, budget
        if (found := _in_passes(A, weights, expected, budget)) is not None:
            A, self._beside, budget = found
        else:
            A, self._entries = observed(A, weights, expected, device)
        return A, budget

    def attach_(self, data: Data) -> None:
        """Let the data know of their weights, and what they measure be weighted."""
        data.scale = self.scale
        if self._entries is not None:
            assert data.A is not None
            self._beside = EntryWeights(data.A, self._entries)
        if self._beside is not None:
            if isinstance(self._beside, EntryWeights) and not data.in_memory_here:
                _refuse("a sparse A that does not fit in memory; give more max_memory", _ENTRIES)
            elif isinstance(self._beside, EntriesRead):
                # that of their statistics
                data.passes += 1
            data.weights = measured = self._beside
            measured.warn_of_unobserved()
            data.squared_norm = measured.squared_norm
        elif self.scale is not None and self.scale.rows is not None:
            measured = ScaledRows(
                self.scale.rows, data.d, partial(_rows_of, data), data.processes.sum_
            )
        else:
            return
        data.mean_row, data.squared_spread = measured.mean_row, measured.squared_spread


def _in_passes(
    A: Any, weights: Weights, expected: Expected, budget: Budget
) -> tuple[Any, EntriesRead, Budget] | None:
    """A with its weights where both do not fit in memory: as it is to be opened, the weights, and
    the memory for that; else None."""
    source, given = source_of(A, expected), False
    if source is None and is_sparse(matrix_of(A)):
        refuse_sparse(expected.name)
    if source is None and (matrix := as_matrix(matrix_of(A), expected.name)) is not None:
        if matrix.ndim != 2:
            return None
        source, given = Shards((in_memory(matrix, expected.name),), expected.name), True
    if source is None:
        return None
    read = None if source.shape is not None else read_entries(source, weights, expected)
    (n, d), dtype = source.shape or read.shape, source.dtype if read is None else read.dtype
    dtype = torch.promote_types(expected.dtype or torch.float32, dtype)
    # filled data and their weights are copies
    if budget.holds(n, d, dtype, 3 * dtype.itemsize, given=given):
        return None
    read = read or read_entries(source, weights, expected)
    budget, features = with_weights(budget, n, d, dtype)
    return filled(source, weights, expected, read), replace(read, features=features), budget


def _rows_of(data: Data) -> Iterator[tuple[slice, Matrix]]:
    return ((part, X) for part, X, _ in data.chunks())


def opened_weighted(
    stack: ExitStack,
    A: Any,
    options: Options,
    expected: Expected,
    budget: Budget,
    processes: Processes,
    drawing: Drawing | None,
) -> Data:
    """A as Data, with the weights of the options, open until the stack ends. drawing: takes rows
    of it."""
    with processes.agreed():
        refuse_overwriting((options.weights,), options.destination(processes))
        weighted = Weighted(options)
        A, budget = weighted.open(A, expected, budget)
    data = stack.enter_context(opened(A, expected, budget, processes, drawing))
    weighted.attach_(data)
    return data


def _refuse_with_entries(options: Options) -> None:
    """Raise InvalidInput for options of a fit that have no weighted form."""
    if options.distributed:
        _refuse("distributed=True", _ENTRIES)
    if options.solver != hals.SOLVER.name:
        _refuse(f"solver={options.solver!r}; give solver='hals'", _ENTRIES)
    if options.tuned.form is not None:
        _refuse(f"form={options.tuned.form!r}: each row has a Gram matrix of its own", _ENTRIES)
    if options.tuned.block is not None:
        _refuse(f"block={options.tuned.block}: concepts are swept one by one", _ENTRIES)
    if options.revive:
        _refuse("revive=True", _ENTRIES)
    if options.top_k is not None:
        _refuse("top_k: a pursuit has one Gram matrix for all rows", _ENTRIES)
    if options.target_l0 is not None:
        _refuse("target_l0; give alpha_Z, l1_ratio and unit_norm", _ENTRIES)
    if options.init == SAMPLE:
        _refuse("init='sample', whose rows would need their weights", _ENTRIES)
    if options.codes is None or options.codes == "sparse" or str(options.codes).endswith(".npz"):
        _refuse(f"codes={options.codes!r}; give 'memory' or a .npy file", _ENTRIES)


def _scales_penalties(weights: Weights, options: Options) -> bool:
    """Whether weights of rows or features would scale a penalty."""
    penalties, targets = options.penalties, options.target_l0 is not None
    of_rows = weights.rows is not None and (penalties.alpha_Z > 0 or targets)
    of_features = weights.features is not None and (penalties.alpha_D > 0 or penalties.unit_norm)
    return of_rows or of_features


def start_of(options: Options, data: Data) -> str | tuple[Any, Any]:
    """The start of a fit; a pair is scaled as the data are."""
    init, scale = options.begin, data.scale
    return init if scale is None or isinstance(init, str) else scale.of_pair(init)


def scale_start_(state: State, data: Data, options: Options) -> None:
    """Z D ← c Z D with the factor c of least weighted error, of a start that was not given."""
    if data.weights is None or not isinstance(options.init, str):
        return
    inner = square = 0.0
    for part, X, Z in data.chunks(state.Z, save=False):
        assert Z is not None
        found = data.weights.beside(part, X).products(Z, state.D)
        inner, square = inner + found[0], square + found[1]
    if inner > 0 and square > 0:
        root = (inner / square) ** 0.5
        for rows in state.Z.blocks_():
            rows.mul_(root)
        state.D.mul_(root)


def unscale_(state: State, data: Data, options: Options) -> None:
    """The codes and the dictionary of a State ← those of the data as they are. Features of weight 0
    keep the concepts that were given."""
    if data.scale is None:
        return
    data.scale.take_from_codes_(state.Z)
    given = None if isinstance(options.init, str) else options.init[1]
    kept = None if given is None else read_matrix(given, data.device, _ANY).to(state.D)
    state.D = data.scale.dictionary_of(state.D, kept)


def weights_of_codes(weights: Any, *, penalised: bool) -> tuple[Scale | None, Weights | None]:
    """How weights scale the rows that codes are computed for, and the dictionary; or weights that
    stand beside the rows. penalised: whether codes have a penalty, the same for all rows."""
    if weights is None:
        return None, None
    found = read_weights(weights)
    if found.stored or found.entries is not None or (found.rows is not None and penalised):
        return None, found
    # a row has the same codes whatever its weight is
    rows = None if found.rows is None else (found.rows > 0).double()
    return Scale.of_weights(replace(found, rows=rows)), None


def _refuse(what: str, of: str = "") -> NoReturn:
    advice = "" if "; give" in what else "; leave one out"
    raise InvalidInput(f"weights{f' of {of}' if of else ''} do not go with {what}{advice}")
