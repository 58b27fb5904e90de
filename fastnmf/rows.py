"""What A may be (tensor, array, memory map, loader, batches) → one checked matrix, and its chunks.
Files are read by `files.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .errors import InvalidInput

# copied and searched at once: small beside A, large beside the cost of a call
PIECE_ENTRIES = 16 * 2**20
# what is kept as it is stored, where, and the bytes that are widened at once: some ten times what a
# launch takes, and little beside a device's memory
NARROW = (torch.float16, torch.bfloat16)
NARROW_ON = ("cuda", "xpu")
WIDENED_BYTES = 1 << 27

Part = Tensor | np.ndarray


@dataclass(frozen=True)
class Rows:
    """A (n, d), finite and ≥ 0, on one device, every row contiguous: float32, float64, or one of
    NARROW, which is widened where it is read."""

    A: Tensor

    @property
    def n(self) -> int:
        return self.A.shape[0]

    @property
    def d(self) -> int:
        return self.A.shape[1]

    @property
    def device(self) -> torch.device:
        return self.A.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float32 or float64."""
        return compute_dtype(self.A)

    def chunks(self, chunk_rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Go through A in order, as (rows, A[rows]) of at most chunk_rows rows; None: all at once.

        Every chunk is a view, or widened. Raises InvalidInput, at the call, when chunk_rows < 1.
        """
        step = self.n if chunk_rows is None else chunk_rows
        if step < 1:
            raise InvalidInput(f"chunk_rows is {chunk_rows}; it must be at least 1, or None")
        pieces = (slice(i, min(i + step, self.n)) for i in range(0, self.n, step))
        return ((piece, widened(self.A[piece])) for piece in pieces)


def read_rows(
    A: Any,
    *,
    device: str | torch.device,
    name: str = "A",
    features: int | None = None,
    columns: str = "features",
    dtype: torch.dtype | None = None,
    signed: bool = False,
    narrow: bool = False,
) -> Rows:
    """Bring A onto device as float32 (float64 stays float64), and check that NMF can use it.

    A: a tensor, an array, anything with `__array__`, a DataLoader, a dataset or an iterable of
    batches; a batch is a matrix, or a tuple whose first item is one (outside a DataLoader a vector
    is one row). A tensor or writable array of the right dtype, on the device, with contiguous rows
    is not copied; all else is copied piece by piece: in memory are its source, it and one piece.
    features: the width A must have, called `columns` in messages. dtype: can only widen. signed:
    negative entries may pass. narrow: on a GPU 16-bit numbers may stay as they are. Raises
    InvalidInput for a shape or a value that cannot be used, with its place (rows count on over
    batches), TypeError for no dense, real matrix. Synchronises once.
    """
    parts = _parts(A, name)
    check_shape(_shape(parts), name, features, columns)
    for part in parts:
        dtype = torch.promote_types(dtype or torch.float32, compute_dtype(part))
    numpy_like = isinstance(parts[0], np.ndarray)
    if narrow:
        dtype = kept_dtype(parts, dtype, device)
    shared = in_place(parts[0], dtype, device) if len(parts) == 1 else None
    rows = Rows(gather(parts, dtype, device) if shared is None else shared)
    check_values(rows, name, numpy_like, signed)
    return rows


def as_numpy32(x: Any, name: str = "A", columns: int | None = None) -> np.ndarray:
    """Give x (tensor, array, DataLoader, nested list) as a float32 array of two dimensions.

    A float32 array is returned itself. Raises InvalidInput when it is not 2-D or has another
    number of columns than asked for. Values are not checked.
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
    """A as matrices of one width, to be put below each other; not converted or moved yet."""
    matrix = as_matrix(A, name)
    if matrix is not None:
        return deque([two_dimensional(matrix, name)])
    parts = deque()
    for part in batches_in(A, name):
        # a generator may fill one buffer again and again
        if not isinstance(A, list | tuple | DataLoader):
            part = part.clone() if isinstance(part, Tensor) else part.copy()
        parts.append(part)
    return parts


def batches_in(A: Any, name: str, *, empty: bool = False) -> Iterator[Part]:
    """The batches that A gives, as matrices; raises InvalidInput for none unless `empty`, and for
    another width than that of the first."""
    width = None
    for number, batch in enumerate(batches_of(A, name)):
        part = _as_batch(batch, f"batch {number} of {name}", not isinstance(A, DataLoader))
        if width is not None and part.shape[1] != width:
            widths = f"{part.shape[1]} columns, the batches before it {width}"
            raise InvalidInput(f"batch {number} of {name} has {widths}; give all the same features")
        width = part.shape[1]
        yield part
    if width is None and not empty:
        why = "it is empty, or a generator that has been read before (give a new one, or a list)"
        raise InvalidInput(f"{name} gave no batches: {why}")


def batches_of(A: Any, name: str) -> Iterable[Any]:
    if isinstance(A, Iterable) and not isinstance(A, str | bytes | Mapping):
        return A
    if hasattr(A, "__getitem__") and hasattr(A, "__len__") and not isinstance(A, Iterable):
        return (A[i] for i in range(len(A)))
    given = "None" if A is None else f"a {type(A).__name__}"
    allowed = "a tensor, an array, a DataLoader, batches, or what fastnmf.files.read_matrix reads"
    raise TypeError(f"{name} is {given}; give {allowed}")


def _as_batch(batch: Any, name: str, vector_is_row: bool) -> Part:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    part = as_matrix(first, name)
    if part is None:
        allowed = "a tensor, an array, or a tuple that begins with one (nested list: torch.tensor)"
        raise TypeError(f"{name} is a {type(batch).__name__}; a batch must be {allowed}")
    return two_dimensional(part[None] if vector_is_row and part.ndim == 1 else part, name)


def as_matrix(A: Any, name: str) -> Part | None:
    """A as a tensor or an array of real numbers, not copied; None when it is neither."""
    if isinstance(A, Tensor):
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
    if not hasattr(A, "__array__"):
        return None
    array = A if isinstance(A, np.ndarray) else np.asarray(A)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {array.dtype}; it must hold real numbers")
    return array


def two_dimensional(A: Part, name: str) -> Part:
    if A.ndim != 2:
        hint = f"with features last, {name}.reshape(-1, {A.shape[-1] if A.ndim else 1})"
        hint = f"a single row is {name}[None]" if A.ndim == 1 else hint
        raise InvalidInput(f"{name} has shape {tuple(A.shape)}; it must be (n, d): {hint}")
    return A


def check_shape(shape: tuple[int, int], name: str, features: int | None, columns: str) -> None:
    n, d = shape
    if n == 0 or d == 0:
        empty = "rows" if n == 0 else columns
        raise InvalidInput(f"{name} has no {empty}, its shape is ({n}, {d}); give at least one")
    if features is not None and d != features:
        hint = f"{name}.T fits" if n == features else f"give {name} with {features} columns"
        raise InvalidInput(f"{name} has {d} {columns}, the dictionary has {features}; {hint}")


def compute_dtype(part: Part) -> torch.dtype:
    real = part.is_floating_point() if isinstance(part, Tensor) else part.dtype.kind == "f"
    return torch.float64 if real and part.dtype.itemsize >= 8 else torch.float32


def kept_dtype(
    parts: Iterable[Part], dtype: torch.dtype, device: str | torch.device
) -> torch.dtype:
    """What parts that are computed with in `dtype` are held in there: that, or on a GPU what all of
    them are, if it is one of NARROW."""
    stored = {tensor_of(part[:1]).dtype for part in parts}
    keeps = dtype == torch.float32 and torch.device(device).type in NARROW_ON
    return stored.pop() if keeps and len(stored) == 1 and stored <= {*NARROW} else dtype


def widened(X: Tensor) -> Tensor:
    """X in what is computed in: itself, or a copy of 16-bit numbers."""
    return X.to(compute_dtype(X))


def wide_pieces(X: Tensor) -> Iterable[Tensor]:
    """X itself, or pieces of its rows, widened, where it holds 16-bit numbers."""
    if X.dtype not in NARROW:
        return [X]
    return map(widened, X.split(max(1, WIDENED_BYTES // (4 * max(1, X.shape[1])))))


def product(X: Tensor, B: Tensor) -> Tensor:
    """X B, of X as wide_pieces gives it."""
    made = [piece @ B for piece in wide_pieces(X)]
    return made[0] if len(made) == 1 else torch.cat(made)


def in_place(part: Part, dtype: torch.dtype, device: str | torch.device) -> Tensor | None:
    """The part itself as a tensor when it can be used where it lies, else None."""
    if not isinstance(part, Tensor):
        known = part.dtype in (np.float32, np.float64)
        # a map is read once: its file may be slow, or change
        if isinstance(part, np.memmap) or not (known and _viewable(part)):
            return None
        part = torch.from_numpy(part)
    # 'cuda' names no index, so compare with where a new tensor would lie
    here = part.device == torch.empty(0, device=device).device
    return part if here and part.dtype == dtype and part.stride(1) == 1 else None


def _piece_rows(d: int) -> int:
    return max(1, PIECE_ENTRIES // max(1, d))


def _shape(parts: deque[Part]) -> tuple[int, int]:
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


def gather(parts: deque[Part], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Copy the parts into one new matrix piece by piece, letting go of each once it is read."""
    start, matrix = 0, torch.empty(_shape(parts), dtype=dtype, device=device)
    step = _piece_rows(matrix.shape[1])
    while parts:
        part = parts.popleft()
        for i in range(0, part.shape[0], step):
            piece = tensor_of(part[i : i + step])
            matrix[start : start + len(piece)] = piece
            start += len(piece)
    return matrix


def tensor_of(part: Part) -> Tensor:
    """The part as a tensor; an array that torch cannot view is copied."""
    if isinstance(part, Tensor):
        return part
    # NumPy's long double is none of torch's types
    known = part.itemsize <= 8
    if known and part.dtype.isnative and part.flags.c_contiguous and _viewable(part):
        return torch.from_numpy(part)
    number = part.dtype.newbyteorder("=") if known else np.float64
    return torch.from_numpy(np.array(part, dtype=number, order="C"))


def _viewable(array: np.ndarray) -> bool:
    """Whether torch can view these strides: a single row may be contiguous with any at all."""
    whole = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return whole and array.flags.writeable


def check_values(rows: Rows, name: str, numpy_like: bool, signed: bool) -> None:
    # by piece, as aminmax copies what is not contiguous; both are nan when any entry is
    pieces = rows.chunks(_piece_rows(rows.d))
    bounds = torch.stack([torch.stack(torch.aminmax(X)) for _, X in pieces])
    low, high = torch.stack(torch.aminmax(bounds)).tolist()
    if high < float("inf") and (low >= 0 or (signed and low > -float("inf"))):
        return
    library, clip = ("np", "clip") if numpy_like else ("torch", "clamp")
    needed = f"finite numbers ({library}.nan_to_num({name})?)"
    found = _found(rows, "nan or inf", lambda X: ~X.isfinite())
    if not found:
        needed = f"{name} ≥ 0 (clip with {name}.{clip}(min=0)?)"
        found = _found(rows, "negative", lambda X: X < 0)
    raise InvalidInput(f"{name} has {found}; NMF needs {needed}")


def _found(rows: Rows, kind: str, search: Callable[[Tensor], Tensor]) -> str:
    """How many entries the search finds, where the first is and what it is; '' if none."""
    count, first = 0, ""
    for piece, X in rows.chunks(_piece_rows(rows.d)):
        found = search(X)
        if not first and found.any():
            i, j = divmod(int(found.flatten().byte().argmax()), rows.d)
            number = f"{float(X[i, j]):g}".replace("-", "−")
            first = f"row {piece.start + i}, column {j}: {number}"
        count += int(found.sum())
    entries = f"{kind} entry" if count == 1 else f"{kind} entries"
    return f"{count} {entries}, the first at {first}" if count else ""
