"""The extension for CUDA on a pretended device: it gets addresses of memory on the device, sizes
that lie in it, and the current stream, and computes what the reference does. Its kernels are those
of csrc/cuda, compiled for the CPU (tests/emulated.py)."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest
import torch
from emulated import build, installed

import fastnmf
from pretend_cuda import on_cuda
from pretend_cuda.cases import assert_alike, drawn, model

pytestmark = pytest.mark.compiles
SIZES = {"float32": 4, "float64": 8, "int32": 4, "uint8": 1}


class Checked:
    """fastnmf._cuda, with its arguments checked against the memory and the streams of a device."""

    def __init__(self, module, device):
        self._module, self._device, self.streams = module, device, []

    def __getattr__(self, name):
        return getattr(self._module, name)

    def nnls(self, F, C, gram, limits, report, sums, workspace, place):
        unit, scale, index = gram
        writes = [self.block(X) for X in (F, report, sums, workspace)]
        reads = [self.block(X) for X in (C, unit, scale, index) if X is not None]
        number, stream = place
        assert number == 0
        assert stream == self._device.stream.number
        self.streams.append(stream)
        self._device.launched.append("nnls")
        self._device.order.launch(self._device.stream, reads, writes, "nnls")
        return self._module.nnls(F, C, gram, limits, report, sums, workspace, place)

    def block(self, view):
        address, shape, strides, dtype = view
        if 0 in shape:
            return self._device.order.at(address, 0)
        last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        assert math.prod(shape) > 0
        return self._device.order.at(address, (last + 1) * SIZES[dtype])


@pytest.fixture
def extension(once, device, monkeypatch):
    # built by the process that started this one
    built = os.environ.get("EMULATED_CUDA") or once("emulated", build)
    with installed(Path(built) / "_cuda.so", "cuda") as found:
        checked = Checked(found.module, device)
        monkeypatch.setattr(sys.modules["fastnmf.backends.cuda"], "_cuda", checked)
        yield checked


@pytest.mark.parametrize(("n", "K"), [(5, 3), (4, 20)])
def test_exact_codes_are_those_of_the_reference(n, K, extension):
    A, D = drawn(n, 12), drawn(K, 12, 1)
    Z = fastnmf.nnls(on_cuda(A), on_cuda(D), backend="cuda")
    assert Z.is_cuda
    assert extension.streams
    assert_alike([Z @ on_cuda(D)], [fastnmf.nnls(A, D, backend="torch") @ D], 1e-5)


@pytest.mark.parametrize("form", ["normal", "residual"])
def test_an_exact_fit_is_that_of_the_reference(form, extension, device):
    """And the host waits a few times in an iteration."""
    A, waits = drawn(6, 8), []
    for iterations in (1, 3):
        options = {"solver": "anls", "tuning": {"form": form}, "init": "random"}
        before = len(device.waits)
        given = model("cuda", 3, **options, backend="cuda")
        Z, D = given.fit(on_cuda(A), max_iter=iterations)
        waits.append(len(device.waits) - before)
        expected = model("cpu", 3, **options).fit(A, max_iter=iterations)
        assert given.fit_info_.backend == "cuda"
        assert_alike([Z @ D], [expected[0] @ expected[1]], 1e-4)
    assert (waits[1] - waits[0]) / 2 <= MOST_WAITS[form]


# of an iteration: for the reports of both halves, and in residual form once in a round of the
# working sets, of which a half has two or three here
MOST_WAITS = {"normal": 2, "residual": 8}


def test_it_runs_on_the_current_stream(extension):
    A, D, aside = on_cuda(drawn(5, 12)), on_cuda(drawn(3, 12, 1)), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        fastnmf.nnls(A, D, backend="cuda")
        assert set(extension.streams) == {torch.cuda.current_stream().cuda_stream} != {0}
    torch.cuda.synchronize()


def test_memory_of_the_host_is_not_taken_for_that_of_the_device(extension):
    """The check is checked itself."""
    from fastnmf.backends.pointers import view

    assert extension.block(view(on_cuda(drawn()))).on_device
    with pytest.raises(LookupError, match="not on the device"):
        extension.block(view(drawn()))
    freed = view(on_cuda(drawn()))
    with pytest.raises(LookupError):
        extension.block(freed)
