import pytest
import torch

from fastnmf import InvalidInput
from fastnmf.selection.runs import Run, Runs


def test_stored_fits_are_not_made_again(tmp_path):
    path = tmp_path / "runs.safetensors"
    run = Run(torch.rand(2, 3), {"relative_error": 0.5})
    Runs(path, {"n": 4}, 7, resume=False).get("0", lambda: run)
    again = Runs(path, {"n": 4}, None, resume=True)
    found = again.get("0", lambda: pytest.fail("made again"))
    assert torch.equal(found.D, run.D)
    assert (found.numbers, again.seed) == (run.numbers, 7)


def test_another_call_and_other_files_are_refused(tmp_path):
    import safetensors.torch

    path = tmp_path / "runs.safetensors"
    Runs(path, {"n": 4}, 7, resume=False).get("0", lambda: Run(torch.rand(2, 3), {}))
    for identity, seed, text in [({"n": 5}, 7, "n=4, this one has 5"), ({"n": 4}, 8, "seed=7")]:
        with pytest.raises(InvalidInput, match=text):
            Runs(path, identity, seed, resume=True)
    for resume in (True, False):
        safetensors.torch.save_file({"D": torch.rand(2)}, path)
        with pytest.raises(InvalidInput, match="holds D, and no fits"):
            Runs(path, {"n": 4}, 7, resume=resume)
        path.write_bytes(b"0")
        with pytest.raises(InvalidInput, match=r"cannot be read .* or remove it"):
            Runs(path, {"n": 4}, 7, resume=resume)
    with pytest.raises(InvalidInput, match="must end in"):
        Runs(tmp_path / "runs.npy", {"n": 4}, 7, resume=False)
