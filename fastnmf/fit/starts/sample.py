"""A start that is a fit of a sample of the rows: of sizes that double, until rows that are held out
tell that more rows would gain little. Its iterations are those of engine/loop.py."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ...backends.products import Matrix
from ...data.dataset import Data
from ...data.storage import InMemory, NotKept, Storage
from ...engine.codes import begin_with_codes_
from ...engine.loop import factorize_
from ...engine.sparsity.target import TargetL0
from ...engine.state import Method, Sampled, State, Stopping
from ...errors import InvalidInput
from ...numerics import row_major
from ..options import Options
from ..validation.measure import Validation
from .begin import Beginning, begun, codes_of
from .drawing import RowsDrawn
from .plan import plan_of
from .race import Slow

log = logging.getLogger(__name__)

# rows of the first sample: at least, and for each concept
LEAST, PER_CONCEPT = 2000, 4
# rows that are held out; and the rows of the data for each row of a sample, at least
HELD_OUT, SHARE = 1000, 4
# a fit of a sample ends after an iteration that lowers its objective by less than this share of it,
# and after so many
_FALL, _MOST = 1e-3, 100
# the share of the held-out error by which twice as many rows must lower it to be doubled again
_GAIN = 5e-3


def begun_with_sample(fit: Beginning) -> State:
    """The State of a dictionary that was learned on a sample, with codes of all rows for it; where
    there are too few rows for a sample, that of init='auto'. All processes have the same sample,
    and the dictionary of process 0."""
    options, data, method = fit.options, fit.data, fit.method
    drawing = data.drawing
    assert isinstance(drawing, RowsDrawn)
    inner = replace(
        options,
        **{"init": "auto", "seed": drawing.seed, "distributed": False, "codes": "memory"},
        **{"checkpoint": None, "resume": False, "validation": None, "weights": None},
    )
    rows = drawing.rows(data)
    most = min(data.processes.gather(min(rows.shape[0], data.most_beside)))
    sizes = sizes_of(most, data.n, options.nb_concepts)
    if not sizes:
        other = _without(options, data)
        return replace(begun(fit._replace(options=other)), sample=Sampled())
    with data.processes.agreed():
        run = _Samples(inner, method, rows, data.offset, fit.stopping, fit.note)
        learned, record = run.largest(sizes)
    del rows, run
    return _of_all(options, data, method, fit.Z, learned, record)


def sizes_of(drawn: int, n: int, K: int) -> list[int]:
    """The sizes of samples, of which one after the other is fitted, of `drawn` of n rows."""
    most = min(drawn - HELD_OUT, n // SHARE)
    sizes = [max(LEAST, PER_CONCEPT * K)]
    while sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    return sizes[:-1]


@dataclass
class _Samples:
    """Fits of the first so many of `rows` after HELD_OUT of them. offset: of all rows, which a fit
    begins with, or None."""

    options: Options
    method: Method
    rows: Matrix
    offset: Tensor | None
    stopping: Stopping
    note: Callable[[str], None]

    def largest(self, sizes: list[int]) -> tuple[State, Sampled]:
        """The State of the last size, and a record of all."""
        begun_at, iterations = time.perf_counter(), 0
        held_out = Validation(self._data(0, HELD_OUT, None), self.options)
        state, error = None, math.inf
        for size in sizes:
            self.note(f"sample of {size:,} rows")
            before = 0 if state is None else len(state.codes)
            state = self._fitted(state, before, size)
            iterations += len(state.history)
            last, (error, _) = error, held_out.measure(state)
            log.info("sample of %d rows: held-out error %.6g", size, error)
            if error >= (1 - _GAIN) * last or self.stopping.late():
                break
        assert state is not None
        seconds = time.perf_counter() - begun_at
        return state, Sampled(len(state.codes), iterations, seconds, HELD_OUT, error)

    def _fitted(self, before: State | None, known: int, size: int) -> State:
        """A fit of `size` rows, from that of the first `known` of them."""
        data = self._data(HELD_OUT, HELD_OUT + size, self.offset if before is None else None)
        plan = plan_of(self.options, data, self.method)
        limits = {"each": Slow(_FALL), "check": None, "rule": "change"}
        stopping = replace(self.stopping, max_iter=_MOST, **limits)
        if before is None:
            none = InMemory(data.like.new_empty(0, 0))
            of_start = replace(stopping, each=None)
            given = self.options, data, self.method, plan, none, of_start, self.note
            state = begun(Beginning(*given))
        else:
            state = self._continued(before, known, data)
        most = replace(stopping, max_iter=len(state.history) + _MOST)
        data.subtract(state.offset)
        factorize_(state, data, self.method, plan, most, revives=self.options.revive)
        state.E, state.G = None, None
        return state

    def _continued(self, before: State, known: int, data: Data) -> State:
        """The State of a fit of more rows, with the codes that those of before had."""
        Z = data.like.new_empty(data.n, len(before.D))
        Z[:known] = before.codes
        more = State(InMemory(Z[known:]), before.D, offset=before.offset, target=before.target)
        added = self._data(HELD_OUT + known, HELD_OUT + data.n, before.offset)
        begin_with_codes_(more, added, penalised(self.method, more, data.d))
        target = _continued_target(before.target)
        kept = {"seed": before.seed, "offset": before.offset, "starts": before.starts}
        return State(InMemory(Z), before.D, target=target, **kept)

    def _data(self, first: int, last: int, offset: Tensor | None) -> Data:
        data = Data(self.rows[first:last])
        data.compute_with(self.method.ops)
        if offset is not None:
            data.subtract(offset.clone())
        return data


def penalised(method: Method, state: State, d: int) -> Method:
    """The method with the penalty that the State has found, where it follows a target."""
    return method if state.target is None else method.with_penalties(state.target.penalties(d))


def _continued_target(target: TargetL0 | None) -> TargetL0 | None:
    """The penalty as it is, for other rows."""
    return None if target is None else TargetL0(target.target, target.l1, target.least)


def _of_all(
    options: Options, data: Data, method: Method, Z: Storage, learned: State, record: Sampled
) -> State:
    """The State of all rows for what was learned on a sample. A collective call."""
    found = data.processes.gather((record, learned.target, learned.starts, learned.seed))
    record, target, starts, seed = found[0]
    D = row_major(learned.D)
    data.processes.broadcast_(D)
    if learned.offset is not None:
        data.processes.broadcast_(learned.offset)
        data.subtract(learned.offset)
    # copies of codes of the sample
    del learned
    kept = {"offset": data.offset, "starts": starts, "sample": record}
    Z = codes_of(options, data, Z)
    state = State(Z, D, seed=seed, target=_continued_target(target), **kept)
    if not isinstance(Z, NotKept):
        begin_with_codes_(state, data, penalised(method, state, data.d))
    return state


def _without(options: Options, data: Data) -> Options:
    """The options with init='auto' in place of a sample."""
    if options.n_init > 1 and not data.in_memory_here:
        raise InvalidInput(
            f"n_init={options.n_init} compares fits of a sample, for which {data.n:,} rows are too "
            "few, or max_memory is too little; give n_init=1, or a fit of rows in memory by one "
            "process"
        )
    seed = None if data.drawing is None else data.drawing.seed
    return replace(options, init="auto", seed=seed)
