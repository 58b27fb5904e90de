"""Data, budgets and files of tests in which data are read in passes."""

from __future__ import annotations

import itertools

import numpy as np
import safetensors.torch
import torch
from fits import nmf
from torch.utils.data import DataLoader, TensorDataset

from fastnmf.planning.memory import Needs

N, D, K = 3011, 40, 9
# seven uneven shards, one of them empty
BOUNDS = [0, 500, 1201, 1202, 1202, 2000, 2555, N]
CHUNK_ROWS = 611


def problem(n=N, d=D, K=K, dtype=torch.float32):
    """Rows that K concepts explain but for some noise, so that rounding changes a fit little."""
    generator = torch.Generator().manual_seed(0)
    Z = torch.rand(n, K, generator=generator, dtype=torch.float64)
    Z *= torch.rand(n, K, generator=generator) < 0.4
    A = Z @ torch.rand(K, d, generator=generator, dtype=torch.float64).pow(3)
    A += 0.1 * torch.rand(n, d, generator=generator, dtype=torch.float64)
    return A.to(dtype)


A = problem()


def tight(codes="memory", start="nndsvda", rows=CHUNK_ROWS, data=A, concepts=K, itemsize=4):
    """Bytes in which chunks of `rows` rows fit, and all rows do not."""
    needs = Needs(*data.shape, concepts, itemsize, codes, start)
    assert needs.streamed(rows) < needs.resident(copied=itemsize)
    return needs.streamed(rows)


def save(path, rows):
    if path.suffix == ".npy":
        np.save(path, rows.numpy())
    else:
        safetensors.torch.save_file({"A": rows.contiguous()}, path)
    return path


def sharded(folder, data=A, suffix=".npy", bounds=BOUNDS):
    folder.mkdir()
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        save(folder / f"part-{number}{suffix}", data[first:last])
    return folder


def model(**options):
    # data read in passes are not accelerated
    return nmf(K, **{"seed": 0, "tol": 0, "max_iter": 20, "accelerate": False, **options})


def streamed(rows, codes="memory", **options):
    """(Z, D, fit_info_) of a fit that reads the rows in passes."""
    most = tight(start=options.get("init", "nndsvda"))
    fitted = model(chunk_rows=CHUNK_ROWS, max_memory=most, **options)
    Z, D = fitted.fit(rows, codes=codes)
    assert fitted.fit_info_.chunk_rows == CHUNK_ROWS
    return Z, D, fitted.fit_info_


class Again:
    """Batches that can be had again, in one buffer that is filled again and again."""

    def __iter__(self):
        buffer = np.empty((300, D), np.float32)
        for first in range(0, N, 300):
            rows = A[first : first + 300].numpy()
            buffer[: len(rows)] = rows
            yield buffer[: len(rows)]


def memory_map(folder):
    np.save(folder / "A.npy", A.numpy())
    return np.load(folder / "A.npy", mmap_mode="r")


def fortran(folder):
    np.save(folder / "A.npy", np.asfortranarray(A))
    return folder / "A.npy"


SOURCES = {
    "map": memory_map,
    "reversed map": lambda folder: memory_map(folder)[::-1][::-1],
    "path": lambda folder: str(save(folder / "A.npy", A)),
    "fortran": fortran,
    "safetensors": lambda folder: save(folder / "A.safetensors", A),
    "folder": lambda folder: sharded(folder / "A"),
    "folder of safetensors": lambda folder: sharded(folder / "A", suffix=".safetensors"),
    "list": lambda folder: sorted(sharded(folder / "A").iterdir()),
    "loader": lambda folder: DataLoader(TensorDataset(A), batch_size=250),
    "iterable": lambda folder: Again(),
    "batches": lambda folder: list(A.split(333)),
    "array": lambda folder: A.numpy()[:, ::-1][:, ::-1],
}
