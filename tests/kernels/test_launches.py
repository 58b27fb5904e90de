"""What an iteration launches on a CUDA device, and that the host waits for none of it. The tensors
are fake device tensors of torch, without memory, so no device is needed."""

from __future__ import annotations

import types

import pytest
import torch
from pretend_cuda.guard import set_guard
from tape import Refusing, tensors

from fastnmf.backends.registry import BACKENDS
from fastnmf.backends.torch import REFERENCE
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.iteration import Step
from fastnmf.engine.state import Method, State
from fastnmf.planning.beside import plan_beside
from fastnmf.planning.inner import accelerated
from fastnmf.planning.plan import Problem, Tuning
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties
from fastnmf.solvers.registry import SOLVERS

triton = pytest.importorskip("triton", reason="triton is not installed")
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

# operations that only make memory, or see it otherwise
_NO_LAUNCH = {"empty", "new_empty", "empty_like", "new_empty_strided", "detach", "_unsafe_view"}


class Launches(Refusing):
    """Counts what is launched. Raises where the host would wait for the device."""

    def __init__(self):
        super().__init__()
        self.of_torch, self.of_triton = [], []

    def do(self, func, args, kwargs):
        out = func(*args, **kwargs)
        devices = {tensor.device.type for tensor in tensors(args, kwargs, out)}
        name = func.overloadpacket.__name__
        assert devices <= {"cuda"}, f"{func} goes from one device to another"
        if func.namespace == "aten" and not func.is_view and name not in _NO_LAUNCH:
            self.of_torch.append(name)
        return out

    @property
    def counts(self):
        return len(self.of_torch), len(self.of_triton)


@pytest.fixture
def device(monkeypatch):
    """A device of 132 processors that Triton launches on; gives the counts of who is counting."""
    sizes = {"multi_processor_count": 132, "total_memory": 80 << 30}
    card = types.SimpleNamespace(name="NVIDIA H100 80GB HBM3", **sizes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    counting = []

    def launch(kernel, *_, **__):
        for launches in counting:
            launches.of_triton.append(kernel.__name__)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", launch)
    return counting


def iteration(device, solver, *, backend="triton", accelerates=False, penalties=NO_PENALTIES):
    """The launches of an iteration at n = 63,700, d = 2,048, K = 10, by the plan of a fit."""
    n, d, K = 63_700, 2_048, 10
    # so that a torch that is built without CUDA indexes them
    set_guard()
    with FakeTensorMode():
        A, Z, D = (torch.empty(*size, device="cuda") for size in ((n, d), (n, K), (K, d)))
        problem = Problem(n, d, K, 4, SOLVERS[solver])
        plan = plan_beside(A, problem, backend, Tuning(), 70 << 30)
        if accelerates:
            plan = accelerated(plan, problem)
        assert plan.form == "normal"
        ops = {**REFERENCE, **BACKENDS[backend].load()}
        method = Method(SOLVERS[solver], backend, ops, penalties=penalties)
        state = State(InMemory(Z), D)
        step = Step(state, Data(A), method, plan, allowed="highest", waits=False)
        # in the first, some of what is kept is made
        step()
        with Launches() as launches:
            device.append(launches)
            step()
    return launches.counts


# of torch, of Triton
@pytest.mark.parametrize(
    ("solver", "accelerates", "expected"),
    [
        ("hals", False, (11, 4)),
        ("mu", False, (13, 4)),
        ("pgd", False, (185, 12)),
        ("hals", True, (50, 4)),
        ("mu", True, (61, 18)),
        ("pgd", True, (259, 54)),
    ],
)
def test_an_iteration_of_few_concepts_takes_few_launches(device, solver, accelerates, expected):
    assert iteration(device, solver, accelerates=accelerates) == expected


PENALISED = {
    "penalised": Penalties(0.1, 0.1, 0.5),
    "unit norm": Penalties(0.1, 0, 0.5, True),
}


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("penalties", PENALISED)
@pytest.mark.parametrize("solver", ["hals", "mu", "pgd"])
def test_no_iteration_waits_for_the_device(device, solver, penalties, backend):
    of_torch, _ = iteration(device, solver, backend=backend, penalties=PENALISED[penalties])
    assert of_torch > 0
