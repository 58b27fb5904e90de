"""The cost model: flops, bytes and calls of a half-step → the form, the block and the piece.

Pure Python: no tensors, no devices. The engine follows a Plan; bench_plan compares what it predicts
with what is measured, and its choice with the best.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import InvalidInput
from .solvers import SOLVERS, learner, pgd_momenta
from .working_set import GROWTH, ROUNDS

FORMS = ("normal", "residual")
# concepts swept between two GEMMs, and bytes of a piece of rows with its workspaces: what is tried
BLOCKS = (64, 128, 256)
# without a sweep between them only the size of the products counts
WIDE_BLOCKS = (512, 1024)
PIECE_BYTES = tuple(1 << power for power in range(21, 28))
# iterations that one residual serves, updated and not computed anew, where both halves keep it
REFRESH = 8
# rows below which products of matrices become slow, whatever the cache
_LEAST_ROWS = 512
# time of inner half-steps by that of what they share: the products with A come twice, for the codes
# and for the statistics; of hals from so many concepts on less (README, design)
_SHARE, _SHARE_OF_MANY, _MANY = 2.0, 0.5, 600


@dataclass(frozen=True)
class Machine:
    """What a half-step runs on: rates in flops and bytes a second, in float32 and for one thread.

    gemm: products of large matrices. sweep: the block sweep. elementwise: bytes a second of mu's
    and pgd's updates. near, far: bytes a second of what fits in the cache and of what does not.
    link, reduce_seconds: bytes a second to other processes, and the time of a sum however small,
    with the wait for the slowest of them.
    block_seconds, concept_seconds: the time of the calls, a block and a concept of it. blocks (of
    solvers that sweep), wide_blocks (of others), piece_bytes: what is tried. The numbers are those
    of two cores with AVX2; the choice depends on their ratios.
    """

    threads: int = 1
    cache_bytes: int = 16 << 20
    gemm: float = 80e9
    sweep: float = 45e9
    elementwise: float = 8e9
    near: float = 60e9
    far: float = 8e9
    link: float = 1e9
    reduce_seconds: float = 2e-3
    block_seconds: float = 40e-6
    concept_seconds: float = 0.0
    blocks: tuple[int, ...] = BLOCKS
    wide_blocks: tuple[int, ...] = WIDE_BLOCKS
    piece_bytes: tuple[int, ...] = PIECE_BYTES


def _cache_bytes() -> int:
    """The last cache of the first core, or 0 where Linux does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        return max((int(size.read_text().strip().rstrip("K")) << 10 for size in sizes), default=0)
    except (OSError, ValueError):
        return 0


@functools.cache
def machine(threads: int, compiled: bool, wide: bool = False) -> Machine:
    """This machine, with so many threads; without the compiled sweep every concept takes calls.
    wide: whether it has AVX-512."""
    # a virtual machine may be told of a cache that it shares with many
    cache_bytes = min(max(_cache_bytes(), 4 << 20), 16 << 20)
    on = Machine(threads, cache_bytes)
    if wide:
        # measured on two cores of a Xeon (Sapphire Rapids)
        on = replace(on, gemm=160e9, sweep=95e9, elementwise=12e9, near=100e9, far=12e9)
    if compiled:
        return on
    return replace(on, sweep=12e9, elementwise=4e9, concept_seconds=9e-6)


@dataclass(frozen=True)
class Plan:
    """How one iteration is computed: a form for either half, concepts in a block, rows in a piece.

    accelerates: whether the factors are extrapolated (extrapolation.py). inner: half-steps of the
    codes, and of the dictionary, in an iteration. splits: whether of several processes each makes
    the dictionary half at some of the features, and they gather it; else each makes all of it.
    flops: of an iteration, on average. seconds: what the model predicts for it; not part of what is
    compared.
    """

    codes: str
    dictionary: str
    block: int
    piece_rows: int
    flops: float
    accelerates: bool = False
    inner: tuple[int, int] = (1, 1)
    splits: bool = False
    seconds: float = field(default=math.nan, compare=False)

    @property
    def form(self) -> str:
        """'normal', 'residual', or both with a slash: codes first."""
        return self.codes if self.codes == self.dictionary else f"{self.codes}/{self.dictionary}"


def half_step_flops(solver: str, form: str, m: int, p: int, K: int, block: int, sweeps: int = 1):
    """Flops of one half-step on F (K, m) with B (K, p), or of `sweeps` of them with B unchanged."""
    steps = len(pgd_momenta()) if solver == "pgd" else 1
    if form == "normal":
        return 2 * m * p * K + 2 * p * K * K + sweeps * steps * 2 * m * K * K
    per_sweep = {
        "hals": 4 * m * p * K + 2 * m * K * block,
        "mu": 6 * m * p * K,
        "anls": ROUNDS * m * (4 * p * K + 2 * p * (2 * GROWTH) ** 2),
    }
    setup = 2 * m * p * K + 2 * p * K * block if solver == "hals" else 0
    return setup + sweeps * per_sweep.get(solver, steps * 4 * m * p * K)


def half_step_bytes(solver: str, form: str, m: int, p: int, K: int, block: int, itemsize: int):
    """Bytes of memory that one half-step moves, nothing being kept in a cache between two calls."""
    steps, s = len(pgd_momenta()) if solver == "pgd" else 1, min(block, K)
    blocks = math.ceil(K / s)
    # F, R and Δ or what stands for them, written and read
    factor = 6 * m * K
    if form == "residual":
        # the residual is read for R, then read and written
        through = {"hals": 3 * blocks * m * p}.get(solver, 4 * m * p) + 2 * K * p
        return itemsize * steps * (factor + through)
    return itemsize * (m * p + K * p + steps * (factor + K * K))


def half_step_seconds(
    solver: str,
    form: str,
    m: int,
    p: int,
    K: int,
    block: int,
    piece: int,
    itemsize: int,
    on: Machine,
    sweeps: int = 1,
) -> float:
    """The time of what half_step_flops counts, with pieces of so many columns of F."""
    steps = len(pgd_momenta()) if solver == "pgd" else 1
    narrow = min(block, K)
    pieces, blocks = math.ceil(m / piece), math.ceil(K / narrow)
    single = on.threads * 4 / itemsize
    flops = half_step_flops(solver, form, m, p, K, block, sweeps)
    swept = sweeps * (2 * m * _squares(K, narrow) if solver == "hals" else 0)
    if form == "normal" and solver == "hals":
        # few concepts are swept whole, 2 m K² and no more; many take a GEMM before every block
        flops -= 2 * m * K * K * sweeps if blocks == 1 else 0
    elif form == "residual":
        flops -= sweeps * (2 * m * K * narrow if solver == "hals" else 0)
    # products with a narrow matrix do not reach the rate of large ones
    seconds = flops / (on.gemm * single * narrow / (narrow + 24)) + swept / (on.sweep * single)
    if solver in ("mu", "pgd"):
        seconds += sweeps * steps * 5 * m * K * itemsize / (on.elementwise * on.threads)
    # what every block goes through: the residual, or in normal form all of F
    through = sweeps * steps * blocks * m * (3 * p if form == "residual" else K) * itemsize
    in_hand = piece * (p if form == "residual" else K) * itemsize
    seconds += through / ((on.near if in_hand <= on.cache_bytes / 2 else on.far) * on.threads)
    calls = sweeps * steps * pieces * (blocks * on.block_seconds)
    return seconds + calls + (sweeps * pieces * K * on.concept_seconds if solver == "hals" else 0)


def _squares(K: int, block: int) -> int:
    """Σ s² over blocks of s concepts, of which the last may be smaller."""
    return K // block * block**2 + (K % block) ** 2


def forms_of(solver: str, form: str) -> tuple[str, ...]:
    """The forms that a half-step may take where `form` is asked for. Raises InvalidInput for one
    that the solver does not have."""
    forms = SOLVERS[solver].forms
    if form != "auto" and form not in forms:
        raise InvalidInput(
            f"form={form!r} does not exist for solver={solver!r}; it has: auto, {', '.join(forms)}"
        )
    return forms if form == "auto" else (form,)


def choose(
    n: int,
    d: int,
    K: int,
    itemsize: int,
    solver: str,
    form: str = "auto",
    chunk_rows: int | None = None,
    learn: bool = True,
    sweeps: int = 1,
    block: int | None = None,
    on: Machine | None = None,
    streams: bool = False,
    processes: int = 1,
) -> Plan:
    """The quickest Plan for A (n, d) and K concepts; form, chunk_rows and block are kept if given.

    learn: whether the dictionary is updated too. sweeps: code half-steps that one plan serves with
    the dictionary unchanged. streams: the data are read in every pass and no residual is kept, so
    the dictionary half is in normal form. processes: how many have as many rows, and share D.
    Raises InvalidInput if the solver, a stream or several processes do not have the form.
    """
    on = on or Machine()
    by = learner(solver, K)
    if processes > 1 and by != "hals":
        if form == "residual":
            raise InvalidInput(
                f"form='residual' cannot be shared by processes where {by} updates the dictionary; "
                "give form='auto' or 'normal'"
            )
        streams = True
    if streams and form == "residual":
        raise InvalidInput(
            "form='residual' keeps a residual as large as the data, which are streamed here; give "
            "form='auto' or 'normal', or more max_memory"
        )
    forms = forms_of(solver, form)
    swept = "hals" in (solver, by)
    candidates = (
        (codes, dictionary, min(concepts, K), rows)
        for codes in forms
        for dictionary in (("normal",) if streams else forms if learn else (codes,))
        for concepts in ([block] if block else on.blocks if swept else on.wide_blocks)
        for rows in _pieces(n, d, K, itemsize, solver, codes, concepts, chunk_rows, on)
    )
    return min(
        (
            predict(n, d, K, itemsize, solver, *one, learn, sweeps, on, processes)
            for one in candidates
        ),
        key=lambda plan: plan.seconds,
    )


def predict(
    n: int,
    d: int,
    K: int,
    itemsize: int,
    solver: str,
    codes: str,
    dictionary: str,
    block: int,
    piece_rows: int,
    learn: bool = True,
    sweeps: int = 1,
    on: Machine | None = None,
    processes: int = 1,
) -> Plan:
    """The Plan of these choices, with its flops and the seconds an iteration should take."""
    on, splits = on or Machine(), False
    flops = half_step_flops(solver, codes, n, d, K, block, sweeps)
    seconds = half_step_seconds(solver, codes, n, d, K, block, piece_rows, itemsize, on, sweeps)
    if codes == "normal" and learn:
        # the statistics read A again: from the cache, if the piece is small
        again = on.near if piece_rows * (d + 2 * K) * itemsize <= on.cache_bytes / 32 else on.far
        seconds += n * d * itemsize * (1 / on.far + 1 / again) / on.threads
    if learn:
        # with both halves in residual form the second finds the residual fresh, and so do the
        # codes in all iterations but the first of REFRESH
        carried = solver == "hals" and codes == dictionary == "residual"
        kept = 2 * n * d * K * (2 - 1 / REFRESH) if carried else 0
        by = learner(solver, K)
        flops += half_step_flops(by, dictionary, d, n, K, block) - kept
        seconds += half_step_seconds(by, dictionary, d, n, K, block, d, itemsize, on)
        seconds -= kept / (on.gemm * on.threads * 4 / itemsize)
        splits, shared = _sharing(by, dictionary, d, K, block, itemsize, processes, on)
        seconds += shared
    return Plan(codes, dictionary, block, piece_rows, flops, splits=splits, seconds=seconds)


def _sharing(
    solver: str, dictionary: str, d: int, K: int, block: int, itemsize: int, processes: int, on
) -> tuple[bool, float]:
    """Whether processes make the dictionary half at some of the features each, given the statistics
    of all; and the seconds that it takes to share the fit, less those which that saves."""
    asked = d, K, block, itemsize, processes, on
    makes = exchange(dictionary, False, *asked)[1]
    if processes == 1 or dictionary == "residual":
        return False, makes
    whole = half_step_seconds(solver, dictionary, d, 0, K, block, d, itemsize, on)
    gathers = exchange(dictionary, True, *asked)[1] - whole * (1 - 1 / processes)
    # the model does not know how often an exact solver changes its sets
    splits = SOLVERS[solver].exact or gathers < makes
    return splits, gathers if splits else makes


def exchange(
    dictionary: str,
    splits: bool,
    d: int,
    K: int,
    block: int,
    itemsize: int,
    processes: int,
    on: Machine,
) -> tuple[int, float]:
    """Bytes that an iteration sums or gathers over so many processes, and their seconds: ZᵀA and
    ZᵀZ, or in residual form what each block of concepts needs of them; and D.

    A ring sends what it sums twice, what it gathers once.
    """
    if processes == 1:
        return 0, 0.0
    blocks = math.ceil(K / block)
    summed = K * d + (K * K if dictionary == "normal" else _squares(K, block))
    # the Gram matrices of all blocks, and the norms, are summed at once
    calls = 1 if dictionary == "normal" else blocks + 2
    gathered = K * d if splits else 0
    sent = (2 * summed + gathered) * itemsize * (processes - 1) / processes
    seconds = sent / on.link + (calls + splits) * on.reduce_seconds
    return (summed + gathered) * itemsize, seconds


def accelerated(plan: Plan, n: int, d: int, K: int, itemsize: int, solver: str) -> Plan:
    """The same, accelerated: extrapolated, with as many inner half-steps as what they share is
    worth; two at least, since extrapolation alone gains little. One in residual form, where they
    share nothing, and of exact solvers. Of many concepts hals makes fewer: an iteration then gains
    less by more of them than they take (README, design).

    The numbers depend on the sizes alone, so that a fit is the same on every machine and in any
    pieces. Source: Gillis & Glineur, 2012, with other bounds.
    """
    by = learner(solver, K)
    inner = (
        _inner(solver, plan.codes, n, d, K, itemsize, most=3),
        _inner(by, plan.dictionary, d, n, K, itemsize, most=6),
    )
    flops, seconds, on = plan.flops, plan.seconds, Machine()
    halves = ((solver, plan.codes, n, d), (by, plan.dictionary, d, n))
    for (name, form, m, p), times in zip(halves, inner, strict=True):
        size = name, form, m, p, K, plan.block
        flops += half_step_flops(*size, times) - half_step_flops(*size)
        timed = *size, m, itemsize, on
        seconds += half_step_seconds(*timed, times) - half_step_seconds(*timed)
    numbers = {"inner": inner, "flops": flops, "seconds": seconds}
    # whether concepts are scaled, for one, is decided by a dictionary that is the same in all
    # processes
    return replace(plan, accelerates=True, splits=plan.dictionary == "normal", **numbers)


def _inner(solver, form, m, p, K, itemsize, most: int) -> int:
    """Half-steps that share what is computed once: as many more as take _SHARE of its time."""
    if form != "normal" or SOLVERS[solver].exact:
        return 1
    # the block of a plan is chosen for its machine
    size = solver, form, m, p, K, BLOCKS[-1], m, itemsize, Machine()
    one = half_step_seconds(*size)
    more = half_step_seconds(*size, 2) - one
    share = _SHARE_OF_MANY if solver == "hals" and K >= _MANY else _SHARE
    return min(most, 1 + max(1, round(share * (one - more) / more)))


def _pieces(n, d, K, itemsize, solver, codes, block, chunk_rows, on) -> list[int]:
    """Rows in a piece that are worth trying, the fewest first."""
    width = d + (3 * K if codes == "normal" or solver == "pgd" else 2 * block)
    limit = min(n, chunk_rows or n)
    tried = (max(_LEAST_ROWS, size // (width * itemsize)) for size in on.piece_bytes)
    return sorted({min(limit, rows) for rows in tried})
