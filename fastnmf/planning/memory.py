"""What fits in memory: the bytes that a call may take, what a fit takes beside its data, the rows of
a chunk, and the plan whose factors and workspaces fit beside A on a device."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidInput
from ..numerics import NARROW, WIDENED_BYTES, compute_dtype
from .hardware import free_bytes, machine_of
from .plan import Candidate, Plan, Problem, Tuning, choose, predict

log = logging.getLogger(__name__)

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}
# what products, threads and the allocator take by themselves; 40 to 60 MB were measured
_OVERHEAD = 64 << 20
# of what the system says is available, for others live there too
_SHARE = 0.7
# rows of a chunk: enough for products to be quick, and bytes beyond which they gain nothing, here and
# on a GPU
LEAST_ROWS = 512
_MOST_BYTES = 128 << 20
_MOST_ON_GPU = 4 << 30
# what allocations lose to rounding and to what cuBLAS keeps
_USABLE = 0.92
# bytes of rows that an SVD works on at a time; 1 to 32 MB cost the same on two cores with AVX-512
WORKSPACE_BYTES = 8 * 2**20
# columns of the random basis of an SVD beyond K; scikit-learn's number
OVERSAMPLES = 10
# rows that are looked at for each concept that is to become one, since some may be alike
CANDIDATES = 4


def bytes_of(max_memory: object) -> int | None:
    """Bytes of max_memory: None, a whole number, or a text such as '2GB' or '512MiB'.

    Raises TypeError or InvalidInput for anything else.
    """
    if max_memory is None:
        return None
    allowed = "a number of bytes, '2GB', '512MiB', or None for what is free"
    if isinstance(max_memory, bool) or not isinstance(max_memory, int | str):
        raise TypeError(f"max_memory={max_memory!r} must be {allowed}")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(max_memory).lower())
    if not found or found[2] not in _UNITS or float(found[1]) == 0:
        raise InvalidInput(f"max_memory={max_memory!r} is no size; give {allowed}")
    return int(float(found[1]) * _UNITS[found[2]])


def size_of(bytes_: int) -> str:
    """Bytes as a reader likes them, rounded up so that it can be given as max_memory."""
    return f"{-(-bytes_ // 10**6)}MB"


@dataclass(frozen=True)
class Needs:
    """What a fit takes beside its data.

    n, d, K: sizes. itemsize: of what is computed in. codes: where codes are kept: 'memory', 'none',
    or else a file. start: its name, for its workspaces. of_all: the rows of all processes, where n
    are those of one.
    """

    n: int
    d: int
    K: int
    itemsize: int
    codes: str = "memory"
    start: str = "random"
    of_all: int | None = None
    revives: bool = False

    def resident(self, copied: int) -> int:
        """Bytes when all rows are in memory: the codes, twice for a start and thrice where the fit
        is accelerated, a residual as large as the data, and the data where they must be copied, so
        many bytes an entry."""
        codes = max(3 * self.K, 2 * self.K + self.d)
        return self._fixed() + self.n * (codes * self.itemsize + self.d * copied)

    def streamed(self, rows: int) -> int:
        """Bytes with so many rows in hand: two chunks of data, the codes of three, and workspaces.
        Codes in memory beside them."""
        a_row = 4 * self.d + {"memory": 4, "none": 12}.get(self.codes, 7) * self.K
        kept = self.n * self.K if self.codes == "memory" else 0
        return self._fixed() + (kept + rows * a_row) * self.itemsize

    def chunk_rows(self, budget: int, wanted: int | None, asked: bool, gpu: bool = False) -> int:
        """Rows to have in hand, `wanted` at most; raises InvalidInput that says the least budget
        that would do. asked: whether the budget was given, or is what is free. gpu: whether they
        are computed on one."""
        most = min(self.n, wanted or self.n)
        fewest = min(most, LEAST_ROWS)
        if self.streamed(fewest) > budget:
            kept = self.n * self.K * self.itemsize
            where = (
                f", of which the codes take {size_of(kept)} (codes='Z.npy' writes them to a file)"
            )
            sizes = f"{self.n:,} rows, {self.d:,} features and {self.K:,} concepts"
            raise InvalidInput(
                f"{'max_memory' if asked else 'free memory'} of {size_of(budget)} is too little for "
                f"{sizes}: at least {size_of(self.streamed(fewest))} are needed"
                + (where if self.codes == "memory" else "")
            )
        a_row = self.streamed(1) - self.streamed(0)
        left = min(budget - self.streamed(0), _MOST_ON_GPU if gpu else _MOST_BYTES)
        return max(fewest, min(most, left // a_row))

    def _fixed(self) -> int:
        """Statistics and dictionaries; and the largest workspace of a start."""
        K, d, n = self.K, self.d, self.n
        p = min(self.of_all or n, d)
        svd = 6 * d * (K + OVERSAMPLES) * self.itemsize
        if p <= 4 * (K + OVERSAMPLES):
            # with fewer rows than features all of them are in memory as well
            svd = 4 * 8 * p * p + (p * (d + p) * self.itemsize if p < d else 0)
        starts = {"nndsvda": svd, "rows": 24 * n, "spread": 64 * n}
        halves = (6 * K * d + 6 * K * K) * self.itemsize
        # the rows that may become concepts, sorted and compared with each other
        worst = 4 * min(CANDIDATES * K, self.of_all or n) * d * self.itemsize if self.revives else 0
        return _OVERHEAD + 2 * WORKSPACE_BYTES + halves + max(worst, starts.get(self.start, 0))


@dataclass(frozen=True)
class Budget:
    """The memory that a call may take on a device.

    K: entries that are computed for each row. codes: where they go: 'memory', 'none', or else a
    file. asked: bytes by which the process may grow, or None for what is free. chunk_rows: rows of
    a chunk at most. start, revives: as in Needs. sharing: processes that share what is free.
    """

    device: torch.device
    K: int
    codes: str = "memory"
    asked: int | None = None
    chunk_rows: int | None = None
    start: str = "random"
    revives: bool = False
    sharing: int = 1

    def holds(self, n: int, d: int, dtype: torch.dtype, copied: int, *, given: bool) -> bool:
        """Whether all of A (n, d) may be in memory, of which an entry takes `copied` bytes beside
        what there is. given: whether A is in memory already, in any dtype."""
        # what is in memory already is used there, as long as nobody asks for less
        if given and self.asked is None:
            return True
        # whichever start is taken, it has room
        start = "nndsvda" if self.start == "auto" else self.start
        return self._needs(n, d, dtype, start).resident(copied) <= self._limit()

    def rows(self, n: int, d: int, dtype: torch.dtype, of_all: int, most: int | None = None) -> int:
        """Rows of a chunk of n rows, `most` at most; n of those of all processes."""
        wanted = min((rows for rows in (self.chunk_rows, most) if rows), default=None)
        start = self.start
        if start == "auto":
            start = "nndsvda" if min(of_all, d) >= self.K else "random"
        needs, gpu = self._needs(max(1, n), d, dtype, start, of_all), self.device.type == "cuda"
        return needs.chunk_rows(self._limit(), wanted, asked=self.asked is not None, gpu=gpu)

    def has_room_beside(self, A: Tensor) -> bool:
        """Whether the device has room for codes, their copies and a residual beside A."""
        free, (n, d) = free_bytes(self.device), A.shape
        return free is None or n * (d + 3 * self.K) * compute_dtype(A).itemsize < 0.8 * free

    def _needs(
        self, n: int, d: int, dtype: torch.dtype, start: str, of_all: int | None = None
    ) -> Needs:
        return Needs(n, d, self.K, dtype.itemsize, self.codes, start, of_all, self.revives)

    def _limit(self) -> int:
        asked = available() // self.sharing if self.asked is None else self.asked
        free = free_bytes(self.device)
        return asked if free is None else min(asked, int(0.9 * free))


def available() -> int:
    """Bytes that may be taken where nobody said: a share of what the system has available."""
    meminfo = Path("/proc/meminfo")
    told = meminfo.read_text() if meminfo.exists() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", told)
    if found is None:
        # nobody can tell: as if there were enough
        return 1 << 62
    free = int(found[1]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return int(_SHARE * free)


# rows that are looked at for each concept that is to become one, since some may be alike
CANDIDATES = 4
log = logging.getLogger(__name__)


def plan_beside(
    A: Tensor, problem: Problem, backend: str, tuning: Tuning, free: int | None
) -> Plan:
    """The quickest Plan whose factors and workspaces fit beside A. What A stores in 16 bits is
    widened in tiles of WIDENED_BYTES at most.

    free: the bytes that may be used, or None. Raises torch.cuda.OutOfMemoryError, with what would
    fit, where a chunk_rows that was asked for does not, or nothing does.
    """
    n, d, on = problem.n, problem.d, machine_of(A, backend)
    wanted, most, widened = tuning.chunk_rows, n, 0
    if A.dtype in NARROW:
        most, widened = max(1, WIDENED_BYTES // (d * problem.itemsize)), WIDENED_BYTES
        tuning = replace(tuning, chunk_rows=min(most, wanted or most))

    def rows_that_fit(chosen: Plan) -> int:
        fixed, a_row = needed_bytes(problem, chosen)
        return int((_USABLE * free - fixed - widened) // a_row)

    if free is not None and problem.solver.device_workspace and A.device.type == "cuda":
        total = torch.cuda.get_device_properties(A.device).total_memory
        free -= problem.solver.device_workspace(total)
    chosen = choose(problem, on, tuning)
    if free is None or chosen.tile_rows <= rows_that_fit(chosen):
        return chosen
    # fewer rows at a time, by the plan that suits all of them
    chosen = choose(problem, on, replace(tuning, chunk_rows=most))
    rows = min(most, rows_that_fit(chosen))
    if rows < min(most, wanted or 1):
        fixed, a_row = needed_bytes(problem, chosen)
        whole = fixed + widened + a_row * (wanted or chosen.tile_rows)
        raise torch.cuda.OutOfMemoryError(_message(problem, wanted, rows, whole, free))
    rows = min(rows, wanted or rows)
    log.info("%d rows at a time, for memory", rows)
    return predict(problem, Candidate(chosen.codes, chosen.dictionary, chosen.block, rows), on)


def _message(problem: Problem, wanted: int | None, rows: int, whole: int, free: int) -> str:
    n, K = problem.n, problem.K
    advice = (
        f"chunk_rows={rows} would fit"
        if rows >= 1
        else "no chunk_rows would: take fewer rows or concepts, or more memory"
    )
    codes = n * K * problem.itemsize
    return (
        f"{n:,} rows and {K:,} concepts with chunk_rows={wanted} need {whole / 1e9:.3g} GB beside "
        f"A, of which the codes take {codes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free: {advice}"
    )


def needed_bytes(problem: Problem, chosen: Plan) -> tuple[int, int]:
    """(bytes whatever the tile, bytes for each row of a tile) that a fit takes beside A.

    An upper bound for all backends and precisions: both factors, the residual, statistics, and
    every workspace of the half-steps.
    """
    n, d, K, learns = problem.n, problem.d, problem.K, problem.learns
    s = min(chosen.block, K)
    kept = n * d if learns and chosen.dictionary == "residual" else 0
    fixed = n * K + 5 * K * d + K * s + kept
    if "normal" in chosen.form:
        fixed += 3 * K * K
    if chosen.form == "normal" and learns:
        # what is extrapolated
        fixed += 2 * n * K
    if chosen.dictionary == "residual" and learns:
        # a block of the codes is rounded; others hold a second residual for a moment
        fixed += n * s + (0 if problem.solver.keeps_residual else n * d)
    a_row = problem.solver.workspace(K, d, s)
    a_row += 3 * K if chosen.codes == "normal" else d
    # a norm is taken in float64, a part at a time
    return fixed * problem.itemsize + (1 << 28), a_row * problem.itemsize
