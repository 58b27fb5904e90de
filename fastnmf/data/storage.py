"""Where computed rows, such as codes, are stored a chunk at a time: in memory, in a file that
appears whole or not at all, or nowhere."""

from __future__ import annotations

import functools
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .locks import WorkingFolder
from .paths import check_output, replacing, writing
from .sparse.stored import Compressed

# bytes of rows that are processed at a time without the data
_PART_BYTES = 16 << 20
# madvise of Linux 5.14: load pages of a map for reading or writing, or fail with the reason
_POPULATE_READ, _POPULATE_WRITE = 22, 23


@dataclass(frozen=True)
class InMemory:
    """Rows in the matrix Z (n, K), on the device that computes."""

    Z: Tensor
    place = "memory"

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.Z.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.Z.dtype

    def load(self, part: slice) -> Tensor:
        """A view of these rows."""
        return self.Z[part]

    def save(self, part: slice, Z: Tensor) -> None:
        """Store Z as these rows."""
        # Z may be a result of load, changed in place
        if Z.data_ptr() != self.Z[part].data_ptr():
            self.Z[part] = Z

    def blocks_(self) -> Iterator[Tensor]:
        """All rows in order, some at a time; what becomes of them in place is kept."""
        yield self.Z


@dataclass(frozen=True)
class OnDisk:
    """Rows (n, K) in a .npy file.

    Rows that are computed with are mapped and then released, as pages of a map count as memory of
    the process; all else is read and written by system calls. file: where the rows are now; place:
    the final name. offset: of the first row in the file, in bytes.
    """

    file: Path
    place: str
    shape: tuple[int, int]
    dtype: torch.dtype
    offset: int

    def load(self, part: slice) -> Tensor:
        """A copy of these rows, on the CPU."""
        count = (part.stop - part.start) * self.shape[1]
        numbers = np.fromfile(self.file, _number(self.dtype), count, offset=self._at(part.start))
        if len(numbers) < count:
            raise OSError(f"{self.file} has become shorter; leave it as it is")
        return torch.from_numpy(numbers.reshape(-1, self.shape[1]))

    def map_rows(self, part: slice, writes: bool = True) -> Tensor:
        """A view of these rows in the file, or a copy where the system cannot check beforehand that
        they can be read or written; pass all of it to `save` or `release`."""
        if self._rows is not None:
            try:
                self._advise(part, _POPULATE_WRITE if writes else _POPULATE_READ)
                return self._rows[part]
            except OSError:
                # such as a full disk: writing raises the error
                pass
        return self.load(part)

    def save(self, part: slice, Z: Tensor) -> None:
        """Store Z as these rows, and release them."""
        if not self._maps or Z.data_ptr() != self._rows[part].data_ptr():
            with writing(self.place), open(self.file, "r+b") as file:
                file.seek(self._at(part.start))
                Z.cpu().contiguous().numpy().tofile(file)
        self.release(part)

    def release(self, part: slice) -> None:
        """Unload the pages of these rows, a result of `map_rows` that is no longer used."""
        if self._maps:
            self._advise(part, mmap.MADV_DONTNEED)

    @functools.cached_property
    def _map(self) -> mmap.mmap:
        with open(self.file, "r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    @functools.cached_property
    def _rows(self) -> Tensor | None:
        """All rows in the map, or None where the system does not support it."""
        n, K = self.shape
        if sys.platform != "linux" or n * K == 0 or _address_space_is_limited():
            return None
        try:
            numbers = torch.frombuffer(self._map, dtype=self.dtype, count=n * K, offset=self.offset)
        except OSError:
            return None
        return numbers.view(n, K)

    @property
    def _maps(self) -> bool:
        """Whether the file has been mapped."""
        return self.__dict__.get("_rows") is not None

    def _advise(self, part: slice, advice: int) -> None:
        start, stop = self._at(part.start), self._at(part.stop)
        start -= start % mmap.PAGESIZE
        if stop > start:
            self._map.madvise(advice, start, stop - start)

    def _at(self, row: int) -> int:
        """Where in the file a row begins."""
        return self.offset + row * self.shape[1] * self.dtype.itemsize

    def blocks_(self) -> Iterator[Tensor]:
        """All rows in order, some at a time; what becomes of them in place is kept."""
        for part in _parts_of(self):
            Z = self.load(part)
            yield Z
            self.save(part, Z)


@dataclass(frozen=True)
class NotKept:
    """Codes that are computed again in every pass."""

    place = "not kept"


Kept = InMemory | OnDisk | Compressed
Storage = Kept | NotKept


@contextmanager
def written(
    path: Path, folder: WorkingFolder, shape: tuple[int, int], dtype: torch.dtype
) -> Iterator[OnDisk]:
    """Rows of this shape in a .npy file that replaces path at the end, and until then is in this
    folder; see `replacing`.

    Raises OSError at once if the disk has too little free space.
    """
    with replacing(path, folder) as part:
        with writing(path), open(part, "r+b") as file:
            header = {"descr": _number(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            file.truncate(offset + shape[0] * shape[1] * dtype.itemsize)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        yield OnDisk(part, str(path), shape, dtype, offset)


def output(path: str | os.PathLike[str], *, sparse: bool = False) -> Path:
    """The .npy file to write to, or where rows may be stored `sparse` the .npz file. Raises the
    errors of `check_output`."""
    return check_output(path, (".npy", ".npz") if sparse else (".npy",))


def mapped(path: Path) -> Tensor:
    """The matrix in a .npy file, read when it is used; changes stay in memory."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, number = np.lib.format.read_array_header_1_0(file)
    # a file without entries cannot be mapped
    empty = np.empty(shape, number) if 0 in shape else None
    return torch.from_numpy(np.load(path, mmap_mode="c") if empty is None else empty)


def row_blocks(n: int, rows: int) -> Iterator[slice]:
    """Slices of `rows` of n rows, in order; the last may have fewer."""
    return (slice(i, min(i + rows, n)) for i in range(0, n, rows))


def _address_space_is_limited() -> bool:
    """Whether the address space of the process is limited (`ulimit -v`), so that a map of a large
    file could use it up."""
    # does not exist on Windows
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _number(dtype: torch.dtype) -> np.dtype:
    """The same dtype of NumPy."""
    return np.dtype(str(dtype).removeprefix("torch."))


def stored(path: Path) -> OnDisk:
    """The rows in a .npy file made by `written`. Raises ValueError if it is damaged."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, number = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    dtype = torch.from_numpy(np.empty(0, number)).dtype
    found = OnDisk(path, str(path), shape, dtype, offset)
    if path.stat().st_size != offset + shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"{path} is cut off")
    return found


def copy_rows(source: Kept, target: Kept) -> None:
    """Copy all rows, some at a time."""
    for part in _parts_of(source):
        target.save(part, source.load(part))


def blocks_of(codes: Tensor | Kept) -> Iterator[Tensor]:
    """All rows in order, some at a time, for reading."""
    storage = InMemory(codes) if isinstance(codes, Tensor) else codes
    return map(storage.load, _parts_of(storage))


def loading(codes: Storage | None, save: bool) -> Callable[[slice], Tensor | None]:
    """A function that loads the codes of a chunk as they are stored; None if they are not kept, or
    must be made dense first."""
    if isinstance(codes, OnDisk):
        return functools.partial(codes.map_rows, writes=save)
    if codes is None or isinstance(codes, NotKept | Compressed):
        return lambda part: None
    return codes.load


def _parts_of(storage: Kept) -> Iterator[slice]:
    n, K = storage.shape
    return row_blocks(n, max(1, _PART_BYTES // (K * storage.dtype.itemsize)))


@dataclass(frozen=True)
class TilesRead:
    """The tiles of data that are read in passes: each iteration over it is one pass."""

    data: Any
    codes: Storage | None
    rows: int
    save: bool
    E: Tensor | None

    def __iter__(self) -> Iterator[tuple[Any, Tensor | None, Tensor | None]]:
        for part, X, Z in self.data.chunks(self.codes, self.save, self.rows):
            E = None if self.E is None else self.E[part]
            for i in range(0, len(X), self.rows):
                tile = slice(i, i + self.rows)
                yield tuple(None if M is None else M[tile] for M in (X, Z, E))
