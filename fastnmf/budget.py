"""Bytes of memory that a process may grow by: what was allowed, what is free, and the rows in hand
that fit."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import InvalidInput
from .exemplars import CANDIDATES
from .svd import OVERSAMPLES, WORKSPACE_BYTES

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}
# what products, threads and the allocator take by themselves; 40 to 60 MB were measured
_OVERHEAD = 64 << 20
# of what the system says is available, for others live there too
_SHARE = 0.7
# rows in hand: enough for products to be quick, and bytes beyond which they gain nothing, here and
# on a GPU
LEAST_ROWS = 512
_MOST_BYTES = 128 << 20
_MOST_ON_GPU = 4 << 30


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


def size(bytes_: int) -> str:
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
            where = f", of which the codes take {size(kept)} (codes='Z.npy' writes them to a file)"
            sizes = f"{self.n:,} rows, {self.d:,} features and {self.K:,} concepts"
            raise InvalidInput(
                f"{'max_memory' if asked else 'free memory'} of {size(budget)} is too little for "
                f"{sizes}: at least {size(self.streamed(fewest))} are needed"
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


def give_back() -> None:
    """Give the system what was freed: glibc keeps blocks of up to 32 MB, and a process had grown by
    up to three times what was in use at once."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """malloc_trim, which glibc alone has."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


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
