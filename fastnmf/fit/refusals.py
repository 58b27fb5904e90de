"""What fits and encodings refuse once their data and files are known, and the derivatives that they
do not have; options by themselves are checked in options.py."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.data import DataLoader

from ..data.dataset import Data
from ..data.shards import Shards, files_in, paths_of
from ..data.sparse.arrays import is_sparse
from ..data.sparse.codes import are_sparse
from ..data.sparse.rows import stored_parts
from ..errors import InvalidInput
from ..frames import refuse_transformed
from ..init.start import SAMPLE
from ..numerics import Part, square_is_normal
from ..planning.memory import refuse_too_large
from ..planning.plan import Plan
from ..solvers.base import Solver
from .checkpoint import Checkpoint
from .options import Options

# what to do where a fit does not fit in memory
FEWER = (
    "give fewer concepts, accelerate=False, or where the codes take most of it max_memory and "
    "codes='Z.npy', by which the data are read in passes and the codes go to a file"
)


def refuse_too_many(options: Options, data: Data) -> None:
    """Refuse concepts whose codes and dictionary do not fit in memory, before a file is made for
    them; what else a fit needs is refused once its plan is known."""
    K, itemsize = options.nb_concepts, data.dtype.itemsize
    # few of the codes in compressed rows are not zero
    kept = data.n_here if data.resident and not are_sparse(options.destination()) else 0
    sizes = {"the codes": kept * K * itemsize, "the dictionary": K * data.d * itemsize}
    refuse_too_large(sizes, data.device, FEWER)


def refuse_overwriting(
    inputs: tuple[Any, ...], out: Path | str | None, checkpoint: Checkpoint | None = None
) -> None:
    """Raise InvalidInput where a file that is to be written is one that is read, by whatever name,
    or is mapped; or belongs to the checkpoint."""
    files = [out] if isinstance(out, Path) else []
    if checkpoint is not None:
        if files and checkpoint.has(out):
            raise InvalidInput(
                f"{out} is a name of codes of the checkpoint {checkpoint.path}; give another"
            )
        files.append(checkpoint.path)
    for read in origins(*inputs) if files else ():
        for file in files:
            # a new file in a folder would be one of its shards the next time
            if _same(read, file) or read.resolve() == file.parent:
                raise InvalidInput(f"{file} is to be written, but {read} is read; give another")
        if checkpoint is not None and checkpoint.has(read.resolve()):
            raise InvalidInput(
                f"{read} is read, and has a name of codes of the checkpoint {checkpoint.path}; "
                "give another"
            )


def _same(read: Path, written: Path) -> bool:
    """Whether both are one file, by links too."""
    try:
        return os.path.samefile(read, written)
    except FileNotFoundError:
        return read.resolve() == written


def refuse_start_alone(options: Options, iterations: int) -> None:
    """Refuse to return a start, whose rows use all concepts, where a row has a most. iterations:
    those that were done before."""
    if options.top_k is not None and options.iterations == iterations == 0:
        raise InvalidInput(
            f"max_iter=0 returns the start, whose rows may use all concepts, and top_k="
            f"{options.top_k} is the most; give at least one iteration, or load_dictionary(D) and "
            "encode(A)"
        )


def refuse_unsuited(options: Options, data: Data) -> None:
    """Refuse acceleration with penalties, and whatever needs the codes of all rows where there are
    none."""
    if options.constraint.of_rows and not data.takes_rows:
        instead = (
            "batches that are read in passes do not give; give an array, or the path of a .npy "
            "file, which may be larger than memory"
        )
        if data.density is not None:
            instead = "a sparse A does not give; give a dense A (A.toarray(), A.to_dense())"
        raise InvalidInput(
            f"ConvexNMF mixes rows of A, and takes them in any order, which {instead}"
        )
    compares = options.n_init > 1 and options.start_name != SAMPLE
    if compares and not data.in_memory_here:
        raise InvalidInput(
            f"n_init={options.n_init} compares fits of rows in memory, with codes in memory, and "
            "the data are read in passes here; give n_init=1, init='sample', or more max_memory "
            "and codes='memory'"
        )
    if options.penalties and options.accelerate is True:
        raise InvalidInput(
            "accelerate=True does not go with alpha_Z or alpha_D, nor with unit_norm, which "
            "target_l0 sets: it scales concepts, which they count; give accelerate='auto' or False"
        )
    if options.accelerate is True and are_sparse(options.destination()):
        raise InvalidInput(
            f"accelerate=True keeps two dense copies of the codes in memory, and codes="
            f"{options.codes!r} none; give accelerate='auto' or False, or codes='memory'"
        )
    if options.accelerate is True and not data.resident:
        raise InvalidInput(
            "accelerate=True keeps two copies of the codes in memory, and the data are read in "
            "passes here; give accelerate='auto' or False, or more max_memory"
        )
    keeps_zeros = options.top_k is None and options.solvers[options.solver].keeps_zeros
    if are_sparse(options.destination()) and keeps_zeros:
        raise InvalidInput(
            f"solver={options.solver!r} keeps every code above zero, and codes={options.codes!r} "
            "stores those that are not zero; give another solver, or codes='memory' or 'Z.npy'"
        )
    if options.revive and options.codes is None:
        raise InvalidInput(
            "revive=True gives concepts other codes, and codes=None keeps none; give revive=False, "
            "or codes='memory' or a file"
        )


def refuse_residual(plan: Plan, data: Data, solver: Solver) -> None:
    """Refuse to continue with a sparse A what began in residual form."""
    # rows that are made dense in every pass may have a residual, but not all of them at once
    codes = data.stored is not None and solver.learns_by is None
    forms = plan.form if codes else plan.dictionary
    if (data.stored is not None or data.made_dense) and "residual" in forms:
        raise InvalidInput(
            "the fit in the checkpoint is in residual form, which a sparse A does not have; resume "
            "it with the dense A (A.toarray(), A.to_dense())"
        )


def refuse_extremes(data: Data, options: Options) -> None:
    """Refuse data whose squares, or their sum, overflow or vanish: then every error is zero; and
    penalties that overflow."""
    total = float(data.squared_norm)
    beside = data.weights is not None
    refuse_extreme("A", data.largest, data.like, 0.0 if beside else total)
    if beside and data.largest and not square_is_normal(total**0.5, data.dtype):
        computed = str(data.dtype).removeprefix("torch.")
        raise ArithmeticError(
            f"the sum of the squares of A times their weights is {total:.3g}, out of the range of "
            f"{computed}; scale the weights (weights / weights.max()) or A"
        )
    penalties, most = options.penalties, torch.finfo(data.dtype).max ** 0.5
    for name, times, what in (("alpha_Z", data.d, "features"), ("alpha_D", data.n, "rows")):
        alpha = getattr(penalties, name)
        if alpha * times > most:
            computed = str(data.dtype).removeprefix("torch.")
            raise InvalidInput(
                f"{name}={alpha:g} times {times} {what} is too large for {computed}; give at most "
                f"{most / times:.3g}"
            )


def refuse_extreme(name: str, largest: float, like: Tensor, squared_norm: float = 0.0) -> None:
    """Refuse a matrix of this largest entry and ‖·‖²; like: it, or a tensor of its dtype."""
    square, most = largest * largest, torch.finfo(like.dtype).max
    usable = square_is_normal(largest, like.dtype) and squared_norm <= most
    if largest and not usable:
        F, computed = name[-1], str(like.dtype).removeprefix("torch.")
        norm = f" and ‖{F}‖² {squared_norm:.3g}" if square <= most < squared_norm else ""
        raise ArithmeticError(
            f"the largest entry of {name} is {largest:.3g}{norm}, too "
            f"{'small' if square < 1 else 'large'} to be squared in {computed}; scale {F} "
            f"({F} / abs({F}).max())" + (" or pass it as float64" if computed == "float32" else "")
        )


def origins(*inputs: Any) -> Iterator[Path]:
    """The files and folders that these inputs come from: paths, shards, arrays and tensors that are
    maps of files, lists of such batches, and loaders of a TensorDataset.

    Elsewhere than on Linux only NumPy's own maps are recognised.
    """
    maps = _Maps()
    for A in inputs:
        yield from _origins(A, maps)


def _origins(A: Any, maps: _Maps) -> Iterator[Path]:
    if isinstance(A, Shards):
        yield from _origins(A.matrix, maps)
        A = A.paths
    # weights that were read
    A = getattr(A, "source", A)
    if (paths := paths_of(A)) is not None:
        for path in map(Path, paths):
            yield path
            if path.is_dir():
                yield from files_in(path)
    elif isinstance(A, DataLoader):
        yield from _origins(getattr(A.dataset, "tensors", A.dataset), maps)
    elif isinstance(A, list | tuple):
        for part in A:
            if isinstance(part, Tensor | np.ndarray) or is_sparse(part):
                yield from _origins(part, maps)
    elif is_sparse(A):
        for part in stored_parts(A):
            yield from _origins(part, maps)
    elif isinstance(A, Tensor | np.ndarray) and (file := maps.file_of(A)) is not None:
        yield file


class _Maps:
    """The files that are mapped into the memory of this process, by address."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int, str]] | None = None

    def file_of(self, part: Part) -> Path | None:
        """The file that the entries are in, or None."""
        if isinstance(part, Tensor):
            if part.device.type != "cpu" or not part.numel():
                return None
            address = part.data_ptr()
        else:
            if (name := _filename(part)) is not None:
                return Path(name)
            address = part.__array_interface__["data"][0]
        if self._regions is None:
            self._regions = list(_regions())
        number = bisect.bisect(self._regions, (address, float("inf"))) - 1
        if number < 0 or address >= self._regions[number][1]:
            return None
        return Path(self._regions[number][2])


def _regions() -> Iterator[tuple[int, int, str]]:
    """(First address, end, file) of each map of a file, in order."""
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)
        # a file that was removed or replaced cannot be overwritten any more
        if len(fields) == 6 and fields[5].startswith(b"/") and not line.endswith(b" (deleted)"):
            start, end = (int(address, 16) for address in fields[0].split(b"-"))
            # a new line in a name is written as \012
            yield start, end, os.fsdecode(fields[5].replace(rb"\012", b"\n"))


def _filename(array: np.ndarray) -> str | None:
    """The name of the file that NumPy has mapped, for a view of it too."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.filename is not None:
            return os.fspath(base.filename)
        base = base.base
    return None


def refuse_derivatives(where: str, **tensors: Any) -> None:
    """Raise InvalidInput for a derivative that would be dropped without a word: with respect to one
    of these tensors, or of forward mode. where: the function that has none."""
    for name, X in tensors.items():
        if not isinstance(X, Tensor):
            continue
        refuse_tangent(where, name, X)
        if X.requires_grad and torch.is_grad_enabled():
            raise InvalidInput(
                f"{name} requires a gradient, and {where} has none with respect to it; give "
                f"{name}.detach() (NMF.encode has one with respect to A)"
            )


def refuse_tangent(where: str, name: str, X: Any) -> None:
    """Raise InvalidInput for a tensor that carries a tangent of forward-mode differentiation."""
    refuse_transformed(X, name)
    if isinstance(X, Tensor) and forward_ad.unpack_dual(X).tangent is not None:
        raise InvalidInput(
            f"{name} carries a tangent of forward-mode differentiation, which {where} does not "
            "follow; take the gradient by backward() or torch.autograd.grad, or give "
            f"torch.autograd.forward_ad.unpack_dual({name}).primal"
        )
