"""Supported inputs in memory: tensors, arrays, loaders and iterables of batches become one checked
matrix. Files are opened in shards.py, inputs of any kind in sources.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import InvalidInput
from ..frames import REAL, array_of, refuse_transformed
from ..numerics import NARROW, NARROW_ON, Part, compute_dtype, widened

# entries that are copied or checked at a time: few beside A, many beside the cost of a call
PART_ENTRIES = 16 * 2**20


@dataclass(frozen=True)
class Expected:
    """What a matrix must satisfy, and what messages call it.

    name: of the argument. features: the number of columns, if it is fixed; messages call them
    `columns`. dtype: the matrix is promoted to it at least. signed: whether negative entries are
    allowed. empty: whether no rows are allowed. narrow: whether 16-bit numbers stay as they are on
    a GPU.
    """

    name: str = "A"
    features: int | None = None
    columns: str = "features"
    dtype: torch.dtype | None = None
    signed: bool = False
    empty: bool = False
    narrow: bool = False

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise InvalidInput for a shape that cannot be used."""
        n, d = shape
        if d and self.features is not None and d != self.features:
            fits = f"{self.name}.T fits" if n == self.features else ""
            hint = fits or f"give {self.name} with {self.features} columns"
            raise InvalidInput(
                f"{self.name} has {d} {self.columns}, the dictionary has {self.features}; {hint}"
            )
        if n == 0 or d == 0:
            missing = "rows" if n == 0 else self.columns
            raise InvalidInput(
                f"{self.name} has no {missing}, its shape is ({n}, {d}); give at least one"
            )


NON_NEGATIVE = Expected()


def read_matrix(A: Any, device: str | torch.device, expected: Expected = NON_NEGATIVE) -> Tensor:
    """Return A (n, d), checked, on the device: float32, or float64 if any part of it is.

    A: a tensor, an array, an input of frames.array_of, a DataLoader, a dataset or an iterable of
    batches. A batch is a matrix, or a tuple whose first item is one; outside a DataLoader a vector
    is one row. A tensor or writable array of the right dtype, on the device, with contiguous rows
    is not copied; all else is copied some rows at a time. Raises InvalidInput for a shape or a
    value that cannot be used, with its place (rows are counted over all batches), and TypeError for
    what is no dense, real matrix. Synchronises once.
    """
    return checked_matrix(A, device, expected)[0]


def checked_matrix(A: Any, device: str | torch.device, expected: Expected) -> tuple[Tensor, float]:
    """What read_matrix returns, and the largest absolute value of its entries."""
    parts, dtype = _parts(A, expected.name), expected.dtype
    expected.check_shape(_shape(parts))
    for part in parts:
        dtype = torch.promote_types(dtype or torch.float32, compute_dtype(part))
    if expected.narrow:
        dtype = kept_dtype(parts, dtype, device)
    kind = "torch" if isinstance(parts[0], Tensor) else "numpy"
    shared = in_place(parts[0], dtype, device) if len(parts) == 1 else None
    matrix = gather(parts, dtype, device) if shared is None else shared
    return matrix, check_values(matrix, ValueCheck(expected, kind))


def as_numpy32(x: Any, name: str = "A", columns: int | None = None) -> np.ndarray:
    """Return x (tensor, array, DataLoader, nested list) as a float32 array of two dimensions.

    A float32 array is returned itself. Raises InvalidInput when it is not 2-D or has another
    number of columns than `columns`. Values are not checked.
    """
    if isinstance(x, DataLoader):
        x = gather(_parts(x, name), torch.float32, "cpu")
    matrix = as_matrix(x, name)
    if isinstance(matrix, Tensor):
        matrix = matrix.to("cpu", torch.float32).numpy()
    array = two_dimensional(np.asanyarray(x if matrix is None else matrix, np.float32), name)
    if columns is not None and array.shape[1] != columns:
        raise InvalidInput(f"{name} has {array.shape[1]} columns; it must have {columns}")
    return array


def _parts(A: Any, name: str) -> deque[Part]:
    """A as matrices of one width, one below the other; not converted or moved yet."""
    matrix = as_matrix(A, name)
    if matrix is not None:
        return deque([two_dimensional(matrix, name)])
    parts = deque()
    for part in batches_in(A, name):
        # a generator may reuse one buffer for all batches
        if not isinstance(A, list | tuple | DataLoader):
            part = part.clone() if isinstance(part, Tensor) else part.copy()
        parts.append(part)
    return parts


def batches_in(
    A: Any, name: str, *, empty: bool = False, as_batch: Callable[..., Any] | None = None
) -> Iterator[Part]:
    """The batches of A as matrices, by as_batch, or dense ones. Raises InvalidInput for none unless
    `empty`, and for a batch of another width than the first."""
    width, as_batch = None, as_batch or dense_batch
    for number, batch in enumerate(batches_of(A, name)):
        part = as_batch(batch, f"batch {number} of {name}", not isinstance(A, DataLoader))
        if width is not None and part.shape[1] != width:
            widths = f"{part.shape[1]} columns, the batches before it {width}"
            raise InvalidInput(f"batch {number} of {name} has {widths}; give all the same features")
        width = part.shape[1]
        yield part
    if width is None and not empty:
        why = "it is empty, or a generator that has been read before (give a new one, or a list)"
        raise InvalidInput(f"{name} gave no batches: {why}")


def batches_of(A: Any, name: str) -> Iterable[Any]:
    """A as an iterable of batches, not read yet. Raises TypeError for what is none."""
    if isinstance(A, Iterable) and not isinstance(A, str | bytes | Mapping):
        return A
    if hasattr(A, "__getitem__") and hasattr(A, "__len__") and not isinstance(A, Iterable):
        return (A[i] for i in range(len(A)))
    given = "None" if A is None else f"a {type(A).__name__}"
    allowed = "a tensor, an array, a DataLoader, batches, or what fastnmf.files.read_matrix reads"
    raise TypeError(f"{name} is {given}; give {allowed}")


def dense_batch(batch: Any, name: str, vector_is_row: bool) -> Part:
    """A batch, or the first item of a tuple, as a matrix. Raises TypeError for what is none."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    part = as_matrix(first, name)
    if part is None:
        allowed = "a tensor, an array, or a tuple that begins with one"
        raise TypeError(f"{name} is a {type(batch).__name__}; a batch must be {allowed}")
    return two_dimensional(part[None] if vector_is_row and part.ndim == 1 else part, name)


def as_matrix(A: Any, name: str) -> Part | None:
    """A as a tensor or an array of real numbers, not copied; None when it is neither."""
    if isinstance(A, Tensor):
        refuse_transformed(A, name)
        if A.layout != torch.strided:
            raise TypeError(f"{name} is sparse ({A.layout}); give {name}.to_dense()")
        if A.is_complex() or A.is_quantized:
            raise TypeError(f"{name} has dtype {A.dtype}; it must hold real numbers")
        if A.is_meta:
            raise InvalidInput(f"{name} is on the meta device and holds no values; give real ones")
        return A.detach().resolve_neg()
    if hasattr(A, "tocsr") and hasattr(A, "toarray"):
        raise TypeError(f"{name} is sparse ({type(A).__name__}); give {name}.toarray()")
    if isinstance(A, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; give {name}.filled(0), or leave these rows out")
    array = array_of(A, name)
    if array is None or isinstance(array, Tensor):
        return None if array is None else as_matrix(array, name)
    if array.dtype.kind not in REAL:
        raise TypeError(f"{name} has dtype {array.dtype}; it must hold real numbers")
    return array


def two_dimensional(A: Part, name: str) -> Part:
    """A itself. Raises InvalidInput unless it has two dimensions."""
    if A.ndim != 2:
        # a file has no methods
        given = name if name.isidentifier() else "A"
        hint = f"with features last, {given}.reshape(-1, {A.shape[-1] if A.ndim else 1})"
        if A.ndim == 1:
            hint = f"a single row is {given}[None]"
        elif A.ndim == 4:
            axes = "permute(0, 2, 3, 1)" if isinstance(A, Tensor) else "transpose(0, 2, 3, 1)"
            hint += f"; of images (n, C, H, W), {given}.{axes}.reshape(-1, {A.shape[1]})"
        raise InvalidInput(f"{name} has shape {tuple(A.shape)}; it must be (n, d): {hint}")
    return A


def kept_dtype(
    parts: Iterable[Part], dtype: torch.dtype, device: str | torch.device
) -> torch.dtype:
    """The dtype in which parts that are computed with in `dtype` are stored on the device: the
    same, or on a GPU the 16-bit dtype that all of them have."""
    stored = {tensor_of(part[:1]).dtype for part in parts}
    keeps = dtype == torch.float32 and torch.device(device).type in NARROW_ON
    return stored.pop() if keeps and len(stored) == 1 and stored <= {*NARROW} else dtype


def in_place(part: Part, dtype: torch.dtype, device: str | torch.device) -> Tensor | None:
    """The part itself as a tensor if its dtype, device and strides fit, else None."""
    if not isinstance(part, Tensor):
        known = part.dtype in (np.float32, np.float64)
        # a map is read once: its file may be slow, or change
        if isinstance(part, np.memmap) or not (known and _viewable(part)):
            return None
        part = torch.from_numpy(part)
    # 'cuda' names no index, so compare with where a new tensor would lie
    here = part.device == torch.empty(0, device=device).device
    return part if here and part.dtype == dtype and part.stride(1) == 1 else None


def _part_rows(d: int) -> int:
    return max(1, PART_ENTRIES // max(1, d))


def _shape(parts: deque[Part]) -> tuple[int, int]:
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


def gather(parts: deque[Part], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Copy the parts into one new matrix, some rows at a time; each is removed from `parts` once it
    is copied."""
    start, matrix = 0, torch.empty(_shape(parts), dtype=dtype, device=device)
    step = _part_rows(matrix.shape[1])
    while parts:
        part = parts.popleft()
        for i in range(0, part.shape[0], step):
            rows = tensor_of(part[i : i + step])
            matrix[start : start + len(rows)] = rows
            start += len(rows)
    return matrix


def tensor_of(part: Part) -> Tensor:
    """The part as a tensor; an array that torch cannot view is copied."""
    if isinstance(part, Tensor):
        return part
    # torch has no long double
    known = part.itemsize <= 8
    if known and part.dtype.isnative and part.flags.c_contiguous and _viewable(part):
        return torch.from_numpy(part)
    number = part.dtype.newbyteorder("=") if known else np.float64
    return torch.from_numpy(np.array(part, dtype=number, order="C"))


def _viewable(array: np.ndarray) -> bool:
    """Whether torch can view these strides: NumPy calls a single row contiguous with any."""
    whole = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return whole and array.flags.writeable


# what makes entries finite, and what makes them non-negative
_REPAIRS = {
    "torch": ("torch.nan_to_num({A})", "{A}.clamp(min=0)"),
    "numpy": ("np.nan_to_num({A})", "{A}.clip(min=0)"),
    "torch.sparse": ("torch.nan_to_num({A}.values())", "{A}.values().clamp_(min=0)"),
    "scipy.sparse": ("np.nan_to_num({A}.data)", "{A}.maximum(0)"),
}


# of use whichever function A was given to
_MISSING = "what is missing: weights=… of fit, encode and nnls, 0 there, ignore it"


class ValueCheck:
    """The entries of a matrix that cannot be used: the first of them, and how many are of its kind.
    Arrays and files are checked by it a part at a time."""

    def __init__(self, expected: Expected, kind: str = "torch") -> None:
        """kind: of the matrix, a key of _REPAIRS."""
        self.name, self._signed, self._repairs = expected.name, expected.signed, _REPAIRS[kind]
        self._kind, self._first, self._count = "", "", 0

    def usable(self, low: float, high: float) -> bool:
        """Whether entries from low to high can be used; both are NaN if any entry is."""
        return high < float("inf") and (low >= 0 or (self._signed and low > -float("inf")))

    def largest(self, X: Tensor, place: str, first: int) -> float:
        """The largest absolute value of X, the rows of `place` from `first` on. Counts what cannot
        be used."""
        low, high = torch.stack(torch.aminmax(X)).tolist()
        if not self.usable(low, high):
            self._add(X, place, first)
        return max(high, -low)

    def _add(self, X: Tensor, place: str, first: int) -> None:
        inside = "" if place == self.name else f"in {place} "

        def where(entry: int) -> str:
            i, j = divmod(entry, X.shape[1])
            return f"{inside}at row {first + i}, column {j}"

        self.count(X.flatten(), where)

    def count(self, values: Tensor, where: Callable[[int], str]) -> None:
        """Count those of `values` (n,) that cannot be used. where(i): the place of values[i]."""
        if not self._kind:
            self._kind = "negative" if values.isfinite().all() else "nan or inf"
        bad = values < 0 if self._kind == "negative" else ~values.isfinite()
        if not self._first and bad.any():
            entry = int(bad.byte().argmax())
            number = f"{float(values[entry]):g}".replace("-", "−")
            self._first = f"{where(entry)}: {number}"
        self._count += int(bad.sum())

    def report(self) -> None:
        """Raise InvalidInput if any entry cannot be used."""
        if not self._count:
            return
        finite, clipped = (repair.format(A=self.name) for repair in self._repairs)
        missing = f"; {_MISSING}" * (self.name == "A")
        needs = "it must hold" if self._signed else "NMF needs"
        needed = f"{needs} finite numbers ({finite}?){missing}"
        if self._kind == "negative":
            other = ", or fastnmf.SemiNMF, which takes any signs" if self.name == "A" else ""
            needed = f"NMF needs {self.name} ≥ 0 (clip with {clipped}?){other}"
        entries = f"{self._kind} entry" if self._count == 1 else f"{self._kind} entries"
        found = f"{self._count} {entries}, the first {self._first}"
        raise InvalidInput(f"{self.name} has {found}; {needed}")


def check_values(matrix: Tensor, check: ValueCheck) -> float:
    """The largest absolute value of a matrix in memory. Raises InvalidInput if it has entries that
    cannot be used. Synchronises once if it has none."""
    # a part at a time: aminmax copies what is not contiguous
    parts = matrix.split(_part_rows(matrix.shape[1]))
    bounds = torch.stack([torch.stack(torch.aminmax(widened(X))) for X in parts])
    low, high = torch.stack(torch.aminmax(bounds)).tolist()
    if check.usable(low, high):
        return max(high, -low)
    first = 0
    # entries that are not finite are reported before negative ones
    order = [X for X in parts if not X.isfinite().all()] or parts
    for X in parts:
        if any(X is one for one in order):
            check.largest(widened(X), check.name, first)
        first += len(X)
    check.report()
    return max(high, -low)
