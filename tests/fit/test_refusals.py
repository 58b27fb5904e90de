"""Files that are read, by whatever name or map, are not written; two calls never write one file."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from fits import nmf, rows_of_five_concepts
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import NMF, InvalidInput
from fastnmf.files import write_matrix

linux = pytest.mark.skipif(sys.platform != "linux", reason="maps are looked up in /proc")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with A.npy and A.safetensors, where the test runs."""
    monkeypatch.chdir(tmp_path)
    A = rows_of_five_concepts()
    np.save("A.npy", A.numpy())
    safetensors.torch.save_file({"A": A}, "A.safetensors")
    os.mkdir("folder")
    os.symlink("../A.npy", "folder/part.npy")
    os.symlink("A.npy", "link.npy")
    os.link("A.npy", "hard.npy")
    return tmp_path


def mapped():
    return np.load("A.npy", mmap_mode="r")


def shape():
    return np.load("A.npy").shape


INPUTS = {
    "path": lambda: "A.npy",
    "another way to write it": lambda: "folder/../A.npy",
    "list": lambda: ["A.npy", "A.npy"],
    "link to it": lambda: "link.npy",
    "hard link": lambda: "hard.npy",
    "folder with a link to it": lambda: "folder",
    "map": mapped,
    "part of a map": lambda: mapped()[::2, ::-1],
    "transposed map": lambda: mapped().T.T,
    "array over a map": lambda: np.asarray(mapped())[3:],
    "array of the bytes of a map": lambda: np.frombuffer(mapped(), np.float32).reshape(shape()),
    "copy-on-write map": lambda: np.load("A.npy", mmap_mode="c"),
    "list of maps": lambda: [mapped(), mapped()],
    "tensor over a map": lambda: torch.from_numpy(np.load("A.npy", mmap_mode="r+"))[1:],
    "loader of a map": lambda: DataLoader(
        TensorDataset(torch.from_numpy(np.load("A.npy", mmap_mode="c"))), batch_size=9
    ),
}
# what only the table of maps shows
OF_LINUX = {"array of the bytes of a map", "tensor over a map", "loader of a map"}


@pytest.mark.parametrize("kind", INPUTS)
def test_input_is_not_overwritten_whatever_way_it_is_given(kind, here):
    if kind in OF_LINUX and sys.platform != "linux":
        pytest.skip("maps are looked up in /proc")
    A, before = INPUTS[kind](), (here / "A.npy").read_bytes()
    model = NMF(5, max_iter=2, seed=0)
    model.load_dictionary(np.load("A.npy")[:5])
    calls = [lambda codes: model.encode(A, codes=codes)]
    calls += [lambda codes: NMF(5, max_iter=2).fit(A, codes=codes)]
    # link.npy is a name of A.npy, and a new file in a folder would be a shard of it
    names = ["A.npy", "link.npy"] + (["folder/Z.npy"] if kind.startswith("folder") else [])
    for call in calls:
        for name in names:
            with pytest.raises(InvalidInput, match=r"is to be written, but .* is read"):
                call(name)
    assert (here / "A.npy").read_bytes() == before
    assert sorted(os.listdir()) == ["A.npy", "A.safetensors", "folder", "hard.npy", "link.npy"]


@pytest.mark.parametrize(
    "data",
    [
        lambda: "A.safetensors",
        lambda: ["A.npy", "A.safetensors"],
        pytest.param(lambda: safetensors.torch.load_file("A.safetensors")["A"], marks=linux),
    ],
)
def test_checkpoint_does_not_take_the_place_of_the_data(data, here):
    before = (here / "A.safetensors").read_bytes()
    A = data()
    if isinstance(A, torch.Tensor) and "A.safetensors" not in open("/proc/self/maps").read():
        pytest.skip("safetensors has read the file, and not mapped it")
    with pytest.raises(InvalidInput, match="is to be written, but"):
        NMF(5, max_iter=2).fit(A, checkpoint="A.safetensors")
    assert (here / "A.safetensors").read_bytes() == before


def test_starts_and_codes_are_inputs_too(here):
    D = NMF(5, max_iter=2).fit("A.npy", codes="Z.npy")[1]
    before, Z_too = (here / "Z.npy").read_bytes(), np.load("Z.npy", mmap_mode="r")
    model = NMF(5).load_dictionary(D)
    for call in (
        lambda: NMF(5, init=(Z_too, D)).fit("A.npy", codes="Z.npy"),
        lambda: model.encode("A.npy", Z0=Z_too, codes="Z.npy"),
        lambda: model.decode(Z_too, out="Z.npy"),
        lambda: model.decode("Z.npy", out="Z.npy"),
    ):
        with pytest.raises(InvalidInput, match="is to be written, but"):
            call()
    assert (here / "Z.npy").read_bytes() == before


def test_codes_of_a_checkpoint_are_not_the_file_of_codes_nor_data(here):
    os.rename("A.npy", "fit.codes-b.npy")
    with pytest.raises(InvalidInput, match="a name of codes of the checkpoint"):
        NMF(5).fit("fit.codes-b.npy", checkpoint="fit.safetensors")
    with pytest.raises(InvalidInput, match="a name of codes of the checkpoint"):
        NMF(5).fit("A.safetensors", codes="fit.codes-a.npy", checkpoint="fit.safetensors")


@linux
def test_map_of_a_file_may_be_written_over_by_itself(here):
    """The new file is complete before it takes the place, and the map stays that of the old one."""
    A = np.load("A.npy", mmap_mode="r")
    write_matrix("A.npy", A[::-1])
    np.testing.assert_array_equal(np.load("A.npy"), A[::-1])
    # the file that A is a map of has no name any more
    NMF(5, max_iter=1).fit(torch.from_numpy(np.array(A)), codes="A.npy")


@pytest.mark.parametrize("option", ["codes", "checkpoint"])
def test_second_fit_with_the_same_file_is_refused_at_its_start(option, here):
    A = rows_of_five_concepts()
    name = "Z.npy" if option == "codes" else "fit.safetensors"
    begun, ends, found = threading.Event(), threading.Event(), []

    def wait(info):
        begun.set()
        assert ends.wait(60)

    options = {"seed": 0, "tol": 0, "max_iter": 3, "checkpoint_seconds": 0}

    def first():
        found.append(nmf(5, **options).fit(A, callback=wait, **{option: name}))

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    with pytest.raises(InvalidInput, match=rf"{name} is being written by another call in this"):
        nmf(5, **options).fit(A, callback=lambda _: pytest.fail("it began"), **{option: name})
    ends.set()
    thread.join()
    expected = nmf(5, **options).fit(A)
    for F, its in zip(found[0], expected, strict=True):
        assert torch.equal(F, its)
    assert {"A.npy", "A.safetensors", "folder", "hard.npy", "link.npy", name} == {*os.listdir()}
    # and then it may
    nmf(5, **options).fit(A, **{option: name})


def test_codes_that_are_returned_are_those_of_the_call(here):
    """Whatever takes the place of the file afterwards."""
    A = rows_of_five_concepts()
    Z = NMF(5, max_iter=2, seed=0).fit(A, codes="Z.npy")[0]
    kept = Z.clone()
    NMF(5, max_iter=2, seed=1).fit(A, codes="Z.npy")
    assert torch.equal(Z, kept)


# of 60 kB, less than what is written
FULL = """
import os, resource, signal, sys
import numpy as np, torch
from fastnmf import NMF, Tuning
from fastnmf.files import write_matrix
from fastnmf.fit.signals import Interrupts
os.chdir(sys.argv[1])
A, wide = torch.rand(3000, 10), torch.rand(30, 1000)
model = NMF(8, seed=0, max_iter=2, tol=0).load_dictionary(torch.rand(8, 10))
large = NMF(30).load_dictionary(torch.rand(30, 1000))
often = NMF(30, seed=0, max_iter=3, tol=0, tuning=Tuning(checkpoint_seconds=0))
calls = {
    "fit.npy": lambda name: model.fit(A, codes=name),
    "encode.npy": lambda name: model.encode(A, codes=name),
    "decode.npy": lambda name: model.decode(torch.rand(3000, 8), out=name),
    "model.safetensors": large.save,
    "fit.safetensors": lambda name: often.fit(wide, checkpoint=name),
}
names = [f"A{suffix}" for suffix in (".npy", ".npz", ".pt", ".pth", ".safetensors", ".csv", ".tsv")]
calls |= {name: lambda name: write_matrix(name, wide) for name in names}
for name, call in calls.items():
    if name == "fit.safetensors":
        often.fit(wide[:, :30], checkpoint=name)
    else:
        open(name, "w").write("as it was")
before = {name: open(name, "rb").read() for name in os.listdir(".")}
for name, call in calls.items():
    # the file size beyond which writing fails; Python ignores the signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    try:
        call(name)
        print(name, "was written")
    except OSError as error:
        if name not in str(error) or "part" in str(error):
            print(name, "is not named:", error)
    except BaseException as error:
        print(name, type(error), error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
after = {name: open(name, "rb").read() if os.path.isfile(name) else "" for name in os.listdir(".")}
print([name for name in {*before, *after} if before.get(name) != after.get(name)])
"""


@linux
def test_full_disk_is_an_os_error_and_leaves_everything_as_it_was(tmp_path, fresh):
    ran = fresh(FULL, str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[]\n"
