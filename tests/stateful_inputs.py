"""Inputs of the stateful test: matrices, what holds them, options, and what is refused."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import Tuning
from fastnmf.backends.registry import select
from fastnmf.engine.state import STOPPING_RULES
from fastnmf.solvers.registry import SOLVERS

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "uint8", "int64")
}
KINDS = (
    "uniform",
    "low rank",
    "sparse",
    "whole numbers",
    "alike",
    "offset",
    "one large row",
    "small",
    "large",
    "zeros",
)


@dataclass(frozen=True)
class Rows:
    """A non-negative matrix (n, d) of a kind, drawn by a seed."""

    n: int
    d: int
    kind: str = "uniform"
    dtype: str = "float32"
    seed: int = 0

    def tensor(self) -> Tensor:
        rng = np.random.default_rng(self.seed)
        A = rng.random((self.n, self.d))
        if self.kind == "low rank":
            A = rng.random((self.n, 2)) @ rng.random((2, self.d))
        elif self.kind == "sparse":
            A *= rng.random(A.shape) < 0.3
            A[:: max(2, self.n // 3)] = 0
        elif self.kind == "whole numbers":
            A = rng.integers(0, 4, A.shape).astype(float)
        elif self.kind == "alike":
            A[:] = A[:1]
        elif self.kind == "offset":
            A += 50
        elif self.kind == "one large row":
            A[self.n // 2] *= 1e3
        elif self.kind == "zeros":
            A[:] = 0
        wide = self.dtype in ("float32", "float64")
        if self.kind in ("small", "large"):
            A *= (1e-12 if wide else 1e-3) if self.kind == "small" else (1e12 if wide else 1e2)
        if self.dtype in ("uint8", "int64"):
            A = np.clip(np.round(A if A.max() > 2 else 9 * A), 0, 255)
        return torch.from_numpy(A).to(DTYPES[self.dtype])


def rows(d: int, most: int = 20, **fixed: Any) -> st.SearchStrategy[Rows]:
    drawn = {
        "n": st.integers(1, most),
        "kind": st.sampled_from(KINDS),
        "dtype": st.sampled_from(("float32", *DTYPES)),
        "seed": st.integers(0, 20),
    }
    return st.builds(
        Rows, **(drawn | {"d": st.just(d)} | {k: st.just(v) for k, v in fixed.items()})
    )


class Again:
    """Batches that can be read in every pass."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


def _as_array(A: Tensor) -> np.ndarray | Tensor:
    return A if A.dtype == torch.bfloat16 else A.numpy()


def _saved(A: Tensor, path: Path) -> Path:
    if A.dtype == torch.bfloat16:
        path = path.with_suffix(".safetensors")
    if path.suffix == ".npy":
        np.save(path, A.numpy())
    else:
        safetensors.torch.save_file({"A": A.contiguous()}, path)
    return path


def _folder(A: Tensor, path: Path) -> Path:
    folder = path.with_suffix("")
    folder.mkdir()
    for number, part in enumerate(_halves(A)):
        _saved(part, folder / f"{number}.npy")
    return folder


def _halves(A: Tensor) -> list[Tensor]:
    return list(A.split(-(-len(A) // 2)))


def _map(A: Tensor, path: Path) -> Any:
    return A if A.dtype == torch.bfloat16 else np.load(_saved(A, path), mmap_mode="r")


# name → what fit is given for a matrix; files are made at the path
CONTAINERS = {
    "tensor": lambda A, path: A.clone(),
    "column-major tensor": lambda A, path: A.T.contiguous().T,
    "view of a tensor": lambda A, path: torch.stack((A, A), 2)[..., 0],
    "array": lambda A, path: _as_array(A.clone()),
    "read-only array": lambda A, path: _read_only(_as_array(A.clone())),
    "batches": lambda A, path: _halves(A),
    "generator": lambda A, path: iter(_halves(A)),
    "iterable": lambda A, path: Again(_halves(A)),
    "loader": lambda A, path: DataLoader(
        TensorDataset(A), batch_size=7, generator=torch.Generator()
    ),
    "map": _map,
    "path": lambda A, path: str(_saved(A, path)),
    "safetensors": lambda A, path: _saved(A, path.with_suffix(".safetensors")),
    "folder": _folder,
    "paths": lambda A, path: sorted(_folder(A, path).iterdir()),
}
IN_MEMORY = tuple(CONTAINERS)[:9]


def _loader(A: Tensor) -> DataLoader:
    # without a generator of its own it draws a number of torch's
    return DataLoader(TensorDataset(A), batch_size=7, generator=torch.Generator())


def _read_only(array: np.ndarray | Tensor) -> np.ndarray | Tensor:
    if isinstance(array, np.ndarray):
        array.setflags(write=False)
    return array


def options(solver: str | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a model that go together, most of them left out."""
    named = st.sampled_from(tuple(SOLVERS)) if solver is None else st.just(solver)
    return named.flatmap(_of_solver).map(_that_go_together)


def _of_solver(solver: str) -> st.SearchStrategy[dict[str, Any]]:
    backends = [name for name in ("auto", "torch", "cpp") if _usable(solver, name)]
    forms = st.sampled_from((None, *SOLVERS[solver].forms))
    values = {name: st.sampled_from(values) for name, values in OPTIONAL.items()}
    values["backend"] = st.sampled_from(backends)
    values["tuning"] = st.builds(
        Tuning,
        form=forms,
        block=st.sampled_from((None, 1, 3)),
        chunk_rows=st.sampled_from((None, 5)),
        checkpoint_seconds=st.sampled_from((0, None)),
    )
    required = {"solver": st.just(solver), "max_iter": st.integers(0, 40)}
    required["tol"] = st.sampled_from((1e-4, 0, 1e-2, 1e-7))
    return st.fixed_dictionaries(required, optional=values)


# those that also may be set on a model
OPTIONAL: dict[str, tuple[Any, ...]] = {
    "seed": (0, 1, 2**40),
    "init": ("auto", "random", "nndsvda", "rows", "spread"),
    "alpha_Z": (0.0, 1e-3, 0.1, 100.0),
    "alpha_D": ("same", 0.0, 1e-2),
    "l1_ratio": (0.0, 0.5, 1.0),
    "unit_norm": (False, True),
    "accelerate": ("auto", True, False),
    "revive": (False, True),
    "stop": tuple(STOPPING_RULES),
    "max_memory": (None, "6kB", "20kB"),
}


@functools.cache
def _usable(solver: str, backend: str) -> bool:
    try:
        select(SOLVERS[solver].operations + SOLVERS[solver].fused, torch.device("cpu"), backend)
    except RuntimeError:
        return False
    return True


def _that_go_together(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("unit_norm"):
        options.pop("alpha_D", None)
    return options


def _with(value: float):
    def spoiled(A: Tensor) -> Tensor:
        A = A.double()
        A[-1, -1] = value
        return A

    return spoiled


# name → what fit, partial_fit and encode must refuse, from a matrix that they take
REFUSED = {
    "NaN": _with(float("nan")),
    "infinity": _with(float("inf")),
    "negative": _with(-1.0),
    "no rows": lambda A: A[:0],
    "no columns": lambda A: A[:, :0],
    "complex": lambda A: A.to(torch.complex64),
    "sparse": lambda A: A.float().to_sparse(),
    "meta": lambda A: A.to("meta"),
    "a vector": lambda A: A[0],
    "a number": lambda A: A[0, 0],
    "text": lambda A: np.full(tuple(A.shape), "1"),
    "objects": lambda A: np.full(tuple(A.shape), None),
    "None": lambda A: None,
    "a word": lambda A: "nowhere.npy",
    "another suffix": lambda A: "A.txt",
    "no batches": lambda A: [],
    "batches of two widths": lambda A: [A, torch.cat((A, A), 1)],
    "batches of words": lambda A: ["a", "b"],
    "a dict": lambda A: {"A": A},
    "too large": lambda A: torch.full(tuple(A.shape), 1e30),
    "too small": lambda A: torch.full(tuple(A.shape), 1e-30),
    "masked": lambda A: np.ma.masked_less(np.ones(tuple(A.shape)), 0),
    "4-D": lambda A: A[None, None],
}
