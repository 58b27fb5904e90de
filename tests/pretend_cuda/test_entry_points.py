"""All other ways into the package on a pretended device: kinds of data, files, online learning,
checkpoints, models that move, exact least squares, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fastnmf
from fastnmf import NMF
from fastnmf.planning.memory import Needs
from pretend_cuda import MixedDevices, on_cuda, on_host, pretend
from pretend_cuda.cases import assert_same_on_device, drawn, model

slow = pytest.mark.compiles
OFTEN = {"checkpoint_seconds": 0}


def test_data_of_the_host_are_copied_to_the_device():
    kinds = [
        lambda A: A.numpy(),
        lambda A: A.numpy().astype("float16"),
        lambda A: [A[:7], A[7:]],
        lambda A: DataLoader(TensorDataset(A), batch_size=7),
    ]
    host = drawn()
    for kind in kinds:
        assert_same_on_device(
            lambda device, _, kind=kind: model(device).fit(kind(host), max_iter=1)
        )


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "A.npy", drawn(400, 12).numpy())
    return tmp_path / "A.npy"


@pytest.mark.parametrize("codes", ["memory", "file", pytest.param(None, marks=slow)])
def test_files_are_read_in_chunks_by_another_stream(codes, file, tmp_path, small_budgets):
    """A chunk is read after its copy, and its buffer is written after it, too."""

    def run(device, _):
        most = Needs(400, 12, 4, 4, codes or "none").streamed(64)
        nmf = model(device, init="random", max_memory=most)
        to = str(tmp_path / f"Z_{device}.npy") if codes == "file" else codes
        Z, D = nmf.fit(file, max_iter=2, codes=to)
        assert nmf.fit_info_.passes > 2
        assert nmf.encode(file, max_iter=2, codes=str(tmp_path / f"E_{device}.npy")) is not None
        encoded = torch.from_numpy(np.load(tmp_path / f"E_{device}.npy"))
        kept = [] if codes is None else [torch.as_tensor(np.asarray(Z)) if codes == "file" else Z]
        return (*kept, D, encoded)

    device = assert_same_on_device(run)
    # the stream of the copies is another one
    assert sum(stream.launches > 0 for stream in device.order.streams) == 3


def test_online_learning_is_that_of_the_cpu():
    def run(device, A):
        nmf = model(device)
        for batch in A.split(10):
            nmf.partial_fit(batch)
        return nmf.D, nmf.encode(A[:4], max_iter=2)

    assert_same_on_device(run)


def test_a_fit_goes_on_from_its_checkpoint(tmp_path):
    def run(device, A):
        where, often = {"checkpoint": tmp_path / f"{device}.safetensors"}, {"tuning": OFTEN}
        model(device, **often).fit(A, max_iter=2, **where)
        return model(device, **often).fit(A, max_iter=4, resume=True, **where)

    assert_same_on_device(run)


def test_a_checkpoint_of_the_device_is_refused_on_the_host(tmp_path):
    A, where = drawn(), {"checkpoint": tmp_path / "a.safetensors"}
    with pretend():
        model("cuda", tuning=OFTEN).fit(on_cuda(A), max_iter=2, **where)
    with pytest.raises(fastnmf.InvalidInput, match="device='cuda' there, 'cpu' here"):
        model("cpu").fit(A, max_iter=4, resume=True, **where)


def test_models_move_and_are_saved(tmp_path):
    A = drawn()
    fitted = model("cpu")
    fitted.fit(A, max_iter=3)
    expected = fitted.encode(A[:4], max_iter=3)
    with pretend():
        moved = fitted.to("cuda")
        Z = moved.encode(on_cuda(A[:4]), max_iter=3)
        assert Z.is_cuda
        assert torch.allclose(on_host(Z), expected, atol=1e-6)
        assert moved.decode(Z).is_cuda
        moved.save(tmp_path / "model.safetensors")
        loaded = NMF.load(tmp_path / "model.safetensors", device="cuda")
        assert loaded.D.is_cuda
        assert torch.equal(on_host(loaded.D), on_host(moved.D))
        back = moved.to("cpu")
    assert torch.equal(back.encode(A[:4], max_iter=3), expected)


def test_dictionaries_starts_and_codes_of_the_host_are_taken_along():
    def run(device, A):
        g = torch.Generator().manual_seed(0)
        Z0, D0 = torch.rand(len(A), 4, generator=g), torch.rand(4, A.shape[1], generator=g)
        Z, D = model(device, init=(Z0, D0)).fit(A, max_iter=2)
        loaded = model(device).load_dictionary(D0)
        return Z, D, loaded.encode(A, max_iter=2), loaded.encode(A, max_iter=2, Z0=Z0)

    assert_same_on_device(run)


@pytest.mark.parametrize("K", [3, pytest.param(10, marks=pytest.mark.compiles)])
def test_exact_least_squares_is_that_of_the_cpu(K):
    def run(device, A):
        return (fastnmf.nnls(A[:6], A[10 : 10 + K], backend="torch"),)

    assert_same_on_device(run)


def test_a_solver_as_a_function_mixes_no_devices(device):
    """Z of the host beside A on the device is an error of torch, or of fastnmf; never a copy."""
    A = on_cuda(drawn())
    with pytest.raises((MixedDevices, fastnmf.InvalidInput, RuntimeError, ValueError)):
        model("cuda").fit(A, max_iter=1)[0] @ drawn(4, 12)
