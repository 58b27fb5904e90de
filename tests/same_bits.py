"""The exact bits of many results, recorded by one version of fastnmf and compared with another's.

    python same_bits.py record FILE.json [-k TEXT]
    python same_bits.py compare FILE.json [-k TEXT] [--slowest N]
    python same_bits.py make-old-files FOLDER
    python same_bits.py old-files FOLDER [-k TEXT]

record runs every case and writes the hashes of all that it gives; compare runs them again and
prints what differs, and by how much. make-old-files saves models, and checkpoints of fits that were
left, with what comes of them; old-files reads and resumes these. -k: only the cases whose name
contains TEXT. The exit status is 1 where anything differs.

Bits are those of one machine, one build of torch and one number of threads: record and compare on
the same. All calls go through `Api`, so that both sides may have different public surfaces.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# before torch is loaded: threads that wait by turning take the time of other jobs, and of this one
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, TensorDataset

import fastnmf

THREADS = 2
SOLVERS = "hals", "mu", "pgd", "anls"
# parts of a case with this prefix are of the summary of a fit: one that is no longer reported is
# noted, and is no difference. The prefix, and names of cases, are those of files recorded earlier
SUMMARY = "account."
# fields of the summary → their name in such files, where it is another
FORMER_NAMES = {"tile_rows": "piece_rows"}
# fields of the summary that are compared; not the time, nor paths
FIELDS = (
    *("dtype", "dictionary_solver", "backend", "form", "block", "piece_rows", "tile_rows"),
    "accelerated",
    *("inner_half_steps", "init", "iterations", "relative_error", "relative_change", "objective"),
    *("mean_l0", "hoyer", "r_squared", "dead_concepts", "near_duplicates", "revived", "precision"),
    *("drift", "chunk_rows", "passes", "processes", "reduced_bytes", "l0_most", "l0_histogram"),
    *("energy", "rows", "batches", "unused_concepts", "half_life"),
)
SAMPLES = 24


# ---- both public surfaces


class Api:
    """A model of either version, from one flat dict of options as version 0.1 spells them.

    Parameters
    ----------
    **options
        What the constructor of 0.1 takes. What later versions take elsewhere is given there.

    Attributes
    ----------
    nmf : fastnmf.NMF
    """

    NEW = hasattr(fastnmf, "Tuning")
    OF_TUNING = "form", "block", "chunk_rows", "precision", "cuda_graph", "checkpoint_seconds"
    OF_FIT = "callback", "max_seconds", "checkpoint"
    OF_ONLINE = ("half_life",)

    def __init__(self, **options: Any) -> None:
        self._of_fit: dict[str, Any] = {}
        self._of_online: dict[str, Any] = {}
        if self.NEW:
            tuning = _taken(options, self.OF_TUNING)
            self._of_fit = _taken(options, self.OF_FIT)
            self._of_online = _taken(options, self.OF_ONLINE)
            # what leaves the choice to the plan
            tuning = {name: None if value == "auto" else value for name, value in tuning.items()}
            if tuning:
                options["tuning"] = fastnmf.Tuning(**tuning)
        self.nmf = fastnmf.NMF(**options)

    @classmethod
    def of(cls, nmf: Any) -> Api:
        """A model that exists already."""
        api = cls.__new__(cls)
        api.nmf, api._of_fit, api._of_online = nmf, {}, {}
        return api

    @classmethod
    def load(cls, path: Path) -> Api:
        """The model in a .safetensors file."""
        return cls.of(fastnmf.NMF.load(path) if cls.NEW else _of_files("load_model")(path))

    def save(self, path: Path) -> None:
        """Write the model to a .safetensors file."""
        self.nmf.save(path) if self.NEW else _of_files("save_model")(path, self.nmf)

    def fit(self, A: Any, max_iter: int | None = None, **how: Any) -> tuple[Tensor | None, Tensor]:
        """Z, D; how: codes, resume."""
        return self.nmf.fit(A, max_iter, **how, **self._of_fit)

    def partial_fit(self, A: Any) -> Api:
        """Learn from a batch; returns itself."""
        self.nmf.partial_fit(A, **self._of_online)
        return self

    def encode(self, A: Any, **how: Any) -> Tensor:
        """Z; how: max_iter, tol, Z0, codes."""
        return self.nmf.encode(A, **how)

    def decode(self, Z: Any, **how: Any) -> Tensor:
        """Z D; how: out."""
        return self.nmf.decode(Z, **how)

    def history(self) -> tuple[Any, ...]:
        """The history of the fit."""
        return self.nmf.fit_info_.history

    def summary(self) -> dict[str, Any]:
        """The summary of the fit, or of online learning, by name."""
        info = self.nmf.fit_info_ or self.nmf.online_info_
        return {name: getattr(info, name) for name in FIELDS if hasattr(info, name)}


def _taken(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options.pop(name) for name in names if name in options}


def _of_files(name: str) -> Callable:
    """A function that reads or writes models, wherever it is."""
    for place in ("fastnmf", "fastnmf.files"):
        if hasattr(module := importlib.import_module(place), name):
            return getattr(module, name)
    raise AttributeError(f"{name} is neither in fastnmf nor in fastnmf.files")


def command_line(*arguments: Any) -> None:
    """Run the command `fastnmf` in this process."""
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="fastnmf")
    status = entry.load()([str(argument) for argument in arguments])
    if status:
        raise RuntimeError(f"fastnmf {arguments[0]} ended with {status}")


# ---- data


def numbers(n: int, d: int, rank: int = 8, seed: int = 0, dtype: str = "float32") -> Tensor:
    """Rows (n, d) that few of `rank` concepts explain, and noise.

    They are made of small whole numbers, so that every machine has the same.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 8, (n, rank)) * (rng.random((n, rank)) < 0.4)
    concepts = rng.integers(0, 16, (rank, d)) * (rng.random((rank, d)) < 0.5)
    A = (codes @ concepts + rng.integers(0, 12, (n, d))) / 64
    return torch.from_numpy(A).to(getattr(torch, dtype))


def uniform(n: int, d: int, seed: int = 0, dtype: str = "float32") -> Tensor:
    """Entries from 0 to 1, for starts and codes."""
    return torch.from_numpy(np.random.default_rng(seed).random((n, d))).to(getattr(torch, dtype))


SIZES = {
    "small": (203, 19, 6),
    "middle": (2000, 96, 40),
    "wide": (90, 700, 8),
    "long": (4099, 48, 12),
    # more concepts than features
    "many": (400, 30, 20),
    "huge": (700, 660, 60),
}


@functools.cache
def data(size: str, dtype: str = "float32") -> Tensor:
    """Rows of one of the sizes; not to be changed."""
    return numbers(*SIZES[size], dtype=dtype)


def start(A: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """A given start (Z0, D0)."""
    dtype = "float64" if A.dtype == torch.float64 else "float32"
    return uniform(len(A), K, 1, dtype), uniform(K, A.shape[1], 2, dtype)


def idle_start(A: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """A start of which concepts are dead, and alike."""
    Z, D = (F.clone() for F in start(A, K))
    third = K // 3
    Z[:, :third] = 0
    D[:third] = 0
    D[third : third + K // 6] = D[-1] * 1.001
    return Z, D


def budget(A: Tensor, K: int, rows: int, *, codes: str = "memory") -> int:
    """Bytes of max_memory with which up to `rows` rows of A are in memory, and not all are.

    What a process takes by itself is counted, so this follows the cost model of 0.1.
    """
    (n, d), itemsize = A.shape, max(4, A.element_size())
    p = min(n, d)
    svd = 6 * d * (K + 10) * itemsize + 32 * p * p
    fixed = (80 << 20) + 6 * K * (d + K) * itemsize + svd
    a_row = (4 * d + {"memory": 4, "none": 12}.get(codes, 7) * K) * itemsize
    return fixed + rows * a_row + (n * K * itemsize if codes == "memory" else 0)


# ---- parts of a result


def tensors_of(**parts: Any) -> dict[str, Any]:
    """The parts that are not None, detached."""
    return {
        name: part.detach() if isinstance(part, Tensor) else part
        for name, part in parts.items()
        if part is not None
    }


def summary_of(api: Api) -> dict[str, Any]:
    """The parts of the summary of a fit or of online learning."""
    return {
        f"{SUMMARY}{FORMER_NAMES.get(name, name)}": value for name, value in api.summary().items()
    }


def fit_parts(api: Api, Z: Tensor | None, D: Tensor) -> dict[str, Any]:
    """All that a fit gives."""
    history = api.history()
    names = "iteration", "relative_change", "relative_error", "relative_objective"
    found = {
        f"history.{name}": np.array([getattr(each, name) for each in history], dtype=np.float64)
        for name in names
    }
    stopped_by = api.nmf.fit_info_.stopped_by
    return {**tensors_of(Z=Z, D=D), **found, "stopped_by": stopped_by, **summary_of(api)}


def digest(part: Any) -> list[Any]:
    """[sha256 of the bits, numbers that show how far two of them differ]."""
    if isinstance(part, Tensor):
        bits = part.detach().cpu().contiguous()
        head = f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)} "
        values = bits.double().flatten().numpy()
        content = bits.flatten().view(torch.uint8).numpy().tobytes() if bits.numel() else b""
    elif isinstance(part, np.ndarray):
        head = f"{part.dtype} {part.shape} "
        values = np.asarray(part, np.float64).ravel()
        content = np.ascontiguousarray(part).tobytes()
    else:
        head, content = f"{type(part).__name__} ", repr(part).encode()
        values = np.array([part] if isinstance(part, float | int) else [], np.float64)
    hashed = hashlib.sha256(head.encode() + content).hexdigest()
    if len(values) <= 1:
        return [hashed, [repr(float(v)) for v in values], str(part)[:40]]
    places = np.linspace(0, len(values) - 1, min(SAMPLES, len(values))).astype(int)
    sampled = [np.linalg.norm(values), *values[places]]
    return [hashed, [repr(float(v)) for v in sampled], head.strip()]


# ---- the cases


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {}


def case(name: str) -> Callable:
    """Make a function of an empty folder, that returns parts by name, a case."""

    def added(function: Callable) -> Callable:
        if name in CASES:
            raise ValueError(f"two cases are named {name!r}")
        CASES[name] = function
        return function

    return added


def add(name: str, function: Callable, *arguments: Any, **options: Any) -> None:
    """Make function(*arguments, folder, **options) a case."""
    case(name)(lambda folder: function(*arguments, folder, **options))


def fitted(given: Any, folder: Path, *, how: dict | None = None, **options: Any) -> dict[str, Any]:
    """The parts of a fit. given: A, or what makes it in the folder."""
    A = given(folder) if callable(given) else given
    how = {**(how or {})}
    if str(how.get("codes", "memory")) not in ("memory", "None"):
        how["codes"] = folder / how["codes"]
    api = Api(**{"seed": 0, "tol": 0, "max_iter": 8, **options})
    Z, D = api.fit(A, **how)
    parts = fit_parts(api, Z, D)
    if isinstance(how.get("codes"), Path):
        parts["file of codes"] = np.load(how["codes"])
    return parts


def add_fit(name: str, given: Any, nb_concepts: int, **options: Any) -> None:
    add(f"fit {name}", fitted, given, nb_concepts=nb_concepts, **options)


# solvers, forms and numbers
for solver in SOLVERS:
    for form in ("normal", "residual", "auto"):
        K, iterations = (24, 2) if solver == "anls" else (40, 6)
        add_fit(
            f"{solver} {form}", data("middle"), K, solver=solver, form=form, max_iter=iterations
        )
    for form in ("normal", "residual"):
        add_fit(f"{solver} {form} float64", data("small", "float64"), 6, solver=solver, form=form)
    for dtype in ("float16", "bfloat16"):
        add_fit(f"{solver} {dtype}", data("small", dtype), 6, solver=solver)
    add_fit(f"{solver} K > d", data("many"), 70, solver=solver)
    add_fit(f"{solver} one concept", data("small"), 1, solver=solver)
    add_fit(f"{solver} of zeros", torch.zeros(30, 9), 4, solver=solver)
    add_fit(f"{solver} backend torch", data("small"), 6, solver=solver, backend="torch")
    add_fit(f"{solver} backend cpp", data("small"), 6, solver=solver, backend="cpp")
    add_fit(f"{solver} wide", data("wide"), 20, solver=solver, max_iter=4)
    penalties = {"alpha_Z": 0.002, "alpha_D": 0.001, "l1_ratio": 0.5}
    add_fit(f"{solver} penalised", data("small"), 6, solver=solver, **penalties)
    add_fit(
        f"{solver} unit_norm",
        data("small", "float64"),
        9,
        solver=solver,
        unit_norm=True,
        alpha_Z=0.003,
        l1_ratio=1.0,
    )
    if solver != "anls":
        add_fit(
            f"{solver} accelerated", data("small", "float64"), 6, solver=solver, accelerate=True
        )
        add_fit(f"{solver} plain", data("long"), 12, solver=solver, accelerate=False)
        add_fit(
            f"{solver} given start", data("long"), 12, solver=solver, init=start(data("long"), 12)
        )
    add_fit(
        f"{solver} revive",
        data("small"),
        12,
        solver=solver,
        revive=True,
        init=idle_start(data("small"), 12),
        max_iter=24,
    )
for form in ("normal", "residual"):
    add_fit(
        f"hals penalised {form}",
        data("many"),
        50,
        form=form,
        block=16,
        alpha_Z=0.002,
        l1_ratio=1.0,
        alpha_D=0.0,
    )
    add_fit(f"pgd unit_norm {form}", data("many"), 50, solver="pgd", form=form, unit_norm=True)
    add_fit(f"hals accelerated {form}", data("small"), 6, form=form, accelerate=True)
add_fit("mu accelerated residual", data("small"), 6, solver="mu", form="residual", accelerate=True)
add_fit(
    "hals revive residual",
    data("small"),
    12,
    form="residual",
    block=4,
    revive=True,
    init=idle_start(data("small"), 12),
    max_iter=24,
)
add_fit(
    "hals revive settled",
    data("small", "float64"),
    12,
    revive=True,
    tol=0.05,
    init=idle_start(data("small", "float64"), 12),
    max_iter=60,
)
add_fit(
    "hals revive accelerated",
    data("small"),
    12,
    revive=True,
    accelerate=True,
    init=idle_start(data("small"), 12),
    max_iter=24,
)

# starts, blocks, pieces and other options
for init in ("random", "nndsvda", "rows", "spread"):
    add_fit(f"init {init}", data("middle"), 24, init=init, max_iter=3)
    add_fit(f"init {init} float64 K > d", data("many", "float64"), 45, init=init, max_iter=3)
add_fit(
    "init pair of arrays",
    data("small").numpy(),
    6,
    init=tuple(F.numpy() for F in start(data("small"), 6)),
)
add_fit("block 16", data("huge"), 300, form="residual", block=16, max_iter=3)
add_fit("block 7 normal", data("many"), 70, form="normal", block=7)
add_fit("chunk_rows 300", data("middle"), 40, chunk_rows=300)
add_fit("chunk_rows 37 residual", data("small"), 6, chunk_rows=37, form="residual")
add_fit("chunk_rows 37 mu", data("small"), 6, chunk_rows=37, solver="mu")
add_fit("chunk_rows 37 pgd", data("small"), 6, chunk_rows=37, solver="pgd")
add_fit("many concepts", data("huge"), 620, max_iter=3)
add_fit("many concepts accelerated", data("huge"), 620, max_iter=2, accelerate=True, form="normal")
add_fit("mu many concepts", data("huge"), 620, max_iter=2, solver="mu")
add_fit("precision strict", data("small"), 6, precision="strict", solver="mu", form="residual")
add_fit("stop error", data("small"), 6, stop="error", tol=1e-3, max_iter=100)
add_fit(
    "stop error penalised", data("small"), 6, stop="error", tol=5e-3, max_iter=100, alpha_Z=0.001
)
add_fit("tol", data("small"), 6, tol=1e-2, max_iter=200, accelerate=False)
add_fit("tol accelerated", data("small"), 6, tol=1e-2, max_iter=200)
add_fit("tol anls", data("small"), 6, tol=1e-2, max_iter=50, solver="anls")
add_fit("max_iter 0", data("small"), 6, max_iter=0)
add_fit("max_iter 0 random", data("small"), 6, max_iter=0, init="random")
add_fit("max_iter of fit", data("small"), 6, how={"max_iter": 3})
add_fit("max_seconds", data("small"), 6, max_seconds=1e-9, max_iter=5)
add_fit("seed 7", data("small"), 25, seed=7)
add_fit("alpha_D same", data("small"), 6, alpha_Z=0.001)
add_fit("one row", data("small")[:1], 3)
add_fit("one feature", data("small")[:, :1].contiguous(), 2)
add_fit("anls many concepts", data("many"), 90, solver="anls", max_iter=2)


@case("fit without a seed")
def _unseeded(folder):
    torch.manual_seed(5)
    return fitted(data("small"), folder, nb_concepts=25, seed=None)


@case("fit callback")
def _callback(folder):
    seen = []

    def record(info):
        seen.append((info.iteration, info.relative_change, info.relative_error))
        return info.iteration == 5

    parts = fitted(data("small"), folder, nb_concepts=6, callback=record)
    return {**parts, "seen": np.array(seen)}


@case("fit twice")
def _twice(folder):
    """The second fit of a model is not influenced by the first."""
    api = Api(nb_concepts=6, seed=0, tol=0, max_iter=5)
    first = fit_parts(api, *api.fit(data("small")))
    second = fit_parts(api, *api.fit(data("middle")))
    return {
        f"{n} {name}": part
        for n, parts in enumerate((first, second), 1)
        for name, part in parts.items()
        if not name.startswith(SUMMARY)
    }


# supported inputs


def batches(A: Tensor, rows: int = 150) -> list[Tensor]:
    return list(A.split(rows))


def npy(A: Tensor) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        np.save(folder / "A.npy", A.numpy())
        return folder / "A.npy"

    return made


def shards(A: Tensor, suffix: str = ".safetensors", parts: int = 5) -> Callable[[Path], Path]:
    """A folder of files of uneven sizes."""

    def made(folder: Path) -> Path:
        (folder / "A").mkdir()
        bounds = [len(A) * i * i // parts**2 for i in range(parts + 1)]
        for i in range(parts):
            rows, path = A[bounds[i] : bounds[i + 1]].contiguous(), folder / "A" / f"{i}{suffix}"
            if suffix == ".npy":
                np.save(path, rows.numpy())
            else:
                safetensors.torch.save_file({"A": rows}, path)
        return folder / "A"

    return made


def columns_of_more(A: Tensor) -> Tensor:
    """The same numbers as every other column of a wider tensor."""
    wider = torch.zeros(len(A), 2 * A.shape[1], dtype=A.dtype)
    wider[:, ::2] = A
    return wider[:, ::2]


small = data("small")
for name, given in {
    "array": small.numpy(),
    "F-ordered array": np.asfortranarray(small.numpy()),
    "transposed tensor": small.T.contiguous().T,
    "non-contiguous tensor": columns_of_more(small),
    "array of integers": (small * 64).to(torch.int32).numpy(),
    "list of batches": batches(small, 50),
    "DataLoader": DataLoader(TensorDataset(small), batch_size=50),
    ".npy file": npy(small),
    "memory map": lambda folder: np.load(npy(small)(folder), mmap_mode="r"),
    "folder of .safetensors": shards(small),
    "folder of .safetensors in bfloat16": shards(data("small", "bfloat16")),
    "list of paths": lambda folder: sorted(shards(small, ".npy")(folder).iterdir()),
}.items():
    add_fit(f"A {name}", given, 6)
add_fit("A F-ordered mu", np.asfortranarray(data("middle").numpy()), 24, solver="mu", max_iter=4)
add_fit("A F-ordered residual", np.asfortranarray(data("many").numpy()), 50, form="residual")

# what does not fit in memory, codes elsewhere

LONG, CHUNK_ROWS = data("long"), 611


def add_stream(name: str, given: Any, K: int, codes: str | None, A: Tensor = LONG, **options):
    kept = "memory" if codes == "memory" else "none" if codes is None else "file"
    most = budget(A, K, 1000, codes=kept)
    add_fit(name, given, K, how={"codes": codes}, max_memory=most, chunk_rows=CHUNK_ROWS, **options)


for solver in SOLVERS:
    add_stream(f"streamed {solver}", shards(LONG), 12, "memory", solver=solver, max_iter=4)
for init in ("random", "rows", "spread"):
    add_stream(f"streamed {init}", npy(LONG), 12, "Z.npy", init=init, max_iter=4)
add_stream("streamed given start", npy(LONG), 12, "Z.npy", init=start(LONG, 12), max_iter=4)
add_stream("streamed codes None", npy(LONG), 12, None, max_iter=4)
add_stream("streamed codes None mu", npy(LONG), 12, None, solver="mu", max_iter=3, tol=1e-3)
add_stream("streamed float64", npy(LONG.double()), 12, "Z.npy", A=LONG.double(), max_iter=4)
add_stream("streamed float16", npy(LONG.half()), 12, "memory", max_iter=4)
add_stream("streamed batches", lambda _: batches(LONG, 100), 12, "Z.npy", max_iter=4)
add_stream(
    "streamed DataLoader", DataLoader(TensorDataset(LONG), batch_size=333), 12, "memory", max_iter=4
)
add_stream("streamed K > d", npy(LONG), 60, "Z.npy", max_iter=3)
add_stream("streamed penalised", npy(LONG), 12, "Z.npy", max_iter=4, alpha_Z=0.001, l1_ratio=0.5)
add_stream("streamed unit_norm", npy(LONG), 12, "Z.npy", max_iter=4, alpha_Z=0.001, unit_norm=True)
add_stream(
    "streamed revive", npy(LONG), 12, "memory", max_iter=22, revive=True, init=idle_start(LONG, 12)
)
add_stream("streamed stop error", npy(LONG), 12, "memory", max_iter=30, tol=1e-2, stop="error")
add_fit("codes in a file", data("middle"), 24, how={"codes": "Z.npy"})
add_fit("codes None in memory", data("small"), 6, how={"codes": None})
add_fit("codes in a file from a file", npy(small), 6, how={"codes": "Z.npy"}, solver="mu")

# checkpoints


class Stopped(Exception):
    """Raised by a callback, to leave a fit."""


def leave_in(iteration: int) -> Callable:
    """A callback that leaves the fit in this iteration."""

    def leave(info: Any) -> None:
        if info.iteration == iteration:
            raise Stopped

    return leave


def left(A: Any, iteration: int, path: Path, codes: Any = "memory", **options: Any) -> None:
    """Leave a fit, with a checkpoint of the iteration before."""
    saving = {"checkpoint": path, "checkpoint_seconds": 0, "callback": leave_in(iteration)}
    with contextlib.suppress(Stopped):
        Api(**options, **saving).fit(A, codes=codes)
        raise AssertionError(f"the fit was not left in iteration {iteration}")


def goes_on(given: Any, folder: Path, *, iteration: int = 6, codes: Any = "memory", **options):
    """The parts of a fit that is left and goes on, which are those of one that is not left."""
    A = given(folder) if callable(given) else given
    options = {"seed": 0, "tol": 0, "max_iter": 13, **options}
    path = folder / "fit.safetensors"
    codes = folder / codes if codes not in ("memory", None) else codes
    left(A, iteration, path, codes, **options)
    resumed, whole = Api(**options, checkpoint=path), Api(**options)
    parts = fit_parts(resumed, *resumed.fit(A, resume=True, codes=codes))
    parts = {name: digest(part) for name, part in parts.items()}
    expected = fit_parts(whole, *whole.fit(A, codes=codes))
    passes = f"{SUMMARY}passes", f"{SUMMARY}reduced_bytes"
    for name, part in expected.items():
        # a resumed fit reads the data fewer times
        if name not in passes and parts[name][0] != digest(part)[0]:
            raise AssertionError(f"{name} of the resumed fit is not that of the whole one")
    return {name: part for name, part in expected.items() if name not in passes}


def add_resumed(name: str, given: Any, nb_concepts: int, **options: Any) -> None:
    add(f"resumed {name}", goes_on, given, nb_concepts=nb_concepts, **options)


for solver in SOLVERS:
    add_resumed(solver, small, 6, solver=solver)
    add_resumed(f"{solver} residual", small, 25, solver=solver, form="residual")
add_resumed("accelerated", small, 6, accelerate=True)
add_resumed("accelerated pgd", small, 6, accelerate=True, solver="pgd")
add_resumed("penalised", small, 6, alpha_Z=0.002, l1_ratio=0.5)
add_resumed("unit_norm", small, 6, alpha_Z=0.002, unit_norm=True, form="residual")
add_resumed("revive", small, 12, revive=True, init=idle_start(small, 12), max_iter=22, iteration=12)
add_resumed("float64 late", small.double(), 25, form="residual", iteration=11)
STREAMED = {"max_memory": budget(LONG, 12, 1000), "chunk_rows": CHUNK_ROWS}
add_resumed("streamed", npy(LONG), 12, max_iter=6, iteration=4, **STREAMED)
add_resumed(
    "streamed codes in a file",
    npy(LONG),
    12,
    max_iter=6,
    iteration=4,
    codes="Z.npy",
    max_memory=budget(LONG, 12, 1000, codes="file"),
    chunk_rows=CHUNK_ROWS,
)
add_resumed(
    "streamed codes None",
    npy(LONG),
    12,
    max_iter=5,
    iteration=3,
    codes=None,
    max_memory=budget(LONG, 12, 1000, codes="none"),
    chunk_rows=CHUNK_ROWS,
)


@case("resumed with more iterations")
def _more(folder):
    path = folder / "fit.safetensors"
    options = {"nb_concepts": 6, "seed": 0, "tol": 0, "checkpoint": path, "checkpoint_seconds": 0}
    Api(**options, max_iter=5).fit(small)
    api = Api(**options, max_iter=9)
    return fit_parts(api, *api.fit(small, resume=True))


# online learning


def taught(given: list[Any], folder: Path | None = None, *, before=None, **options: Any):
    """The parts of a model that learns from batches. before: what is done to it first."""
    api = Api(**{"seed": 0, **options})
    if before is not None:
        before(api)
    errors = []
    for batch in given:
        api.partial_fit(batch)
        errors.append(api.summary().get("relative_error", 0.0))
    Z = api.encode(numbers(30, given[0].shape[1], 8, seed=99).to(api.nmf.D.dtype))
    return {**tensors_of(D=api.nmf.D, Z=Z), "errors": np.array(errors), **summary_of(api)}


STREAM = [numbers(m, 24, 8, seed=i) for i, m in enumerate((60, 25, 120, 1, 40))]
for solver in SOLVERS:
    add(f"stream {solver}", taught, STREAM, nb_concepts=7, solver=solver)
add("stream half_life", taught, STREAM, nb_concepts=7, half_life=30.0)
add("stream never forgets", taught, STREAM, nb_concepts=7, half_life=float("inf"))
add("stream float64 K > d", taught, [b.double() for b in STREAM], nb_concepts=40, init="rows")
add("stream float16", taught, [b.half() for b in STREAM], nb_concepts=7)
add("stream zeros first", taught, [torch.zeros(5, 24), *STREAM], nb_concepts=7)
add("stream chunk_rows", taught, STREAM, nb_concepts=7, chunk_rows=9)
add("stream large batches", taught, [data("middle"), data("middle").flip(0)], nb_concepts=40)
add(
    "stream after fit",
    taught,
    STREAM,
    nb_concepts=7,
    max_iter=5,
    half_life=50.0,
    before=lambda api: api.fit(torch.cat(STREAM)),
)
add(
    "stream after load_dictionary",
    taught,
    STREAM,
    nb_concepts=7,
    solver="mu",
    before=lambda api: api.nmf.load_dictionary(uniform(7, 24, 3)),
)

# codes for a dictionary that stays


def loaded(K: int, d: int, dtype: str = "float32", **options: Any) -> Api:
    """A model with a given dictionary, of which some entries are zero."""
    api = Api(nb_concepts=K, **options)
    D = uniform(K, d, 4, dtype)
    api.nmf.load_dictionary(D * (D > 0.4))
    return api


def encoded(A: Any, K: int, folder: Path, *, how: dict | None = None, dtype="float32", **options):
    """The codes of A."""
    A = A(folder) if callable(A) else A
    how = {**(how or {})}
    if "codes" in how:
        how["codes"] = folder / how["codes"]
    d = options.pop("d", None) or A.shape[1]
    Z = loaded(K, d, dtype, **options).encode(A, **how)
    return {"Z": Z.clone(), **({"file": np.load(how["codes"])} if "codes" in how else {})}


def gradient(A: Tensor, K: int, folder: Path, *, max_iter: int = 20, dtype="float32", **options):
    """The codes of A and the gradient of a sum of them."""
    A = A.clone().requires_grad_()
    Z = loaded(K, A.shape[1], dtype, **options).encode(A, max_iter=max_iter)
    (Z * uniform(*Z.shape, 5, str(Z.dtype).removeprefix("torch."))).sum().backward()
    return {"Z": Z.detach(), "gradient": A.grad}


for solver in SOLVERS:
    add(f"encode {solver}", encoded, data("middle"), 40, solver=solver, how={"max_iter": 40})
    add(f"encode {solver} float64", encoded, small.double(), 6, solver=solver, dtype="float64")
    add(f"encode {solver} K > d", encoded, small, 50, solver=solver, how={"max_iter": 30})
    add(
        f"encode {solver} Z0",
        encoded,
        small,
        6,
        solver=solver,
        how={"Z0": uniform(203, 6, 6), "max_iter": 7},
    )
    add(
        f"encode {solver} chunks",
        encoded,
        data("long"),
        12,
        solver=solver,
        chunk_rows=900,
        how={"max_iter": 30},
    )
    add(
        f"encode {solver} penalised",
        encoded,
        small,
        30,
        solver=solver,
        alpha_Z=0.003,
        l1_ratio=0.7,
        how={"max_iter": 60},
    )
    add(f"encode {solver} gradient", gradient, small[:60], 6, solver=solver)
add(
    "encode gradient chunks float64",
    gradient,
    small.double(),
    12,
    dtype="float64",
    chunk_rows=80,
    max_iter=9,
)
add("encode gradient penalised", gradient, small[:50], 30, alpha_Z=0.002, l1_ratio=0.5)
add("encode residual", encoded, small, 50, form="residual", how={"max_iter": 20})
add("encode mu residual", encoded, small, 50, form="residual", solver="mu", how={"max_iter": 20})
add("encode tol", encoded, data("middle"), 40, how={"tol": 1e-2})
add("encode max_iter 0", encoded, small, 6, how={"max_iter": 0})
add("encode float16", encoded, data("small", "float16"), 6)
add("encode to a file", encoded, small, 6, how={"codes": "Z.npy"})
add(
    "encode streamed to a file",
    encoded,
    shards(LONG),
    12,
    d=48,
    how={"codes": "Z.npy"},
    max_memory=budget(LONG, 12, 1000, codes="file"),
    chunk_rows=CHUNK_ROWS,
)
add("encode batches", encoded, lambda _: batches(small, 50), 6, d=19)
add("encode torch backend", encoded, small, 6, backend="torch")


@case("encode after fit")
def _fit_and_encode(folder):
    api = Api(nb_concepts=12, seed=0, max_iter=10)
    api.fit(LONG)
    return {"Z": api.encode(LONG[:500]), "dictionary": api.nmf.get_dictionary()}


@case("decode")
def _decode(folder):
    api, Z = loaded(6, 19), uniform(50, 6, 8)
    W = (Z - 0.5).requires_grad_()
    A = api.decode(W)
    (A * uniform(50, 19, 9)).sum().backward()
    return {
        "tensor": A.detach(),
        "gradient": W.grad,
        "of many dimensions": api.decode(Z.view(5, 10, 6)),
        "float64": api.decode(Z.double()),
        "array": api.decode(Z.numpy()),
        "file": api.decode(Z, out=folder / "A.npy").clone(),
        "from a file": api.decode(npy(Z)(folder)),
    }


@case("decode streamed to a file")
def _decode_streamed(folder):
    Z = uniform(9001, 12, 8)
    (folder / "codes").mkdir()
    api = loaded(12, 64, max_memory=budget(uniform(9001, 64), 64, 600, codes="file"))
    api.decode(npy(Z)(folder / "codes"), out=folder / "A.npy")
    return {"file": np.load(folder / "A.npy")}


@case("load_dictionary and state_dict")
def _state(folder):
    api = Api(nb_concepts=6, seed=0, max_iter=5)
    api.fit(small)
    state = api.nmf.state_dict()
    torch.save(state, folder / "state.pt")
    other = Api(nb_concepts=6)
    other.nmf.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    taken = Api(nb_concepts=6)
    taken.nmf.load_dictionary(state["D"].numpy())
    return {
        "names": sorted(state),
        "D": other.nmf.get_dictionary(),
        "Z": other.encode(small),
        "Z by load_dictionary": taken.encode(small),
    }


@case("model in a file")
def _model(folder):
    options = {"solver": "mu", "alpha_Z": 0.001, "l1_ratio": 0.5, "tol": 1e-3}
    api = Api(nb_concepts=6, seed=0, max_iter=5, **options)
    api.fit(small)
    api.save(folder / "model.safetensors")
    other = Api.load(folder / "model.safetensors")
    return {"D": other.nmf.D, "Z": other.encode(small), **summary_of(other)}


@case("command line")
def _command_line(folder):
    A, model, Z = npy(small)(folder), folder / "model.safetensors", folder / "Z.npy"
    command_line(
        "fit",
        A,
        "--concepts",
        6,
        "--out",
        model,
        "--codes",
        Z,
        "--seed",
        3,
        "--max-iter",
        9,
        "--solver",
        "pgd",
        "--quiet",
    )
    command_line("encode", model, A, "--out", folder / "encoded.npy", "--quiet")
    command_line("decode", model, Z, "--out", folder / "decoded.npy", "--quiet")
    with safetensors.safe_open(model, "pt") as file:
        D = file.get_tensor("D")
    read = {name: np.load(folder / f"{name}.npy") for name in ("Z", "encoded", "decoded")}
    return {"D": D, **read}


# exact non-negative least squares


def solved(A: Any, D: Any, folder: Path, **options: Any) -> dict[str, Any]:
    """What nnls gives."""
    Z = fastnmf.nnls(A, D, **options)
    if not isinstance(Z, tuple):
        return {"Z": Z}
    Z, info = Z
    return {"Z": Z, "status": info.status, "kkt": info.kkt, "support": info.support}


def signed(n: int, d: int, seed: int = 0, dtype: str = "float32") -> Tensor:
    return uniform(n, d, seed, dtype) - 0.3


INFO = {"return_info": True}
add("nnls", solved, data("middle"), uniform(40, 96, 1), **INFO)
add("nnls float64", solved, small.double(), uniform(12, 19, 1, "float64"), **INFO)
add("nnls mixed dtypes", solved, small, uniform(12, 19, 1, "float64"))
add("nnls of any sign", solved, signed(300, 30), signed(50, 30, 1), **INFO)
add("nnls Z0", solved, small, uniform(12, 19, 1), Z0=uniform(203, 12, 2), **INFO)
add("nnls max_iter", solved, signed(100, 30), signed(60, 30, 1), max_iter=3, **INFO)
add("nnls backend torch", solved, small, uniform(12, 19, 1), backend="torch", **INFO)
add("nnls arrays", solved, small.numpy(), uniform(12, 19, 1).numpy())
add("nnls few rows, many concepts", solved, data("wide")[:7], signed(1500, 700, 1), **INFO)
add("nnls few rows, torch", solved, data("small")[:3], signed(300, 19, 1), backend="torch")
add(
    "nnls zeros",
    solved,
    torch.cat((torch.zeros(2, 19), small)),
    torch.cat((torch.zeros(1, 19), uniform(8, 19, 1))),
    **INFO,
)

# starts alone


def starts(A: Any, K: int, folder: Path, **options: Any) -> dict[str, Any]:
    nmf = Api(nb_concepts=K, **{"seed": 3, **options}).nmf
    Z, D = nmf.init_nndsvda(A)
    return {"Z": nmf.init_random_z(A), "D": nmf.init_random_d(A), "nndsvda Z": Z, "nndsvda D": D}


add("starts", starts, small, 6)
add("starts float64", starts, small.double(), 6)
add("starts middle", starts, data("middle"), 40)
add("starts wide", starts, data("wide"), 20)
add("starts of an array", starts, small.numpy(), 6)


# ---- cases of several processes

SHARED: dict[str, dict[str, Any]] = {}
PLAIN = {"nb_concepts": 6, "max_iter": 6, "tol": 0, "seed": 1, "accelerate": False}
for solver in SOLVERS:
    SHARED[f"shared {solver}"] = {**PLAIN, "solver": solver}
SHARED["shared float64"] = {**PLAIN, "dtype": "float64", "init": "random"}
SHARED["shared residual"] = {**PLAIN, "form": "residual", "block": 4}
SHARED["shared accelerated"] = {**PLAIN, "accelerate": "auto"}
SHARED["shared penalised"] = {**PLAIN, "alpha_Z": 0.002, "l1_ratio": 0.5, "accelerate": "auto"}
SHARED["shared unit_norm"] = {**PLAIN, "alpha_Z": 0.002, "unit_norm": True, "accelerate": "auto"}
SHARED["shared stops by tol"] = {**PLAIN, "tol": 1e-2, "max_iter": 100, "init": "spread"}
SHARED["shared middle"] = {**PLAIN, "nb_concepts": 40, "size": "middle", "chunk_rows": 300}
SHARED["shared revive"] = {
    **PLAIN,
    "nb_concepts": 12,
    "revive": True,
    "max_iter": 22,
    "init": "idle",
}
SHARED["shared resumed"] = {**PLAIN, "left_in": 4}
SHARED["shared stream"] = {"nb_concepts": 7, "seed": 0, "stream": True}
SHARED["shared stream mu"] = {"nb_concepts": 7, "seed": 0, "stream": True, "solver": "mu"}


def shared_parts(rank: int, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What one of two processes makes of its rows: the first three quarters, or the rest."""

    def mine(A: Tensor) -> Tensor:
        bound = len(A) * 3 // 4
        return A[:bound] if rank == 0 else A[bound:]

    options = {**case, "distributed": True}
    if options.pop("stream", False):
        api = Api(**options)
        for batch in STREAM:
            api.partial_fit(mine(batch))
        return {"D": api.nmf.D, **summary_of(api)}
    A = data(options.pop("size", "small"), options.pop("dtype", "float32"))
    if options.get("init") == "idle":
        Z0, D0 = idle_start(A, options["nb_concepts"])
        options["init"] = mine(Z0), D0
    if left_in := options.pop("left_in", None):
        options |= {"checkpoint": folder / "fit.safetensors", "checkpoint_seconds": 0}
        # a callback that raises in all of them
        with contextlib.suppress(Stopped):
            Api(**options, callback=leave_in(left_in)).fit(mine(A))
    api = Api(**options)
    return fit_parts(api, *api.fit(mine(A), resume=bool(left_in)))


def run_rank(folder: Path, rank: int, names: list[str]) -> None:
    """One of two processes: write the digests of the shared cases to the folder."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {}
    for number, name in enumerate(names):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        parts = shared_parts(rank, place, SHARED[name])
        found[name] = {f"process {rank}: {part}": digest(value) for part, value in parts.items()}
    distributed.destroy_process_group()
    (folder / f"found-{rank}.json").write_text(json.dumps(found))


def run_shared(names: list[str]) -> dict[str, dict[str, Any]]:
    """The digests of shared cases, by two processes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "names.json").write_text(json.dumps(names))
        command = [sys.executable, __file__, "rank", place]
        processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
        if any([process.wait() for process in processes]):
            return {name: {"raised": digest("the processes failed")} for name in names}
        first, second = (json.loads((folder / f"found-{r}.json").read_text()) for r in range(2))
    return {name: first[name] | second[name] for name in names}


# ---- files of an older version


def resumable() -> dict[str, dict[str, Any]]:
    """Fits that are left with a checkpoint, by name: plain values only, which JSON keeps.

    size: of the data. start: 'idle' or 'given'. codes: 'memory', None or the name of a file.
    streams: whether the data are read in passes; the name is that of recorded files.
    """
    plain = {"nb_concepts": 6, "seed": 0, "tol": 0, "max_iter": 14}
    fits = {
        "hals normal": {"form": "normal"},
        "hals residual": {"form": "residual", "nb_concepts": 25},
        "hals auto middle": {"size": "middle", "nb_concepts": 40, "accelerate": False},
        "hals float64": {"dtype": "float64", "accelerate": False},
        "hals K > d": {"size": "many", "nb_concepts": 70, "max_iter": 9},
        "accelerated": {"accelerate": True},
        "accelerated by auto": {"size": "middle", "nb_concepts": 40},
        "mu": {"solver": "mu", "accelerate": False},
        "mu residual": {"solver": "mu", "form": "residual"},
        "mu accelerated": {"solver": "mu", "accelerate": True},
        "pgd": {"solver": "pgd", "accelerate": False},
        "pgd residual": {"solver": "pgd", "form": "residual"},
        "anls": {"solver": "anls"},
        "anls residual": {"solver": "anls", "form": "residual"},
        "penalised": {"alpha_Z": 0.002, "alpha_D": 0.001, "l1_ratio": 0.5},
        "unit_norm": {"alpha_Z": 0.002, "l1_ratio": 1.0, "unit_norm": True},
        "given start": {"start": "given"},
        "init rows": {"init": "rows", "block": 3, "chunk_rows": 50, "accelerate": False},
        "revive": {"nb_concepts": 12, "start": "idle", "revive": True, "max_iter": 26},
        "stop error": {"stop": "error", "tol": 1e-3, "max_iter": 80},
        "streamed": {"codes": "memory", "streams": True},
        "streamed codes in a file": {"codes": "Z.npy", "streams": True},
        "streamed codes None": {"codes": None, "streams": True},
    }
    return {name: {**plain, **options} for name, options in fits.items()}


def fit_of(described: dict[str, Any], folder: Path) -> tuple[Any, dict[str, Any], Any]:
    """What A is, the options of the model, and where the codes go."""
    options = dict(described)
    size, codes = options.pop("size", "small"), options.pop("codes", "memory")
    if options.pop("streams", False):
        A, K = LONG, 12
        kept = {"memory": "memory", None: "none"}.get(codes, "file")
        options |= {"nb_concepts": K, "chunk_rows": CHUNK_ROWS, "max_iter": 7}
        options["max_memory"] = budget(A, K, 1000, codes=kept)
        given = npy(A)(folder)
    else:
        given = A = data(size, options.pop("dtype", "float32"))
    if begun := options.pop("start", None):
        make = {"given": start, "idle": idle_start}[begun]
        options["init"] = make(A, options["nb_concepts"])
    return given, options, codes if codes in ("memory", None) else folder / codes


MODELS = {
    "model hals": {"nb_concepts": 6, "seed": 0, "max_iter": 9},
    "model mu penalised": {
        "nb_concepts": 6,
        "seed": 0,
        "max_iter": 9,
        "solver": "mu",
        "alpha_Z": 0.002,
        "l1_ratio": 0.5,
        "tol": 1e-3,
    },
    "model pgd float64": {
        "nb_concepts": 6,
        "seed": 0,
        "max_iter": 9,
        "solver": "pgd",
        "dtype": "float64",
    },
    "model anls unit_norm": {
        "nb_concepts": 9,
        "seed": 0,
        "max_iter": 5,
        "solver": "anls",
        "alpha_Z": 0.002,
        "unit_norm": True,
    },
}


def hashed(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: digest(part) for name, part in parts.items()}


def file_name(name: str, suffix: str = ".safetensors") -> str:
    return name.replace(" ", "-").replace(">", "over") + suffix


def of_a_model(api: Api, dtype: str) -> dict[str, Any]:
    """What a model that was read gives."""
    return {"D": api.nmf.D, "Z": api.encode(data("small", dtype))}


def read_state(path: Path, described: dict[str, Any]) -> Api:
    """A model from its state_dict in a file."""
    api = Api(**{name: value for name, value in described.items() if name != "dtype"})
    api.nmf.load_state_dict(torch.load(path, weights_only=True))
    return api


def make_old_files(folder: Path) -> None:
    """Save models and checkpoints, and what comes of them, in a new folder."""
    folder.mkdir(parents=True)
    found: dict[str, Any] = {}
    for name, described in MODELS.items():
        dtype = described.get("dtype", "float32")
        api = Api(**{key: value for key, value in described.items() if key != "dtype"})
        api.fit(data("small", dtype))
        parts = of_a_model(api, dtype)
        api.save(folder / file_name(name))
        found[name] = {
            "kind": "model",
            "file": file_name(name),
            "options": described,
            "expected": hashed({**parts, **summary_of(api)}),
        }
        state, name = file_name(name, ".pt"), name.replace("model", "state_dict")
        torch.save(api.nmf.state_dict(), folder / state)
        found[name] = {
            "kind": "state_dict",
            "file": state,
            "options": described,
            "expected": hashed(parts),
        }
    for name, described in resumable().items():
        with tempfile.TemporaryDirectory() as place:
            A, options, codes = fit_of(described, Path(place))
            path = folder / file_name(f"checkpoint {name}")
            iteration = 13 if "revive" in name else 4 if "streams" in described else 7
            left(A, iteration, path, codes, **options)
            api = Api(**options)
            parts = fit_parts(api, *api.fit(A, codes=codes))
            expected = hashed(parts)
        del expected[f"{SUMMARY}passes"]
        found[f"checkpoint {name}"] = {
            "kind": "checkpoint",
            "file": path.name,
            "options": described,
            "left in iteration": iteration,
            "expected": expected,
        }
    (folder / "made.json").write_text(json.dumps({"about": about(), "files": found}, indent=1))
    print(f"{len(found)} files in {folder}")


def from_old_file(held: dict[str, Any], files: Path, folder: Path) -> dict[str, Any]:
    """The parts of a model that is read, or of a fit that is resumed."""
    path, described = files / held["file"], held["options"]
    if held["kind"] == "checkpoint":
        A, options, codes = fit_of(described, folder)
        # with its codes; the files stay as they are
        for each in files.glob(f"{path.stem}.*"):
            shutil.copy(each, folder)
        seen = []
        api = Api(**options, checkpoint=folder / path.name, callback=lambda i: seen.append(i))
        Z, D = api.fit(A, resume=True, codes=codes)
        if seen[0].iteration != held["left in iteration"]:
            raise AssertionError(f"it resumed with iteration {seen[0].iteration}")
        parts = fit_parts(api, Z, D)
        # a resumed fit reads the data fewer times
        del parts[f"{SUMMARY}passes"]
        return parts
    dtype = described.get("dtype", "float32")
    if held["kind"] == "state_dict":
        return of_a_model(read_state(path, described), dtype)
    api = Api.load(path)
    # a version that reports other fields may leave the summary out
    found = summary_of(api) if api.nmf.fit_info_ is not None else {}
    return {**of_a_model(api, dtype), **found}


# ---- running and comparing


def about() -> dict[str, Any]:
    """What bits depend on beside the code, and who computed them."""
    return {
        "fastnmf": fastnmf.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def run_case(function: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The digests of what a case gives; of the error where it raises."""
    with tempfile.TemporaryDirectory() as place:
        try:
            return hashed(function(Path(place)))
        except Exception as error:
            traceback.print_exc()
            return {"raised": digest(f"{type(error).__name__}: {error}")}


def run_all(chosen: str, slowest: int = 0) -> dict[str, dict[str, Any]]:
    """The digests of all cases whose name contains the text; the slowest are printed."""
    found, seconds = {}, {}
    for name, each in CASES.items():
        if chosen in name:
            begun = time.perf_counter()
            found[name] = run_case(each)
            seconds[name] = time.perf_counter() - begun
    shared, begun = [name for name in SHARED if chosen in name], time.perf_counter()
    if shared:
        found |= run_shared(shared)
        seconds["all shared"] = time.perf_counter() - begun
    for name in sorted(seconds, key=seconds.get, reverse=True)[:slowest]:
        print(f"{seconds[name]:7.2f} s  {name}")
    return found


def difference(mine: list[Any], other: list[Any]) -> str:
    """In words, by how much two parts differ, from their samples."""
    if mine[2] != other[2]:
        return f"{other[2]} before, {mine[2]} now"
    if not mine[1] or len(mine[1]) != len(other[1]):
        return "other bits"
    now, before = (np.array([float(v) for v in each[1]]) for each in (mine, other))
    scale = np.abs(before[1:]).max(initial=0) or abs(before[0]) or 1
    most = np.nanmax(np.abs(now[1:] - before[1:]), initial=0) / scale
    return f"norm {before[0]:.9g} before, {now[0]:.9g} now; samples differ by up to {most:.2g}"


def differences(found: dict[str, Any], expected: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Of one case what differs, and what is only to be noted."""
    differ, noted = [], []
    for part in expected.keys() | found.keys():
        if part not in found:
            into = noted if SUMMARY in part else differ
            into.append(f"{part}: not there any more")
        elif part not in expected:
            (noted if SUMMARY in part else differ).append(f"{part}: new")
        elif found[part][0] != expected[part][0]:
            differ.append(f"{part}: {difference(found[part], expected[part])}")
    return sorted(differ), sorted(noted)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> int:
    """Print every difference; returns how many cases have one."""
    differing, noted = 0, []
    for name in expected:
        if name not in found:
            differ, notes = ["the case is missing"], []
        else:
            differ, notes = differences(found[name], expected[name])
        differing += bool(differ)
        noted += notes
        for line in differ:
            print(f"DIFFERS  {name}: {line}")
    for note in sorted(set(noted)):
        print(f"note: {note} ({noted.count(note)} cases)")
    new = found.keys() - expected.keys()
    if new:
        print(f"note: not in the file: {', '.join(sorted(new))}")
    return differing


def warn_of_others(recorded: dict[str, Any]) -> None:
    """Say where the bits were recorded under other circumstances."""
    here = about()
    for name, value in recorded.items():
        if name != "fastnmf" and here[name] != value:
            print(f"note: recorded with {name} {value}, here it is {here[name]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "command", choices=("record", "compare", "make-old-files", "old-files", "rank")
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("rank", type=int, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("-k", default="", help="only cases whose name contains this")
    parser.add_argument("--slowest", type=int, default=0, help="how many slow cases to list")
    given = parser.parse_args()
    # fits that end by max_iter say so
    logging.getLogger("fastnmf").setLevel(logging.ERROR)
    if given.command == "rank":
        run_rank(given.path, given.rank, json.loads((given.path / "names.json").read_text()))
        return 0
    torch.set_num_threads(THREADS)
    begun = time.perf_counter()
    if given.command == "make-old-files":
        make_old_files(given.path)
        return 0
    if given.command == "record":
        found = run_all(given.k, given.slowest)
        given.path.write_text(json.dumps({"about": about(), "cases": found}, indent=0))
        failed = [name for name, parts in found.items() if any("raised" in p for p in parts)]
        for name in failed:
            print(f"RAISED  {name}: {found[name]}")
        parts = sum(map(len, found.values()))
        seconds = time.perf_counter() - begun
        print(f"{len(found)} cases, {parts} parts, {seconds:.0f} s, {len(failed)} raised")
        return int(bool(failed))
    if given.command == "compare":
        recorded = json.loads(given.path.read_text())
        expected = {name: parts for name, parts in recorded["cases"].items() if given.k in name}
        found = run_all(given.k, given.slowest)
    else:
        recorded = json.loads((given.path / "made.json").read_text())
        held = {name: file for name, file in recorded["files"].items() if given.k in name}
        expected = {name: file["expected"] for name, file in held.items()}
        found = {
            name: run_case(functools.partial(from_old_file, file, given.path))
            for name, file in held.items()
        }
    warn_of_others(recorded["about"])
    differing = compare(found, expected)
    seconds = time.perf_counter() - begun
    print(f"{len(expected)} cases, {seconds:.0f} s, {differing} differ")
    return int(differing > 0 or not expected)


if __name__ == "__main__":
    sys.exit(main())
