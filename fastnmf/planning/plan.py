"""The cost model: it chooses form, block and tile from the flops, bytes and calls of half-steps.

No tensors and no devices here. The engine follows a Plan; bench/bench_plan.py compares predictions
with measurements, and the choice with the best. What a GPU takes is in gpu.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .. import checks
from ..errors import InvalidInput
from ..solvers.base import Size, Solver
from ..solvers.constraints import NON_NEGATIVE, Constraint
from ..solvers.half_step import FORMS
from ..solvers.registry import learner
from . import gpu
from .hardware import Machine, sparse_seconds

# iterations from one computation of the residual to the next, where both halves update it
REFRESH = 8
# rows below which products of matrices become slow, whatever the cache
_LEAST_ROWS = 512
# where A is sparse: its entries in a tile (K = 100, d = 30,000: 1 to 3 million take 0.9 of the time
# of 6 million, and 0.75 of that of 250,000), and bytes of their codes and workspaces at most
_SPARSE_ENTRIES, _SPARSE_BYTES = 2_000_000, 16 << 20


@dataclass(frozen=True)
class Problem:
    """What is to be computed: A (n, d), of itemsize bytes an entry, and K concepts by one solver.

    learns: whether the dictionary is updated too. half_steps: of the codes, with the same
    dictionary. streams: whether the data are read in every pass, without a residual, so that the
    dictionary half is in normal form. processes: how many, with n rows each, share D. stored: the
    share of the entries of A that is stored where A is sparse, else None; it has no residual then.
    constraint: of the dictionary.
    """

    n: int
    d: int
    K: int
    itemsize: int
    solver: Solver
    learns: bool = True
    half_steps: int = 1
    streams: bool = False
    processes: int = 1
    stored: float | None = None
    constraint: Constraint = NON_NEGATIVE

    @property
    def learner(self) -> Solver:
        """The solver that updates the dictionary."""
        return learner(self.solver, self.K, self.constraint)


@dataclass(frozen=True)
class Tuning:
    """Force what a fit otherwise chooses by itself.

    All default to None, which leaves the choice to the plan. Whatever is forced shows in
    ``fit_info_``.

    Parameters
    ----------
    form : {'normal', 'residual'}, optional
        How half-steps are computed: from products with the data, of K × K entries and more, or from
        the residual, which needs nothing K × K. The iterates are the same to rounding.
    block : int, optional
        Concepts updated between two matrix products, 1 or more.
    chunk_rows : int, optional
        Rows processed at a time, at most; 1 or more.
    precision : {'auto', 'strict'}, optional
        'auto' (the default) uses tf32 where torch's settings of precision allow it and
        it does no harm; 'strict' never does.
    cuda_graph : bool, optional
        True repeats iterations from a CUDA graph or raises; False never does. By default small fits
        on NVIDIA GPUs do. The iterates are the same.
    checkpoint_seconds : float, optional
        Seconds between two checkpoints, at least; 60 by default, 0 saves after each iteration.

    Raises
    ------
    InvalidInput, TypeError
        For a value that is not allowed.

    Examples
    --------
    >>> from fastnmf import NMF, Tuning
    >>> NMF(10, tuning=Tuning(form="residual", block=64))
    NMF(10, device='cpu', solver='hals', not fitted)
    """

    form: str | None = None
    block: int | None = None
    chunk_rows: int | None = None
    precision: str | None = None
    cuda_graph: bool | None = None
    checkpoint_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.form is not None:
            checks.one_of("form", self.form, FORMS)
        if self.precision is not None:
            checks.one_of("precision", self.precision, ("auto", "strict"))
        checks.whole("block", self.block, at_least=1, at_most=checks.MOST, optional=True)
        rows = self.chunk_rows
        checks.whole("chunk_rows", rows, at_least=1, at_most=checks.MOST, optional=True)
        if self.cuda_graph is not None:
            checks.flag("cuda_graph", self.cuda_graph)
        if self.checkpoint_seconds is not None:
            checks.seconds("checkpoint_seconds", self.checkpoint_seconds)


class Candidate(NamedTuple):
    """A form for either half, concepts in a block, rows in a tile."""

    codes: str
    dictionary: str
    block: int
    tile_rows: int


@dataclass(frozen=True)
class Plan:
    """How one iteration is computed: a form for either half, concepts in a block, rows in a tile.

    flops: of an iteration, on average. accelerates: whether the factors are extrapolated
    (engine/acceleration.py). inner: half-steps of the codes, and of the dictionary, in an
    iteration. splits: whether each process updates some features of the dictionary and they gather
    it; else each updates all of it. seconds: predicted for an iteration, on a GPU from assumed
    rates and counted instructions (docs/notes/gpu_predictions.md); not compared by ==.
    """

    codes: str
    dictionary: str
    block: int
    tile_rows: int
    flops: float
    accelerates: bool = False
    inner: tuple[int, int] = (1, 1)
    splits: bool = False
    seconds: float = field(default=math.nan, compare=False)

    @property
    def form(self) -> str:
        """'normal', 'residual', or both with a slash: codes first."""
        return self.codes if self.codes == self.dictionary else f"{self.codes}/{self.dictionary}"


def half_step_seconds(
    solver: Solver,
    form: str,
    size: Size,
    tile: int,
    itemsize: int,
    on: Machine,
    times: int = 1,
    stored: float | None = None,
) -> float:
    """The seconds of `times` half-steps on the same data, with tiles of `tile` columns of F.
    stored: as in Problem."""
    if on.gpu is not None:
        parts = gpu.half_step_parts(solver, form, size, tile, itemsize, on, times)
        return sum(gpu.settled(parts).values())
    m, p, K, block = size
    work = solver.work(form, size, times)
    narrow = min(block, K)
    tiles, blocks = math.ceil(m / tile), math.ceil(K / narrow)
    single = on.threads * 4 / itemsize
    # products with a narrow matrix are slower than large ones
    rate = on.gemm * single * narrow / (narrow + 24)
    products, seconds = work.products, work.swept / (on.sweep * single)
    if stored is not None:
        products -= 2 * m * p * K
        seconds += sparse_seconds(on, stored * m * p, K, itemsize)
    seconds += products / rate
    if work.updated:
        seconds += work.updated * itemsize / (on.elementwise * on.threads)
    # each block reads and writes the residual, or in normal form reads all of F
    passes = times * work.steps
    through = passes * blocks * m * (3 * p if form == "residual" else K) * itemsize
    in_cache = tile * (p if form == "residual" else K) * itemsize <= on.cache_bytes / 2
    seconds += through / ((on.near if in_cache else on.far) * on.threads)
    calls = passes * tiles * (blocks * on.block_seconds)
    return seconds + calls + (times * tiles * K * on.concept_seconds if solver.sweeps_blocks else 0)


def forms_of(solver: Solver, form: str | None) -> tuple[str, ...]:
    """The forms to choose from: the one requested, or all of the solver for None. Raises
    InvalidInput for one that the solver does not have."""
    if form is None:
        return solver.forms
    if form not in solver.forms:
        raise InvalidInput(
            f"form={form!r} does not exist for solver={solver.name!r}; it has: "
            f"{', '.join(solver.forms)}, or None to let the plan choose"
        )
    return (form,)


# of many fits of one size, each asks again
@functools.lru_cache(maxsize=256)
def choose(problem: Problem, on: Machine | None = None, tuning: Tuning | None = None) -> Plan:
    """The fastest Plan; form, chunk_rows and block of the tuning are kept if given.

    Raises InvalidInput if the solver, data read in passes, or several processes do not have the
    form.
    """
    on, tuning = on or Machine(), tuning or Tuning()
    streams = problem.streams
    if problem.processes > 1 and not problem.learner.keeps_residual:
        if tuning.form == "residual":
            raise InvalidInput(
                "form='residual' cannot be shared by processes where "
                f"{problem.learner.name} updates the dictionary; give form=None or 'normal'"
            )
        streams = True
    if streams and tuning.form == "residual":
        raise InvalidInput(
            "form='residual' keeps a residual as large as the data, which are read in passes here; "
            "give form=None or 'normal', or more max_memory"
        )
    if problem.stored is not None:
        if tuning.form == "residual":
            raise InvalidInput(
                "form='residual' keeps a residual of all entries, which a sparse A does not have; "
                "give form=None or 'normal', or a dense A (A.toarray(), A.to_dense())"
            )
        tuning = replace(tuning, form="normal")
    candidates = _candidates(replace(problem, streams=streams), on, tuning)
    return min((predict(problem, one, on) for one in candidates), key=lambda plan: plan.seconds)


def _candidates(problem: Problem, on: Machine, tuning: Tuning) -> Iterator[Candidate]:
    learns_by = problem.solver.learns_by
    forms = forms_of(learns_by or problem.solver, tuning.form)
    of_codes = problem.solver.forms if learns_by else forms
    swept = problem.solver.sweeps_blocks or problem.learner.sweeps_blocks
    blocks = [tuning.block] if tuning.block else on.blocks if swept else on.wide_blocks
    of_dictionary = forms if "residual" in problem.learner.forms else ("normal",)
    return (
        Candidate(codes, dictionary, min(block, problem.K), rows)
        for codes in of_codes
        for dictionary in (
            ("normal",) if problem.streams else of_dictionary if problem.learns else (codes,)
        )
        for block in blocks
        for rows in _tiles(problem, codes, block, on, tuning.chunk_rows)
    )


def predict(problem: Problem, candidate: Candidate, on: Machine | None = None) -> Plan:
    """The Plan of a candidate, with the flops and the predicted seconds of an iteration."""
    on = on or Machine()
    codes, dictionary, block, tile = candidate
    n, d, K, itemsize = problem.n, problem.d, problem.K, problem.itemsize
    size, flops = Size(n, d, K, block), _flops(problem, candidate)
    splits, shared = False, 0.0
    if problem.learns:
        splits, shared = _sharing(problem, dictionary, block, on)
    if on.gpu is not None:
        seconds = sum(gpu_parts(problem, candidate, on).values()) + shared
        return Plan(*candidate, flops, splits=splits, seconds=seconds)
    given, times, stored = (tile, itemsize, on), problem.half_steps, problem.stored
    seconds = half_step_seconds(problem.solver, codes, size, *given, times, stored)
    if stored is None and codes == "normal" and problem.learns:
        # the statistics read A a second time: from the cache, if the tile is small
        second = on.near if tile * (d + 2 * K) * itemsize <= on.cache_bytes / 32 else on.far
        seconds += n * d * itemsize * (1 / on.far + 1 / second) / on.threads
    if problem.learns:
        size = Size(d, n, K, block)
        seconds += half_step_seconds(problem.learner, dictionary, size, d, itemsize, on, 1, stored)
        seconds -= _carried(problem, candidate) / (on.gemm * on.threads * 4 / itemsize)
        seconds += shared
    return Plan(*candidate, flops, splits=splits, seconds=seconds)


def _flops(problem: Problem, candidate: Candidate) -> float:
    """The flops of an iteration, on average."""
    codes, dictionary, block, _ = candidate
    n, d, K = problem.n, problem.d, problem.K
    flops = problem.solver.work(codes, Size(n, d, K, block), problem.half_steps).flops
    if problem.learns:
        learner = problem.learner.work(dictionary, Size(d, n, K, block), 1)
        flops += learner.flops - _carried(problem, candidate)
    if problem.stored is not None:
        flops -= (1 + problem.learns) * 2 * n * d * K * (1 - problem.stored)
    return flops


def _carried(problem: Problem, candidate: Candidate) -> float:
    """The flops that an iteration saves, on average, because the residual is carried: with both
    halves in residual form the dictionary half need not compute it, nor the codes in all iterations
    but the first of REFRESH."""
    if not (problem.learns and problem.solver.keeps_residual):
        return 0
    both = candidate.codes == candidate.dictionary == "residual"
    return 2 * problem.n * problem.d * problem.K * (2 - 1 / REFRESH) if both else 0


def gpu_parts(
    problem: Problem, candidate: Candidate, on: Machine, inner: tuple[int, int] | None = None
) -> gpu.Parts:
    """The predicted seconds of an iteration on a GPU, by the names of its parts; without what
    processes exchange. inner: half-steps of the codes, and of the dictionary, of an accelerated
    iteration."""
    codes, dictionary, block, tile = candidate
    n, d, K, itemsize = problem.n, problem.d, problem.K, problem.itemsize
    first, second = inner or (problem.half_steps, 1)
    size = Size(n, d, K, block)
    halves = {"codes": gpu.half_step_parts(problem.solver, codes, size, tile, itemsize, on, first)}
    if problem.learns:
        of_dictionary = problem.learner, dictionary, Size(d, n, K, block), d
        halves["dictionary"] = gpu.half_step_parts(*of_dictionary, itemsize, on, second)
    kept = REFRESH if _carried(problem, candidate) else None
    return gpu.iteration_parts(halves, kept, accelerated=inner is not None)


def _sharing(problem: Problem, dictionary: str, block: int, on: Machine) -> tuple[bool, float]:
    """Whether each process updates some features of the dictionary, given the statistics of all;
    and the seconds of the exchange, minus those which that saves."""
    makes = exchange(problem, dictionary, False, block, on)[1]
    processes = problem.processes
    if processes == 1 or dictionary == "residual":
        return False, makes
    d, by = problem.d, problem.learner
    size = Size(d, 0, problem.K, block)
    whole = half_step_seconds(by, dictionary, size, d, problem.itemsize, on)
    gathers = exchange(problem, dictionary, True, block, on)[1] - whole * (1 - 1 / processes)
    # the model cannot predict how often an exact solver changes its sets
    splits = by.exact or gathers < makes
    return splits, gathers if splits else makes


def exchange(
    problem: Problem, dictionary: str, splits: bool, block: int, on: Machine
) -> tuple[int, float]:
    """The bytes that an iteration sums or gathers over the processes, and their seconds: ZᵀA and
    ZᵀZ, or in residual form the parts of them that each block of concepts needs; and D.

    A ring sends what it sums twice, what it gathers once.
    """
    d, K, processes = problem.d, problem.K, problem.processes
    if processes == 1:
        return 0, 0.0
    blocks = math.ceil(K / block)
    # Σ s² over blocks of s concepts, of which the last may be smaller
    squares = K // block * block**2 + (K % block) ** 2
    summed = K * d + (K * K if dictionary == "normal" else squares)
    # the Gram matrices of all blocks, and the norms, are summed at once
    calls = 1 if dictionary == "normal" else blocks + 2
    gathered = K * d if splits else 0
    sent = (2 * summed + gathered) * problem.itemsize * (processes - 1) / processes
    seconds = sent / on.link + (calls + splits) * on.reduce_seconds
    return (summed + gathered) * problem.itemsize, seconds


def _tiles(
    problem: Problem, codes: str, block: int, on: Machine, chunk_rows: int | None
) -> list[int]:
    """The candidates for the rows of a tile, the fewest first."""
    n, K = problem.n, problem.K
    if problem.stored is not None:
        # sums over rows add to (d, K) in each tile, which must have many entries beside that
        entries = max(_SPARSE_ENTRIES, 64 * problem.d) / max(1, problem.stored * problem.d)
        bounded = _SPARSE_BYTES // (3 * K * problem.itemsize)
        return [min(n, chunk_rows or n, max(_LEAST_ROWS, min(int(entries), bounded)))]
    all_concepts = codes == "normal" or problem.solver.needs_all_concepts
    width = problem.d + (3 * K if all_concepts else 2 * block)
    limit = min(n, chunk_rows or n)
    wanted = (max(_LEAST_ROWS, size // (width * problem.itemsize)) for size in on.tile_bytes)
    return sorted({min(limit, rows) for rows in wanted})
