"""Working folders: one writer at a time, and nothing left of a killed one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch

from fastnmf import NMF, InvalidInput
from fastnmf.data import locks
from fastnmf.data.locks import working_folder
from fastnmf.files import read_matrix, write_matrix

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not here")
FOLDER = ".fastnmf-Z.npy"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Z.npy"


@pytest.fixture(params=["locks", "no locks"])
def system(request, monkeypatch):
    """File systems with locks, and without."""
    if request.param == "no locks":

        def refuse(*_):
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    return request.param


def killed_within(act):
    """Call act() in a child process, which is killed in it."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def left_by_a_killed_process(path):
    def act():
        with working_folder(path) as place:
            place.part(".npy").write_bytes(b"half of it")
            (place.folder / ".tmpAb12").touch()
            kill_me()

    killed_within(act)


def test_folder_is_removed_at_the_end_and_after_an_error(path, tmp_path, system):
    with working_folder(path) as place:
        assert os.listdir(tmp_path) == [FOLDER]
        place.part(".npy").touch()
    assert os.listdir(tmp_path) == []
    with contextlib.suppress(ZeroDivisionError), working_folder(path) as place:
        place.part(".npy").touch()
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_second_writer_is_refused_while_the_first_works(path, system):
    with working_folder(path):
        for brief in (False, True):
            with pytest.raises(InvalidInput, match=r"Z.npy is being written by .*another name"):
                with working_folder(path, brief=brief):
                    raise AssertionError
    with working_folder(path):
        pass


@forks
def test_second_process_is_refused_and_told_of_the_first(path, system):
    with working_folder(path):
        child = os.fork()
        if not child:
            try:
                with pytest.raises(InvalidInput, match=f"process {os.getppid()} on "):
                    with working_folder(path):
                        pass
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


@forks
def test_what_a_killed_process_left_is_removed_by_the_next(path, tmp_path, system):
    left_by_a_killed_process(path)
    assert sorted(os.listdir(tmp_path / FOLDER))[0] == ".tmpAb12"
    with working_folder(path) as place:
        kept = {"owner"} | ({"taken"} if system == "no locks" else set())
        assert {*os.listdir(place.folder)} == kept
    assert os.listdir(tmp_path) == []


@forks
def test_any_save_to_the_place_removes_what_was_left(path, tmp_path):
    left_by_a_killed_process(path)
    write_matrix(path, np.eye(2))
    assert os.listdir(tmp_path) == ["Z.npy"]
    model = NMF(2).load_dictionary(torch.eye(2))
    left_by_a_killed_process(tmp_path / "m.safetensors")
    model.save(tmp_path / "m.safetensors")
    left_by_a_killed_process(path)
    model.encode(torch.rand(3, 2), codes=path)
    left_by_a_killed_process(path)
    model.decode(torch.rand(3, 2), out=path)
    assert sorted(os.listdir(tmp_path)) == ["Z.npy", "m.safetensors"]


@forks
def test_fork_does_not_keep_the_lock_of_a_killed_parent(path, tmp_path):
    """Nor does a child that leaves the context remove the folder."""
    ready, told = os.pipe()
    ends, goes_on = os.pipe()

    def act():
        with working_folder(path):
            if os.fork():
                kill_me()
        os.close(goes_on)
        os.write(told, b"." if (tmp_path / FOLDER).exists() else b"x")
        # until the test is over
        os.read(ends, 1)

    killed_within(act)
    assert os.read(ready, 1) == b"."
    with working_folder(path):
        pass
    assert os.listdir(tmp_path) == []
    for end in (ready, told, ends, goes_on):
        os.close(end)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("other", "taken_over"),
    [
        # the id is that of another process by now
        ({"started": 1}, True),
        ({"host": "elsewhere"}, False),
        ({}, False),
    ],
)
def test_without_locks_only_a_process_known_to_have_ended_is_replaced(
    other, taken_over, path, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    folder = tmp_path / FOLDER
    folder.mkdir()
    record = {**locks._this_process(), "brief": False, **other}
    (folder / "owner").write_text(json.dumps(record))
    (folder / "taken").touch()
    if taken_over:
        with working_folder(path):
            pass
        assert os.listdir(tmp_path) == []
    else:
        with pytest.raises(InvalidInput, match="being written"), working_folder(path):
            pass
        assert {*os.listdir(folder)} == {"owner", "taken"}


@pytest.mark.parametrize("name", [".Z.npy.part", FOLDER])
def test_folder_of_the_user_is_left_alone(name, path, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    if name == FOLDER:
        with pytest.raises(InvalidInput, match="not of its making; move it away"):
            write_matrix(path, np.eye(2))
    else:
        write_matrix(path, np.eye(2))
        NMF(2, max_iter=2).fit(torch.rand(5, 4), codes=path)
    assert (tmp_path / name / "notes.txt").read_text() == "mine"


def test_notes_outlive_their_writer(path, tmp_path):
    with working_folder(path) as place:
        place.note("a.npy")
        place.note("b.npy")
        place.forget("b.npy")
    with working_folder(path) as place:
        assert place.noted() == ["a.npy"]
        place.forget("a.npy")
    assert os.listdir(tmp_path) == []


def test_names_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / f"{'n' * 251}.npy"
    write_matrix(path, np.eye(2))
    assert os.listdir(tmp_path) == [path.name]


def test_threads_that_save_to_one_place_wait_for_each_other(path, tmp_path):
    faults = []

    def save(number):
        try:
            for _ in range(20):
                write_matrix(path, np.full((50, 40), number))
                assert len(np.unique(read_matrix(path))) == 1
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert os.listdir(tmp_path) == ["Z.npy"]
