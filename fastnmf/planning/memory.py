"""What fits in memory: the bytes that a call may use, those that a fit needs besides its data, and
the rows of a chunk."""

from __future__ import annotations

import ctypes
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checks
from ..backends.products import Matrix, stored_share
from ..errors import InvalidInput
from ..numerics import compute_dtype
from .hardware import free_bytes
from .plan import Plan, Problem

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}
# bytes that are there without a look, which takes longer than a small product
_SURELY_THERE = 64 << 20
# no size of a memory
_BEYOND_ALL = 1e300
# bytes of libraries, threads and the allocator; 40 to 60 MB were measured
_OVERHEAD = 64 << 20
# the share of the memory available that a call may use; other programs need some too
_SHARE = 0.7
# rows of a chunk from which on products are fast, and bytes beyond which they gain nothing, on a
# CPU and on a GPU
LEAST_ROWS = 512
CHUNK_BYTES = 128 << 20
# of codes that are made dense from compressed rows at a time, in a pass over data in memory
_MADE_DENSE_BYTES = 16 << 20
_MOST_ON_GPU = 4 << 30
# matrices (K, K) of a fit at once: statistics, products of concepts, and copies of both
SQUARES = 6
# bytes of rows that an SVD works on at a time; 1 to 32 MB cost the same on two cores with AVX-512
WORKSPACE_BYTES = 8 * 2**20
# columns of the random basis of an SVD beyond K; scikit-learn's number
OVERSAMPLES = 10
# rows examined for each concept that becomes a row of the data, since some may be similar
CANDIDATES = 4
SINGULAR = ("nndsvda", "nndsvd", "nndsvdar")  # starts of singular vectors
# bytes of a fit of a sample of the rows, and their share of what max_memory leaves
_SAMPLE_BYTES, _SAMPLE_SHARE = 512 << 20, 0.5


def bytes_of(max_memory: object) -> int | None:
    """Bytes of max_memory: None, a whole number, or a text such as '2GB' or '512MiB'.

    Raises TypeError or InvalidInput for anything else.
    """
    if max_memory is None:
        return None
    allowed = "a number of bytes, '2GB', '512MiB', or None for what is free"
    if isinstance(max_memory, bool) or not isinstance(max_memory, int | str):
        raise TypeError(f"max_memory={max_memory!r} must be {allowed}")
    given = checks.short(max_memory) if isinstance(max_memory, int) else max_memory
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(given).lower())
    size = float(found[1]) * _UNITS.get(found[2], 0) if found else 0.0
    if isinstance(max_memory, int):
        size = max(0, max_memory)
    if not 0 < size < _BEYOND_ALL:
        raise InvalidInput(f"max_memory={given!r} is no size; give {allowed}")
    return int(size)


def size_of(bytes_: int) -> str:
    """Bytes as text, valid and enough as max_memory: exact if they are few, or a whole number of a
    unit, and else rounded up to MB, or beyond five digits to a larger unit."""
    sizes = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 1000}
    for unit, size in sizes.items():
        if bytes_ >= size and bytes_ % size == 0:
            return f"{bytes_ // size}{unit}"
    if bytes_ < 10**4:
        return f"{bytes_}B"
    unit = next((unit for unit in ("MB", "GB") if bytes_ < 10**5 * sizes[unit]), "TB")
    return f"{-(-bytes_ // sizes[unit])}{unit}"


@dataclass(frozen=True)
class Needs:
    """The memory that a fit needs besides its data.

    n, d, K: sizes. itemsize: bytes of an entry in computing. codes: where they are stored:
    'memory', 'none', 'sparse', or else a file. start: its name, for its workspaces. of_all: the
    rows of all processes, where n are those of one. revives: whether dead concepts are
    re-initialised. stored: the share of the entries of the data that is stored where these are
    sparse, else None. squares: matrices (K, K) that are in memory at once.
    """

    n: int
    d: int
    K: int
    itemsize: int
    codes: str = "memory"
    start: str = "random"
    of_all: int | None = None
    revives: bool = False
    stored: float | None = None
    squares: int = SQUARES
    beside: int = 0
    grams: int = 0

    def resident(self, copied: int) -> int:
        """Bytes if all rows are in memory: two copies of the codes for a start, three where the fit
        is accelerated, a residual as large as the data unless these are sparse, and `copied` bytes
        for each entry of the data that is stored."""
        dense = self.stored is None
        codes = max(3 * self.K, 2 * self.K + self.d) if dense else 3 * self.K
        entries = self.d if dense else math.ceil(self.stored * self.d)
        return self._fixed() + self.n * (codes * self.itemsize + entries * copied)

    def streamed(self, rows: int) -> int:
        """Bytes with chunks of this many rows: two chunks of data, the codes of three, workspaces,
        and the codes of all rows if they are in memory."""
        # an entry of sparse data has its column beside it
        width = self.d if self.stored is None else math.ceil(2 * self.stored * self.d)
        a_row = 4 * width + {"memory": 4, "none": 12, "sparse": 12}.get(self.codes, 7) * self.K
        kept = self.n * self.K if self.codes == "memory" else 0
        beside = rows * self.d * self.beside + self.grams
        return self._fixed() + (kept + rows * a_row) * self.itemsize + beside

    def least(self) -> int:
        """Bytes with small chunks."""
        return self.streamed(min(self.n, LEAST_ROWS))

    def chunk_rows(
        self, budget: int, wanted: int | None, requested: bool, gpu: bool = False
    ) -> int:
        """Rows of a chunk, `wanted` at most.

        requested: whether the budget was given by max_memory, else it is available(). gpu: whether
        chunks are computed on one. Raises InvalidInput with the least budget that is enough.
        """
        most = min(self.n, wanted or self.n)
        fewest = min(most, LEAST_ROWS)
        if self.streamed(fewest) > budget:
            kept = self.n * self.K * self.itemsize
            where = (
                f", of which the codes take {size_of(kept)} (codes='Z.npy' writes them to a file)"
            )
            sizes = f"{self.n:,} rows, {self.d:,} features and {self.K:,} concepts"
            limit = "max_memory" if requested else "free memory"
            raise InvalidInput(
                f"{limit} of {size_of(budget)} is too little for {sizes}: at least "
                f"{size_of(self.streamed(fewest))} are needed"
                f"{where if self.codes == 'memory' else ''}; fewer concepts need less"
            )
        a_row = self.streamed(1) - self.streamed(0)
        left = min(budget - self.streamed(0), _MOST_ON_GPU if gpu else CHUNK_BYTES)
        return max(fewest, min(most, left // a_row))

    def _fixed(self) -> int:
        """Bytes of statistics and dictionaries, and of the largest workspace of a start."""
        K, d, n = self.K, self.d, self.n
        p = min(self.of_all or n, d)
        svd = 6 * d * (K + OVERSAMPLES) * self.itemsize
        if p <= 4 * (K + OVERSAMPLES):
            # with fewer rows than features all rows are in memory as well
            svd = 4 * 8 * p * p + (p * (d + p) * self.itemsize if p < d else 0)
        starts = {**dict.fromkeys((*SINGULAR, "svd"), svd), "rows": 24 * n, "spread": 64 * n}
        # a sample begins as all rows may; its fit ends before there are chunks
        starts["sample"] = svd
        halves = (6 * K * d + self.squares * K * K) * self.itemsize
        # rows that may become concepts are sorted and compared with each other
        worst = 4 * min(CANDIDATES * K, self.of_all or n) * d * self.itemsize if self.revives else 0
        return _OVERHEAD + 2 * WORKSPACE_BYTES + halves + max(worst, starts.get(self.start, 0))


@dataclass(frozen=True)
class Budget:
    """The memory that a call may use on a device.

    K: entries computed for each row. codes: where they are stored: 'memory', 'none', or else a
    file. requested: bytes by which the process may grow, or None for available(). chunk_rows: rows
    of a chunk at most. start, revives, stored, squares, beside, grams: as in Needs; with `beside`
    nothing is gathered in memory. sharing: processes that share the memory. chunked: whether rows
    in memory are processed in chunks, as if they were read in passes.
    """

    device: torch.device
    K: int
    codes: str = "memory"
    requested: int | None = None
    chunk_rows: int | None = None
    start: str = "random"
    revives: bool = False
    sharing: int = 1
    stored: float | None = None
    squares: int = SQUARES
    beside: int = 0
    grams: int = 0
    chunked: bool = False

    def holds(self, n: int, d: int, dtype: torch.dtype, copied: int, *, given: bool) -> bool:
        """Whether all of A (n, d) may be in memory, if each entry needs `copied` more bytes. given:
        whether A is in memory already, in any dtype."""
        if self.beside:
            return False
        # data in memory are used where they are, unless max_memory limits the copies
        if given and self.requested is None:
            return True
        # 'auto' may choose the start with the largest workspace
        start = "nndsvda" if self.start == "auto" else self.start
        return self.needs(n, d, dtype, start).resident(copied) <= self.limit()

    def rows(self, n: int, d: int, dtype: torch.dtype, of_all: int, most: int | None = None) -> int:
        """Rows of a chunk, `most` at most, of the n rows here, of of_all in all processes."""
        wanted = min((rows for rows in (self.chunk_rows, most) if rows), default=None)
        start = self.start
        if start == "auto":
            start = "nndsvda" if min(of_all, d) >= self.K else "random"
        needs, gpu = self.needs(max(1, n), d, dtype, start, of_all), self.device.type == "cuda"
        given = self.requested is not None
        return needs.chunk_rows(self.limit(), wanted, requested=given, gpu=gpu)

    def rows_made_dense(self, n: int, itemsize: int) -> int:
        """Rows of a chunk of n rows in memory, whose codes are stored in compressed rows."""
        most = max(LEAST_ROWS, _MADE_DENSE_BYTES // (self.K * itemsize))
        return max(1, min(n, self.chunk_rows or n, most))

    def sample_rows(self, d: int) -> int:
        """Rows of d features that are drawn for a fit before that of all rows, at most; the same
        for one max_memory."""
        # by what is available now, one seed would mean other rows the next time
        most = _SAMPLE_BYTES
        if self.requested is not None:
            most = min(most, int(_SAMPLE_SHARE * max(0, self.requested - _OVERHEAD)))
        return most // self._sample_row(d)

    def sample_beside(self, n: int, d: int, dtype: torch.dtype, of_all: int) -> int | None:
        """Rows of a sample of which a fit is within max_memory, if there is one, beside the codes
        of the n rows here, of of_all in all processes."""
        if self.requested is None:
            return None
        needs = self.needs(max(1, n), d, dtype, "sample", of_all)
        return max(0, self.requested - needs.streamed(0)) // self._sample_row(d)

    def _sample_row(self, d: int) -> int:
        """Bytes of a row that is drawn: itself, its codes, copies of these and a residual, or,
        before, copies of it."""
        return 4 * (3 * d + 3 * self.K)

    def fits_beside(self, A: Matrix) -> bool:
        """Whether codes, their copies and, unless A is sparse, a residual fit on the device beside
        A."""
        free, (n, d) = free_bytes(self.device), A.shape
        d = 0 if stored_share(A) is not None else d
        return free is None or n * (d + 3 * self.K) * compute_dtype(A).itemsize < 0.8 * free

    def needs(
        self, n: int, d: int, dtype: torch.dtype, start: str, of_all: int | None = None
    ) -> Needs:
        of_fit = self.codes, start, of_all, self.revives, self.stored, self.squares
        beside = self.beside, self.grams
        return Needs(n, d, self.K, dtype.itemsize, *of_fit, *beside)

    def limit(self) -> int:
        requested = available() // self.sharing if self.requested is None else self.requested
        free = free_bytes(self.device)
        return requested if free is None else min(requested, int(0.9 * free))


def available() -> int:
    """Bytes that a call may use without max_memory: a share of the memory available."""
    return int(_SHARE * _unused())


def _unused() -> int:
    """Bytes of memory that processes may take before the system moves pages to the disk."""
    meminfo = Path("/proc/meminfo")
    text = meminfo.read_text() if meminfo.exists() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if found is None:
        # unknown: assume that there is enough
        return 1 << 62
    free = int(found[1]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def refuse_too_large(
    sizes: dict[str, int], device: torch.device, advice: str, max_memory: int | None = None
) -> None:
    """Raise InvalidInput where what must be in memory at once does not fit: in max_memory bytes, or
    without swapping in the memory available. sizes: bytes by what takes them."""
    needed = sum(sizes.values())
    limit, named = max_memory, "are allowed by max_memory"
    if limit is None or needed <= limit:
        limit, named = _exceeded(needed, device), "are available"
    if limit is not None:
        most = (item for item in sizes.items() if item[1] >= needed / 100)
        parts = ", ".join(f"{name} {_in_gb(bytes_)}" for name, bytes_ in most)
        raise InvalidInput(
            f"at least {_in_gb(needed)} of memory are needed ({parts}), and {_in_gb(limit)} "
            f"{named}; {advice}"
        )


def fits(sizes: dict[str, int], device: torch.device) -> bool:
    """Whether these bytes, by what takes them, are available."""
    return _exceeded(sum(sizes.values()), device) is None


def _exceeded(needed: int, device: torch.device) -> int | None:
    """The bytes that are available, if they are fewer than needed."""
    if needed <= _SURELY_THERE:
        return None
    free = free_bytes(device)
    limit = _unused() if free is None else free
    return limit if limit < needed else None


def _in_gb(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.3g} GB"


def sizes_of_fit(problem: Problem, plan: Plan, rows: int, start: str) -> dict[str, int]:
    """Bytes that a fit with these rows in memory holds at once beside A, at least, by what takes
    them; for `refuse_too_large`."""
    d, K, itemsize = problem.d, problem.K, problem.itemsize
    factors = {"the codes": rows * K * itemsize, "the dictionary": K * d * itemsize}
    loop, begins = {}, {}
    if "normal" in plan.form:
        loop["the matrix K × K"] = K * K * itemsize
    if plan.dictionary == "residual":
        loop["the residual"] = rows * d * itemsize
    if plan.form == "normal" and plan.accelerates:
        loop["copies of the codes for acceleration"] = 2 * rows * K * itemsize
    p = min(problem.n, d)
    if start in (*SINGULAR, "svd") and K <= p <= 4 * (K + OVERSAMPLES):
        # a float64 matrix and its eigenvectors
        begins[f"the start {start}"] = 16 * p * p
    return factors | max(loop, begins, key=lambda sizes: sum(sizes.values()))


def return_memory() -> None:
    """Return freed memory to the system. glibc keeps blocks of up to 32 MB: without this a process
    grew by up to three times what it used at once."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """malloc_trim, which only glibc has."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
