"""A save of a fit: what is written is what is read. Damaged files are in test_checkpoint.py."""

from __future__ import annotations

import pytest
import torch

from fastnmf.data.locks import working_folder
from fastnmf.data.storage import InMemory, NotKept
from fastnmf.engine.state import Iteration, State
from fastnmf.fit.saves import Save, number_of, write
from fastnmf.planning.plan import Plan

PLAN = Plan("residual", "normal", 7, 11, 13.0, accelerates=True, inner=(2, 3), splits=True)


def state(Z):
    """With a value in every field that is saved which is not its default."""
    generator = torch.Generator().manual_seed(0)
    D, E = (torch.rand(*size, generator=generator) for size in ((3, 4), (5, 4)))
    return State(
        Z,
        D,
        E,
        history=[Iteration(1, 0.5, 0.25, 1.5, relative_objective=0.3)],
        iterations_since_fresh=2,
        refresh=4,
        drifts=[1e-3, 2e-3],
        carried={"swept": torch.rand(5, 3, generator=generator), "norms": D.norm(dim=1)},
        revived=6,
    )


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_read_is_what_was_written(kept, tmp_path):
    path = tmp_path / "fit.safetensors"
    Z = InMemory(torch.rand(5, 3)) if kept else NotKept()
    written = state(Z)
    with working_folder(path) as folder:
        write(path, folder, written, PLAN, {"settings": '{"seed": 1}', "save": "12-ab"})
    save = Save.found(path)
    assert (save.name, save.number, save.settings, save.codes) == ("12-ab", 12, {"seed": 1}, None)
    plan, read = save.read(torch.device("cpu"), None if kept else Z)
    assert plan == PLAN
    if kept:
        assert torch.equal(read.codes, written.codes)
    else:
        assert read.Z is Z
    assert torch.equal(read.D, written.D)
    assert torch.equal(read.E, written.E)
    assert read.carried.keys() == written.carried.keys()
    assert all(torch.equal(read.carried[name], F) for name, F in written.carried.items())
    for name in ("history", "iterations_since_fresh", "refresh", "drifts", "revived"):
        assert getattr(read, name) == getattr(written, name)


def test_saves_have_numbers():
    assert [number_of(name) for name in ("", "1-aa", "10-bb")] == [0, 1, 10]
