"""Matrices whose rows are read some at a time, any number of times: files, memory maps, arrays."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backends.products import stored_share
from ..backends.sparse import SparseMatrix
from ..errors import InvalidInput
from ..numerics import Part, compute_dtype
from .arrays import as_matrix, two_dimensional
from .paths import LEAVE, Stamp, existing, guarded_reads, only_one, refusing_damage
from .sparse.files import open_h5ad, open_npz
from .sparse.rows import mean_share

# entries that are read from a shard at a time
READ_ENTRIES = 1 << 19
# the NumPy dtypes of a .safetensors file; bfloat16, which NumPy lacks, is read as its bits
_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1"}
_NUMBERS |= {f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)}


class StoredRows(NamedTuple):
    """Rows as they are stored; the first is row `first` of `place`."""

    values: Part | SparseMatrix
    place: str
    first: int


@dataclass(frozen=True)
class Shard:
    """Rows (n, d) of one file or array.

    name: what messages call them. dtype: float32 or float64, to compute in. read(start, stop):
    these rows as they are stored, a copy or a view. stored: the share of the entries that is stored
    of sparse rows, which are read as a SparseMatrix; else None.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    read: Callable[[int, int], Part | SparseMatrix]
    stored: float | None = None

    def part(self, start: int, stop: int) -> Shard:
        """Its rows from start to stop as a shard."""
        shape = stop - start, self.shape[1]
        return replace(self, shape=shape, read=lambda i, j: self.read(start + i, start + j))


class Shards:
    """The rows of shards, one below the other. Raises InvalidInput if their widths differ."""

    once = False

    def __init__(
        self,
        shards: tuple[Shard, ...],
        name: str,
        matrix: Part | SparseMatrix | None = None,
        paths: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """matrix: the rows, if they are in memory. paths: the files and folders they come from."""
        self.name, self._shards, self.matrix, self.paths = name, shards, matrix, paths
        # of the parts of the first pass
        self._checksums: list[int] = []
        for before, shard in itertools.pairwise(shards):
            if shard.shape[1] != before.shape[1]:
                raise InvalidInput(
                    f"{shard.name} has {shard.shape[1]} columns, the shards of {name} before it "
                    f"{before.shape[1]}; give all the same features"
                )
        self.shape = sum(shard.shape[0] for shard in shards), shards[0].shape[1]
        self.stored = mean_share([(shard.stored, shard.shape[0]) for shard in shards], name)
        self.dtype = torch.float32
        for shard in shards:
            self.dtype = torch.promote_types(self.dtype, shard.dtype)

    def part(self, number: int, of: int) -> Shards:
        """Part `number` of `of` equal parts."""
        n, parts, before = self.shape[0], [], 0
        first, stop = n * number // of, n * (number + 1) // of
        for shard in self._shards:
            rows = shard.shape[0]
            start, end = (min(max(at - before, 0), rows) for at in (first, stop))
            if end > start or not parts:
                parts.append(shard.part(start, end))
            before += rows
        return Shards(tuple(parts), self.name, paths=self.paths)

    def changed(self, change: Callable[[Part | SparseMatrix, int], Part | SparseMatrix]) -> Shards:
        """The same, of rows that are change(rows, number of the first) of those that are read."""
        before, found = 0, []
        for shard in self._shards:
            found.append(_changed(shard, change, before))
            before += shard.shape[0]
        return Shards(tuple(found), self.name, paths=self.paths)

    def samples(self) -> Iterator[Part]:
        """The first row of each shard as it is stored."""
        return (shard.read(0, min(1, shard.shape[0])) for shard in self._shards)

    def parts(self) -> Iterator[StoredRows]:
        """One pass over the rows, some at a time. Raises InvalidInput if they differ from those of
        the first pass, or a file has changed."""
        entries = self.shape[1] * (1 if self.stored is None else self.stored)
        step, number = max(1, int(READ_ENTRIES / max(1, entries))), 0
        for shard in self._shards:
            for first in range(0, shard.shape[0], step):
                stop = min(first + step, shard.shape[0])
                values = shard.read(first, stop)
                self._compare(number, values, f"rows {first} to {stop - 1} of {shard.name}")
                yield StoredRows(values, shard.name, first)
                number += 1

    def read(self, start: int, stop: int) -> Iterator[Part]:
        """The dense rows from start to stop, those of each shard by themselves."""
        before = 0
        for shard in self._shards:
            first, last = max(start - before, 0), min(stop - before, shard.shape[0])
            before += shard.shape[0]
            if first < last:
                yield shard.read(first, last)

    def take_(self, rows: Tensor, numbers: Sequence[int]) -> None:
        """rows (m, d) ← the dense rows of these numbers, in ascending order."""
        before, taken = 0, 0
        for shard in self._shards:
            after = before + shard.shape[0]
            while taken < len(numbers) and numbers[taken] < after:
                first = numbers[taken] - before
                rows[taken] = torch.as_tensor(shard.read(first, first + 1), device="cpu")[0]
                taken += 1
            before = after

    def _compare(self, number: int, values: Part | SparseMatrix, rows: str) -> None:
        checksum = _checksum(values)
        if number == len(self._checksums):
            self._checksums.append(checksum)
        elif self._checksums[number] != checksum:
            raise InvalidInput(f"{rows} are not what they were in the pass before; {LEAVE}")


def _changed(shard: Shard, change: Callable, before: int) -> Shard:
    return replace(shard, read=lambda i, j: change(shard.read(i, j), before + i))


def paths_of(A: Any) -> Sequence[str | os.PathLike[str]] | None:
    """The paths that A is, or a list of them contains; None for another input."""
    if isinstance(A, str | os.PathLike):
        return [A]
    listed = isinstance(A, list | tuple) and A and all(isinstance(x, str | os.PathLike) for x in A)
    return A if listed else None


def open_paths(
    paths: Sequence[str | os.PathLike[str]], *, empty: bool = False
) -> tuple[Shard, ...]:
    """The shards in these files, in this order; a folder stands for its .npy and .safetensors
    files, sorted by name.

    Only headers are read. empty: whether folders without files are allowed, as no rows. Raises
    FileNotFoundError, or InvalidInput for an empty folder and for a file that holds no matrix of
    real numbers.
    """
    files = [path for given in paths for path in _files(Path(given), empty)]
    if not files:
        return (in_memory(np.empty((0, 1), np.float32), str(paths[0])),)
    return tuple(map(_open, files))


def in_memory(matrix: Part | SparseMatrix, name: str) -> Shard:
    """The Shard of a result of arrays.as_matrix, or of a sparse matrix; pages of a memory map are
    released once they are read."""
    if isinstance(matrix, SparseMatrix):
        share, rows = stored_share(matrix), lambda i, j: matrix[i:j]
        return Shard(name, matrix.shape, matrix.dtype, rows, share)
    matrix = two_dimensional(matrix, name)
    read = _mapped(matrix) if isinstance(matrix, np.memmap) else lambda i, j: matrix[i:j]
    file = getattr(matrix, "filename", None) if isinstance(matrix, np.memmap) else None
    if file is not None and os.path.exists(file):
        read = guarded_reads(read, file, Stamp.of(file), f"{file}, of which {name} is a map,", True)
    return Shard(name, tuple(matrix.shape), compute_dtype(matrix), read)


def files_in(folder: Path) -> list[Path]:
    """The files that a folder stands for."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted((file for file in files if file.suffix in IN_FOLDERS), key=lambda file: file.name)


def _files(path: Path, empty: bool) -> Iterator[Path]:
    if not path.is_dir():
        yield existing(path, SUFFIXES)
        return
    shards = files_in(path)
    if not shards and not empty:
        raise InvalidInput(
            f"the folder {path} holds no shards; they end in {', '.join(IN_FOLDERS)}"
        )
    yield from shards


def _open(path: Path) -> Shard:
    # whatever the working directory is later
    place = path.absolute()
    with refusing_damage(path):
        stamp = Stamp.of(place)
        shard = READERS[path.suffix](place)
    return replace(shard, name=str(path), read=guarded_reads(shard.read, place, stamp, str(path)))


def _open_npy(path: Path) -> Shard:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        # version 3 differs from 2 in names of fields, which a matrix of numbers does not have
        header[3] = header[2]
        shape, _, dtype = header[version[0]](file)
        offset = file.tell()
    # a file without entries cannot be mapped
    filled = math.prod(shape) > 0
    array = np.lib.format.open_memmap(path, mode="r") if filled else np.empty(shape, dtype)
    shard = in_memory(as_matrix(array, str(path)), str(path))
    read = _raw(path, offset, array.shape[1], dtype) if array.flags.c_contiguous else shard.read
    return Shard(str(path), shard.shape, shard.dtype, read)


def _open_safetensors(path: Path) -> Shard:
    import safetensors

    # safe_open checks the header
    with safetensors.safe_open(path, framework="pt") as file:
        name = only_one(path, list(file.keys()))
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
    number, shape = entry["dtype"], tuple(entry["shape"])
    two_dimensional(np.broadcast_to(np.float32(0), shape), str(path))
    if number not in _NUMBERS:
        raise InvalidInput(f"{path} holds dtype {number}; it must hold a dense, real matrix (n, d)")
    read = _raw(path, 8 + length + entry["data_offsets"][0], shape[1], np.dtype(_NUMBERS[number]))
    dtype = torch.float64 if number == "F64" else torch.float32
    return Shard(str(path), shape, dtype, _bfloat16(read) if number == "BF16" else read)


# suffix → what opens such a file
READERS: dict[str, Callable[[Path], Shard]] = {
    ".npy": _open_npy,
    ".safetensors": _open_safetensors,
    ".npz": lambda path: Shard(str(path), *open_npz(path)),
    ".h5ad": lambda path: Shard(str(path), *open_h5ad(path)),
}
# all, and those of the files that a folder stands for
SUFFIXES, IN_FOLDERS = tuple(READERS), (".npy", ".safetensors")


def _bfloat16(read: Callable[[int, int], np.ndarray]) -> Callable[[int, int], Part]:
    return lambda start, stop: torch.from_numpy(read(start, stop)).view(torch.bfloat16)


def _raw(path: Path, offset: int, width: int, dtype: np.dtype) -> Callable[[int, int], np.ndarray]:
    """A function that reads rows by system calls: pages of a map would count as the memory of the
    process."""

    def read(start: int, stop: int) -> np.ndarray:
        count, before = (stop - start) * width, start * width * dtype.itemsize
        numbers = np.fromfile(path, dtype, count, offset=offset + before)
        if len(numbers) < count:
            raise InvalidInput(f"{path} has become shorter while it was read; {LEAVE}")
        return numbers.reshape(-1, width)

    return read


def _mapped(array: np.memmap) -> Callable[[int, int], np.ndarray]:
    place = array
    while place is not None and not isinstance(place, mmap.mmap):
        place = getattr(place, "base", None)
    # changes of a copy-on-write map exist only in memory
    releases = place is not None and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED")

    def read(start: int, stop: int) -> np.ndarray:
        numbers = np.array(array[start:stop], order="C")
        if releases:
            place.madvise(mmap.MADV_DONTNEED)
        return numbers

    return read


def _checksum(part: Part | SparseMatrix) -> int:
    """By which passes are compared: the sum of the words of 64 bits, which takes a third of the
    time of reading them from the page cache."""
    if isinstance(part, SparseMatrix):
        # entries of other rows or columns differ in their index
        return sum(map(_checksum, (part.crow, part.col, part.values)))
    if isinstance(part, Tensor):
        part = part.cpu().contiguous().view(torch.uint8).numpy()
    elif part.itemsize > 8:
        # whose padding is anything
        part = part.astype(np.float64)
    bytes_ = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    words = len(bytes_) // 8 * 8
    rest = int(bytes_[words:].sum(dtype=np.uint64))
    return rest + int(np.add.reduce(bytes_[:words].view(np.uint64)))
