"""Matrices that other programs write: text tables (.csv, .tsv) and .parquet. Libraries that are
optional are imported when such a file is read."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidInput, warn
from ..planning.memory import available, bytes_of, size_of
from .paths import UNREADABLE

Header = bool | str


class Wanted(NamedTuple):
    """How a file is to be read; see fastnmf.files.read_matrix."""

    header: Header
    max_memory: int | str | None
    sparse: bool = False


def read_text(path: Path, header: Header) -> np.ndarray:
    """The numbers of a .csv or .tsv file; header: whether its first line holds names, or 'auto'."""
    # a byte that is no UTF-8 in a name is no fault, and in a number is found there
    return read_lines(lambda: open(path, encoding="utf-8-sig", errors="replace"), str(path), header)


def read_stream(content: bytes, header: Header) -> np.ndarray:
    """The matrix that was piped in: the bytes of a .npy file, or of a text table."""
    name = "the standard input"
    if content.startswith(b"\x93NUMPY"):
        try:
            return np.load(io.BytesIO(content), allow_pickle=False)
        except UNREADABLE as error:
            raise InvalidInput(f"{name} cannot be read as .npy: {error}") from error
    if b"\0" in content[:1024]:
        raise InvalidInput(f"{name} is neither a .npy file nor a text table; give one of them")

    def opened() -> io.TextIOBase:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", errors="replace")

    return read_lines(opened, name, header)


def read_lines(opened: Callable[[], io.TextIOBase], name: str, header: Header) -> np.ndarray:
    """The numbers of a text table. opened: opens it, once to read it and again to find a fault."""
    try:
        return _read_lines(opened, name, header)
    except csv.Error as error:
        # such as a cell of any length
        raise InvalidInput(f"{name} cannot be read as a table: {error}") from error


def _read_lines(opened: Callable[[], io.TextIOBase], name: str, header: Header) -> np.ndarray:
    with opened() as file:
        head = [line for _, line in itertools.islice(_filled(file), 2)]
    if not head:
        raise InvalidInput(f"{name} is empty; it must hold a matrix, a row in each line")
    delimiter = next((mark for mark in "\t;," if mark in head[0]), None)
    first, *rest = (_cells(line, delimiter) for line in head)
    names = _names(name, first, rest[0] if rest else None, header)
    labelled = names is not None and bool(rest) and _labelled(name, names, len(rest[0]))
    width = len(rest[0]) if names is not None and rest else len(first)
    if names is not None and not rest:
        raise InvalidInput(f"{name} has a header and no rows; give at least one (header=False?)")
    table = _Table(name, delimiter, width, names, labelled)
    columns = range(1, width) if labelled else None
    options = {"delimiter": delimiter, "comments": None, "quotechar": '"', "ndmin": 2}
    try:
        with opened() as file:
            lines = (line for _, line in table.rows(file))
            numbers = np.loadtxt(lines, np.float64, usecols=columns, **options)
    except (ValueError, IndexError) as error:
        with opened() as file:
            table.check(file)
        raise InvalidInput(f"{name} cannot be read as a table: {error}") from error
    if labelled:
        # of some columns alone NumPy accepts longer rows
        with opened() as file:
            table.check(file)
    return numbers


class _Table:
    """How a text table is divided, and where it is at fault."""

    def __init__(
        self,
        name: str,
        delimiter: str | None,
        width: int,
        names: list[str] | None,
        labelled: bool,
    ) -> None:
        self._name, self._delimiter, self._width = name, delimiter, width
        self._names, self._labelled = names, labelled

    def rows(self, file: Iterable[str]) -> Iterator[tuple[int, str]]:
        """The numbers and texts of the lines that hold a row."""
        lines = _filled(file)
        if self._names is not None:
            next(lines)
        return lines

    def check(self, file: Iterable[str]) -> None:
        """Raise InvalidInput for the first row of another width, or cell that is no number."""
        for number, line in self.rows(file):
            cells = _cells(line, self._delimiter)
            if len(cells) != self._width:
                raise InvalidInput(
                    f"{self._name}, line {number}: {len(cells)} cells, the first row has "
                    f"{self._width}; give every row as many"
                )
            for column in range(int(self._labelled), self._width):
                if not _is_number(cells[column]):
                    place = f"{self._name}, line {number}, column {column + 1}"
                    raise InvalidInput(f"{place}{self._called(column)}: {_fault(cells[column])}")

    def _called(self, column: int) -> str:
        """The name of a column in brackets; where labels have no name, R writes one name fewer."""
        names = self._names or []
        place = column - (self._width - len(names))
        return f" ({names[place]!r})" if names and 0 <= place < len(names) else ""


def _fault(cell: str) -> str:
    """What is wrong with a cell, and what to do."""
    given = repr(cell) if cell else "an empty cell"
    if "," in cell:
        return f"{given} is no number; write decimals with a point"
    return f"{given} is no number; fill it in, or leave that row or column out"


def _filled(file: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The number and the text of each line that is neither empty nor a comment."""
    for number, line in enumerate(file, 1):
        text = line.strip(" \r\n")
        if text.strip() and not text.startswith("#"):
            yield number, text


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    (cells,) = csv.reader([line], delimiter=delimiter)
    return [cell.strip() for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    # which Python allows in a number and NumPy does not
    return "_" not in cell


def _names(
    name: str, first: list[str], second: list[str] | None, header: Header
) -> list[str] | None:
    """The names in the first line, or None if it is a row."""
    if header != "auto":
        return first if header else None
    words = [cell for cell in first if not _is_number(cell)]
    if words:
        # a line with decimal commas, or the only one with a number in it, is a row at fault
        if any(_is_number(word.replace(",", ".")) for word in words):
            return None
        if len(words) < len(first) and second is None:
            return None
        if len(words) < len(first) and first[0]:
            warn(
                f"the first line of {name} is taken as a header, since {words[0]!r} is no number; "
                "header=False reads it as a row"
            )
        return first
    counted = first == [str(i) for i in range(len(first))] and len(first) > 2
    if counted and second is not None:
        warn(
            f"the first line of {name} is 0, 1, 2 …: it is taken as a header, not as a row; "
            "header=False reads it as numbers"
        )
        return first
    return None


def _labelled(name: str, names: list[str], width: int) -> bool:
    """Whether the first column holds labels of rows: it has no name, as pandas and R write it."""
    labelled = len(names) == width - 1 or (len(names) == width and not names[0] and width > 1)
    if labelled:
        warn(f"the first column of {name} has no name: it is left out, as labels of the rows")
    return labelled


def read_parquet(path: Path, max_memory: int | str | None) -> np.ndarray:
    """The columns of numbers in a .parquet file, without the index that pandas writes."""
    parquet = imported("pyarrow.parquet", f"{path} is a .parquet file")
    types = imported("pyarrow.types", f"{path} is a .parquet file")
    with refusing(path, imported("pyarrow", str(path)).ArrowException):
        with parquet.ParquetFile(path) as file:
            schema, n = file.schema_arrow, file.metadata.num_rows
            described = (schema.pandas_metadata or {}).get("index_columns", [])
            fields = [field for field in schema if field.name not in described]
            for field in fields:
                kinds = types.is_floating, types.is_integer, types.is_boolean
                if not any(kind(field.type) for kind in kinds):
                    raise InvalidInput(
                        f"{path}: column {field.name!r} holds {field.type}; every column must hold "
                        "numbers: leave it out"
                    )
            dtype = np.result_type(np.float32, *(field.type.to_pandas_dtype() for field in fields))
            require_memory(path, (n, len(fields)), dtype, max_memory)
            matrix, first = np.empty((n, len(fields)), dtype), 0
            for batch in file.iter_batches(columns=[field.name for field in fields]):
                for j, column in enumerate(batch.columns):
                    if column.null_count:
                        raise InvalidInput(
                            f"{path}: column {fields[j].name!r} has missing values, the first in "
                            f"row {first + column.is_null().to_pylist().index(True)}; fill them in"
                        )
                    part = slice(first, first + len(batch))
                    matrix[part, j] = column.to_numpy(zero_copy_only=False)
                first += len(batch)
    return matrix


def require_memory(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, max_memory: int | str | None
) -> None:
    """Raise InvalidInput if a matrix does not fit in memory as a dense one."""
    size, allowed = int(np.prod(shape, dtype=object)) * dtype.itemsize, bytes_of(max_memory)
    limit = available() if allowed is None else allowed
    if size > limit:
        sizes = " × ".join(f"{size:,}" for size in shape)
        raise InvalidInput(
            f"{path} holds {sizes} numbers, which take {size_of(size)} as a dense matrix; "
            f"{size_of(limit)} may be used. Give fewer rows or columns, or write .npy files of "
            "some of the rows each: these are read in passes"
        )


@contextmanager
def refusing(path: Path, kind: type[Exception]) -> Iterator[None]:
    """Turn what a library raises for a damaged file into InvalidInput."""
    try:
        yield
    except (kind, OSError) as error:
        # an error of the system has a number
        if getattr(error, "errno", None) is not None or isinstance(error, InvalidInput):
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(f"{path} cannot be read as {path.suffix}: {why}") from error


def imported(module: str, what: str) -> Any:
    """This module; `what` needs it, says the error where it is not installed."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what}, for which {package} is needed: pip install {package}"
        ) from error
