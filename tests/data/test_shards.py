"""Files and maps that change while they are read in passes are noticed; other paths than those that
were given are not read."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from streams import CHUNK_ROWS, A, model, save, sharded, tight

from fastnmf import InvalidInput
from fastnmf.data import shards
from fastnmf.solvers.registry import SOLVERS

pytestmark = pytest.mark.usefixtures("small_budgets")


def in_place():
    np.load("A.npy", mmap_mode="r+")[:] = -1


def replaced():
    np.save("B.npy", A.numpy() * 2)
    os.replace("B.npy", "A.npy")


def cut_off():
    os.truncate("A.npy", os.path.getsize("A.npy") // 2)


CHANGES = {
    "in place": in_place,
    "rewritten": lambda: np.save("A.npy", -A.numpy()),
    "replaced": replaced,
    "cut off": cut_off,
    "removed": lambda: os.unlink("A.npy"),
}


def fit(data, act, **options):
    def callback(info):
        if info.iteration == 2:
            act()

    options = {"max_iter": 4, "chunk_rows": CHUNK_ROWS, "max_memory": tight(), **options}
    fitted = model(**options)
    factors = fitted.fit(data, callback=callback, codes="Z.npy")
    assert fitted.fit_info_.chunk_rows == CHUNK_ROWS
    return factors


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "A.npy", A)
    return tmp_path


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["path", "fortran", "folder"])
def test_file_that_changes_while_it_is_read_is_named(kind, change, here):
    if kind == "fortran":
        np.save("A.npy", np.asfortranarray(A))
    data = str(here) if kind == "folder" else "A.npy"
    codes = here.parent / f"{here.name}-Z.npy"
    fitted = model(max_iter=4, chunk_rows=CHUNK_ROWS, max_memory=tight("file"))

    def callback(info):
        if info.iteration == 2:
            CHANGES[change]()

    with pytest.raises(InvalidInput, match=r"A\.npy (has changed|was removed) while it was read"):
        fitted.fit(data, callback=callback, codes=codes)
    assert not codes.exists()


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_notices(solver, here):
    with pytest.raises(InvalidInput, match=r"A\.npy has changed while it was read"):
        fit("A.npy", in_place, solver=solver)


@pytest.mark.parametrize("change", ["in place", "rewritten"])
def test_file_of_a_map_that_changes_is_named(change, here):
    A = np.load("A.npy", mmap_mode="r")
    with pytest.raises(InvalidInput, match=r"A\.npy, of which A is a map, has changed"):
        fit(A, CHANGES[change])


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_map_stays_that_of_a_file_that_lost_its_name(change, here):
    expected = fit(np.load("A.npy", mmap_mode="r"), lambda: None)
    kept = [F.clone() for F in expected]
    for F, its in zip(fit(np.load("A.npy", mmap_mode="r"), CHANGES[change]), kept, strict=True):
        assert torch.equal(F, its)


def test_values_that_change_are_noticed_where_the_file_system_does_not_show_it(here):
    def act():
        before = os.stat("A.npy")
        np.load("A.npy", mmap_mode="r+")[2000, 3] = 0.123
        os.utime("A.npy", ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(InvalidInput, match=r"rows \d+ to \d+ of A.npy are not what they were"):
        fit("A.npy", act)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(7, dtype=np.float16).reshape(7, 1),
        np.arange(12, dtype=np.int8).reshape(3, 4)[:, ::2],
        np.arange(6, dtype=np.longdouble).reshape(2, 3),
        torch.arange(9.0).reshape(3, 3).bfloat16().T,
    ],
)
def test_checksum_is_that_of_the_values(values):
    copy = values.clone() if isinstance(values, torch.Tensor) else values.copy()
    assert shards._checksum(copy) == shards._checksum(values)
    copy[1, 0] += 1
    assert shards._checksum(copy) != shards._checksum(values)


@pytest.mark.parametrize("data", ["A.npy", ["A.npy"], "shards", ["shards/part-0.npy", "A.npy"]])
def test_paths_are_those_of_the_start_whatever_the_working_directory(data, here):
    sharded(here / "shards")
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    options = {"max_iter": 4, "chunk_rows": CHUNK_ROWS, "checkpoint_seconds": 0}

    def leave(info):
        os.chdir(elsewhere)

    expected = model(max_memory=tight("file"), **options).fit(data, codes="Y.npy")
    fitted = model(max_memory=tight("file"), **options)
    D = fitted.fit(data, codes="Z.npy", checkpoint="fit.safetensors", callback=leave)[1]
    assert fitted.fit_info_.codes == str(here / "Z.npy")
    assert os.listdir(elsewhere) == []
    assert {"Z.npy", "fit.safetensors"} <= {*os.listdir(here)}
    assert torch.equal(D, expected[1])
