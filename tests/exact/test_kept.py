"""Codes of few rows, for which what depends on the dictionary is kept: never those of another
dictionary, however it was changed."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import textwrap
import threading
import weakref

import pytest
import torch
from fits import nmf
from oracle import problem
from torch.utils._python_dispatch import TorchDispatchMode

from fastnmf import NMF, InvalidInput, nnls
from fastnmf.exact import kept
from fastnmf.exact.encoder import ExactEncoder
from fastnmf.exact.kept import _kept
from fastnmf.exact.least_squares import LeastSquares
from fastnmf.results.encoding import kkt_residual
from fastnmf.solvers.penalties import Penalty

PENALTIES = [{}, {"alpha_Z": 0.01, "l1_ratio": 0.5}]


def data(m=3, d=24, K=8, dtype=torch.float32, seed=0):
    A, _, D = problem(m, d, K, seed=seed)
    return torch.tensor(A, dtype=dtype), torch.tensor(D, dtype=dtype)


def loaded(D, **options):
    return NMF(len(D), **options).load_dictionary(D)


def usual(model, A, **options):
    """Codes by the way that many rows take: it alone gives the info."""
    return model.encode(A, return_info=True, **options)[0]


@pytest.fixture
def only_kept(monkeypatch):
    """Codes come by what is kept, or not at all."""

    def refuse(*_):
        raise AssertionError("the usual way was taken")

    return lambda: monkeypatch.setattr(ExactEncoder, "__call__", refuse)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "d", "K"), [(1, 24, 8), (16, 24, 8), (2, 9, 20)])
@pytest.mark.parametrize("method", ["auto", "exact"])
def test_codes_are_those_of_many_rows(penalty, dtype, m, d, K, method, only_kept):
    A, D = data(m, d, K, dtype)
    A[-1, : d // 2] = 0
    D[1] = 0
    model = loaded(D, **penalty)
    expected = usual(model, A, method=method)
    only_kept()
    for _ in range(2):
        Z = model.encode(A, method=method)
        assert Z.dtype == dtype
        torch.testing.assert_close(Z, expected)
    penalised = model._options().penalties.of_codes(d)
    kkt = kkt_residual(A, D, Z, penalised)
    assert float(kkt.max()) < (1e-6 if dtype == torch.float32 else 1e-11)
    torch.testing.assert_close(model.encode(A[0], method=method), expected[0])
    assert not model.encode(torch.zeros_like(A), method=method).any()


def by_numpy(model):
    model.D.numpy()[2] *= 3


def by_data(model):
    model.D.data.mul_(torch.linspace(1, 2, len(model.D))[:, None])


def by_other_data(model):
    model.D.data = model.D.flip(0).contiguous()


def by_one_entry(model):
    model.D[0, 0] = 5


def by_inference(model):
    with torch.inference_mode():
        model.D[1].zero_()


def by_state(model):
    model.load_state_dict({"D": model.D.flip(1)})


def by_partial_fit(model):
    model.partial_fit(torch.rand(40, model.D.shape[1]))


CHANGES = [
    *(by_numpy, by_data, by_other_data, by_one_entry, by_inference, by_state, by_partial_fit),
    lambda model: model.load_dictionary(model.D * torch.rand(model.D.shape)),
    lambda model: model.fit(torch.rand(40, model.D.shape[1]), 3),
    lambda model: model.double(),
    lambda model: model.half(),
    lambda model: setattr(model, "alpha_Z", 0.5),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_codes_follow_every_change_of_the_dictionary(change):
    A, D = data()
    model = loaded(D)
    before = model.encode(A)
    assert model.D in _kept
    change(model)
    fresh = loaded(model.D.float() if model.D.dtype == torch.float16 else model.D)
    fresh.alpha_Z = model.alpha_Z
    for _ in range(2):
        Z = model.encode(A)
        torch.testing.assert_close(Z, usual(fresh, A).to(Z), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before.double(), Z.double()) or change is CHANGES[-3]


def test_a_dictionary_that_cannot_be_used_any_more_is_refused():
    A, D = data()
    model = loaded(D)
    model.encode(A)
    for wrong in (float("nan"), float("inf"), -1.0):
        model.D[1, 2] = wrong
        with pytest.raises(InvalidInput, match="the dictionary D has entries"):
            model.encode(A)
    model.D[1, 2] = 1
    torch.testing.assert_close(model.encode(A), usual(model, A))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_rows_that_cannot_be_used_are_refused(wrong):
    A, D = data()
    model = loaded(D)
    model.encode(A)
    A[1, 2] = wrong
    with pytest.raises(InvalidInput, match=r"A has 1 .* at row 1, column 2"):
        model.encode(A)


def test_copies_have_their_own_and_nothing_is_saved(tmp_path):
    A, D = data()
    model = loaded(D)
    expected = model.encode(A)
    others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    torch.save(model, tmp_path / "model.pt")
    for other in (*others, torch.load(tmp_path / "model.pt", weights_only=False)):
        assert other.D not in _kept
        assert list(other.state_dict()) == ["D"]
        assert torch.equal(other.encode(A), expected)
        other.D.mul_(2)
        torch.testing.assert_close(other.encode(A), expected / 2)
        assert torch.equal(model.encode(A), expected)


def test_it_goes_with_the_dictionary():
    A, D = data()
    model = loaded(D)
    model.encode(A)
    gone = weakref.ref(_kept[model.D])
    model.load_dictionary(D)
    gc.collect()
    assert gone() is None


# one of them each time: options, kinds of A and sizes for which nothing is kept
OTHERWISE = {
    "sweeps": {"method": "sweeps", "max_iter": 5},
    "start": {"max_iter": 0},
    "Z0": {"Z0": torch.ones(3, 8)},
    "top_k": {"top_k": 2},
}


@pytest.mark.parametrize("named", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_options_of_a_call_are_kept(named):
    A, D = data()
    model = loaded(D)
    model.encode(A)
    assert torch.equal(model.encode(A, **named), usual(model, A, **named))


def test_tuning_is_kept(monkeypatch):
    A, D = data()
    monkeypatch.setattr(kept.KeptRows, "codes", None)
    for options in ({"form": "residual"}, {"max_memory": "1GB"}, {"verbose": True}):
        model = nmf(8, **options).load_dictionary(D)
        torch.testing.assert_close(model.encode(A), loaded(D).encode(A.numpy()))


@pytest.mark.parametrize(("A_is", "D_is"), [(1e25, 1.0), (1e-25, 1e10), (1.0, 1e-30)])
def test_extreme_sizes_are_scaled(A_is, D_is):
    A, D = data()
    model = loaded(D * D_is)
    for _ in range(2):
        assert torch.equal(model.encode(A * A_is), usual(model, A * A_is))


def test_norms_that_differ_very_much_are_exact():
    """The search weighs concepts by their norms, and the KKT residual does not."""
    A, D = data(8)
    D *= torch.logspace(-9, 0, len(D))[:, None]
    model = loaded(D)
    for _ in range(2):
        Z = model.encode(A)
        assert float(kkt_residual(A, D, Z, model._options().penalties.of_codes(24)).max()) < 1e-6


def test_gradients_are_kept():
    A, D = data()
    model = loaded(D)
    model.encode(A)
    A.requires_grad_()
    model.encode(A).sum().backward()
    assert A.grad.any()
    with torch.no_grad():
        assert not model.encode(A).requires_grad


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_the_backend_of_the_moment_computes(backend, monkeypatch):
    A, D = data()
    model = loaded(D)
    model.encode(A)
    monkeypatch.setenv("FASTNMF_BACKEND", "torch")
    model.encode(A)
    assert _kept[model.D].means.backend == "torch"
    monkeypatch.delenv("FASTNMF_BACKEND")
    model.backend = backend
    model.encode(A)
    assert (_kept[model.D].means.backend == "torch") == (
        backend == "torch" or usual_backend() == "torch"
    )


def usual_backend():
    return NMF(1)._options().method_of_codes(torch.device("cpu")).backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modes_of_torch_change_nothing(dtype):
    A, D = data(dtype=dtype)
    model = loaded(D)
    expected = model.encode(A)
    with torch.inference_mode():
        Z = model.encode(A)
        inner = loaded(D)
        inside = A.clone()
        assert torch.equal(inner.encode(inside), expected)
        model.D.mul_(2)
        torch.testing.assert_close(model.encode(A), expected / 2)
        model.D.div_(2)
    assert torch.equal(Z, expected)
    assert not Z.is_inference()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(A), expected)
        assert torch.equal(loaded(D).encode(A), expected)
    with torch.device("meta"):
        assert torch.equal(model.encode(A), expected)


def test_threads_have_the_codes_of_their_rows():
    """Some of them change the dictionaries of their own models, of which all read another too."""
    A, D = data(64)
    shared = loaded(D)
    expected = usual(shared, A)
    steps, wrong = threading.Barrier(4, timeout=60), []

    def work(number):
        own = loaded(D)
        for _ in range(5):
            steps.wait()
            for i in range(number, 64, 4):
                own.D.mul_(2)
                pairs = (shared, expected[i]), (own, expected[i] / 2)
                if not all(torch.allclose(m.encode(A[i]), Z, atol=1e-5) for m, Z in pairs):
                    wrong.append((number, i))
                own.D.div_(2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not steps.broken


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not here")
def test_a_forked_process_has_the_same_codes(fresh):
    code = """
        import os, signal, torch, fastnmf
        torch.set_num_threads(2)
        A, D = torch.rand(1, 9), torch.rand(4, 9)
        model = fastnmf.NMF(4).load_dictionary(D)
        expected = model.encode(A)
        child = os.fork()
        if not child:
            signal.alarm(60)
            same = torch.allclose(model.encode(A), expected)
            model.D.mul_(2)
            same &= torch.allclose(model.encode(A), expected / 2)
            os._exit(0 if same else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(torch.equal(model.encode(A), expected))
        """
    assert fresh(textwrap.dedent(code)).stdout == "0\nTrue\n"


class Counted(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_one_row_takes_few_operations():
    """A call of torch takes 1 to 5 µs: 200 were 600 µs."""
    if usual_backend() != "cpp":
        pytest.skip("the extension is not built: plain torch takes thousands")
    A, D = data(1, 384, 50)
    model = loaded(D)
    model.encode(A)
    with Counted() as counted:
        model.encode(A)
    assert 0 < counted.count <= 24


@pytest.mark.parametrize("penalty", [{}, {"l1": 0.3, "l2": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_of_nnls_are_those_of_many_rows(penalty, dtype, monkeypatch):
    A, D = data(3, dtype=dtype)
    # a start takes the way of many rows
    start = torch.zeros(3, 8, dtype=dtype)
    (expected, its_info), (other, _) = (
        nnls(A, X, start, return_info=True, **penalty) for X in (D, 2 * D)
    )

    def refuse(*_):
        raise AssertionError("the usual way was taken")

    monkeypatch.setattr(LeastSquares, "__call__", refuse)
    for _ in range(2):
        torch.testing.assert_close(nnls(A, D, **penalty), expected)
    # the same bits whether the info is asked for, and the info is that of the other way
    Z, info = nnls(A, D, return_info=True, **penalty)
    assert torch.equal(Z, nnls(A, D, **penalty))
    assert info.status.tolist() == its_info.status.tolist() == [0, 0, 0]
    assert torch.equal(info.support, its_info.support)
    torch.testing.assert_close(info.kkt, its_info.kkt, rtol=0, atol=torch.finfo(dtype).eps)
    assert torch.equal(info.kkt, kkt_residual(A, D, Z, Penalty(**penalty)))
    # what is kept is not used for a dictionary that has changed
    D *= 2
    torch.testing.assert_close(nnls(A, D, **penalty), other)


@pytest.mark.parametrize(
    "named",
    [{"max_iter": 1}, {"top_k": 1}, {"Z0": torch.ones(3, 8)}, {"max_memory": "1GB"}],
    ids=lambda named: next(iter(named)),
)
@pytest.mark.filterwarnings("ignore::fastnmf.ConvergenceWarning")
def test_options_of_nnls_are_kept(named, monkeypatch):
    A, D = data(3)
    monkeypatch.setattr(kept.KeptRows, "codes", None)
    nnls(A, D, **named)
    # entries of any sign are no case for it
    monkeypatch.undo()
    assert nnls(A - 1, D).shape == nnls(A, D - 0.5).shape == (3, 8)


def test_a_backend_that_does_not_exist_is_refused_for_few_rows():
    A, D = data(3)
    with pytest.raises(InvalidInput, match="backend"):
        nnls(A, D, backend="none")
