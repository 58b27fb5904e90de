"""The State that a fit begins with: that of its start, or of the best of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...data.dataset import Data
from ...data.opening.first_pass import Drawing
from ...data.storage import Compressed, InMemory, NotKept, Storage
from ...distributed import Processes
from ...engine.codes import begin_with_codes_
from ...engine.loop import factorize_
from ...engine.sparsity.target import TargetL0
from ...engine.state import Method, State, Stopping
from ...init.start import SAMPLE, begin, resolve
from ...numerics import row_major
from ...planning.memory import SINGULAR, Budget
from ...planning.plan import Plan
from ...solvers.constraints import Constraint
from ..options import Options, generator
from ..weighted.request import scale_start_, start_of
from .race import Race
from .request import init_of


def first_state(
    options: Options, data: Data, method: Method, Z: Storage, seed: int | None, number: int = 0
) -> State:
    """The State of start `number`, whose codes go to Z. seed: of the fit."""
    init, K = init_of(start_of(options, data), number, options.constraint), options.nb_concepts
    # codes of a start are dense, and made again where they are read; those of a pair may not be
    first = isinstance(Z, Compressed) and not _makes_again(init, data, K, options.constraint)
    codes = None if first or isinstance(Z, NotKept) else Z
    D, mixture = begin(data, codes, K, init, generator(seed, number), options.constraint)
    data.processes.broadcast_(D)
    state = State(Z, row_major(D), seed=seed, mixture=mixture, offset=data.offset)
    if (wanted := options.target_l0) is not None:
        state.target = TargetL0.begin(wanted, float(data.squares_read), data.n)
    scale_start_(state, data, options)
    if first:
        target = state.target
        sparse = method if target is None else method.with_penalties(target.penalties(data.d))
        begin_with_codes_(state, data, sparse)
    return state


def _makes_again(init: Any, data: Data, K: int, constraint: Constraint) -> bool:
    """Whether the codes of a start are given, or made a chunk at a time, whenever they are read:
    not those of singular vectors."""
    if not isinstance(init, str):
        return init[0] is not None or data.in_memory_here
    few = resolve(init, data.n, data.d, K, constraint) in (*SINGULAR, "svd")
    return data.in_memory_here and not (few and min(data.n, data.d) >= K)


def drawn(options: Options, budget: Budget, processes: Processes) -> Drawing | None:
    """What draws the rows of a sample while the data are opened; None where no sample is asked for.
    A collective call."""
    if options.start_name != SAMPLE:
        return None
    # few fits need what this imports
    from .drawing import RowsDrawn

    seed = options.seed_of_start(processes)
    assert seed is not None
    return RowsDrawn(seed, budget.sample_rows)


def name_of_start(options: Options, data: Data, state: State | None = None) -> str:
    """What the start of a fit is, one of STARTS but not 'auto', SAMPLE or 'given'. state: of the
    fit, of which the best of several starts is named, and the one that took the place of a
    sample."""
    begin, sample = options.begin, None if state is None else state.sample
    if begin == SAMPLE and sample is not None and not sample.rows:
        begin = "auto"
    number = 0 if state is None or state.starts is None or begin == SAMPLE else state.starts.best
    init = init_of(begin, number, options.constraint)
    return resolve(init, data.n, data.d, options.nb_concepts, options.constraint)


class Beginning(NamedTuple):
    """A fit that is to begin. Z: where the codes go, unless all are in memory. stopping: that of
    the fit. note(text): shows which start runs."""

    options: Options
    data: Data
    method: Method
    plan: Plan
    Z: Storage
    stopping: Stopping
    note: Callable[[str], None]


def begun(fit: Beginning) -> State:
    """The State of the start, or of the best of several after short runs."""
    options, data, method = fit.options, fit.data, fit.method
    seed = options.seed_of_start(data.processes)
    if options.n_init == 1:
        return first_state(options, data, method, codes_of(options, data, fit.Z), seed)
    row = data.offset

    def make(number: int) -> State:
        # which a run changes in place
        data.subtract(None if row is None else row.clone())
        return first_state(options, data, method, codes_of(options, data, fit.Z), seed, number)

    def run_(state: State, stopping: Stopping) -> None:
        data.subtract(state.offset)
        factorize_(state, data, method, fit.plan, stopping, revives=options.revive)

    best = Race(make, run_, fit.stopping, fit.note).best_of(options.n_init)
    data.subtract(best.offset)
    return best


def codes_of(options: Options, data: Data, Z: Storage) -> Storage:
    """Where the codes of a start go: new memory if all rows are in memory, else Z."""
    if isinstance(Z, Compressed):
        return Compressed(*Z.shape, data.like)
    if not data.in_memory_here:
        return Z
    return InMemory(data.like.new_empty(data.n, options.nb_concepts))
