"""Both of torch's interfaces to the precision of float32 products: whatever they say, calls run,
compute in float32 on a CPU, and leave them as they were."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from precisions import NEWER, OLDER, Setting, inherited, older_or_newer, stored, told

from fastnmf import NMF, Tuning, nnls, precision
from fastnmf.cli import environment
from fastnmf.precision import allowed, allowed_for, products_in

# where a CPU may multiply in bfloat16
NARROW = [Setting(mkldnn="none", all="bf16"), Setting(mkldnn="bf16")] if NEWER else []
needs_newer = pytest.mark.skipif(not NEWER, reason="torch has no newer interface")
# rows, features, concepts. Products of the large ones are in bfloat16 where that is allowed, on
# processors that have it
SMALL, LARGE = (40, 24, 8), (160, 128, 64)


class Left(Exception):
    """What a callback leaves a fit with."""


def leave(_):
    raise Left


class Calls:
    """Public calls that multiply, on data of some size; each gives its results."""

    def __init__(self, n, d, K):
        generator = torch.Generator().manual_seed(0)
        self.K, self.A = K, torch.rand(n, d, generator=generator)
        self.D, self.Z = (torch.rand(K, m, generator=generator) for m in (d, n))

    def model(self, form=None, start="rows"):
        return NMF(self.K, init=start, seed=0, tol=0, tuning=Tuning(form=form))

    def known(self, form=None):
        return self.model(form).load_dictionary(self.D)

    def fit(self, form="residual", start="rows"):
        return [*self.model(form, start).fit(self.A, 2)]

    def fit_in_normal_form(self):
        return self.fit("normal", "auto")

    def fit_is_left(self):
        with pytest.raises(Left):
            self.model().fit(self.A, 2, callback=leave)
        return []

    def partial_fit(self):
        learner = self.model()
        learner.partial_fit(self.A)
        return [learner.D]

    def encode(self):
        return [self.known("residual").encode(self.A, 2)]

    def decode(self):
        return [self.known().decode(self.Z.T)]

    def nnls(self):
        return [nnls(self.A[:8], self.D)]

    def facts(self):
        assert environment.facts()["matmul"].startswith("float32 precision high")
        return []


NAMES = [name for name in vars(Calls) if name[0] != "_" and name not in ("model", "known")]


@pytest.mark.parametrize("name", NAMES)
def test_calls_run_and_leave_every_setting_as_it_was(name):
    call = getattr(Calls(*SMALL), name)
    expected = call()
    for setting in older_or_newer():
        with setting():
            before = told()
            found = call()
            assert told() == before, setting
        assert all(map(torch.equal, found, expected)), setting


@pytest.mark.parametrize("setting", [Setting(older) for older in OLDER] + NARROW, ids=str)
def test_no_setting_makes_a_cpu_less_precise(setting):
    calls = Calls(*LARGE)
    for name in NAMES:
        expected = getattr(calls, name)()
        with setting():
            found = getattr(calls, name)()
        assert all(map(torch.equal, found, expected)), name


@needs_newer
@pytest.mark.parametrize("chosen", ["highest", "high", None])
def test_values_that_were_inherited_are_inherited_again(chosen):
    """Also where what they inherit is what they would be set to."""
    for setting in inherited():
        with setting():
            before = told()
            with products_in(chosen):
                present = told()
                # neither interface contradicts the other
                assert "raises" not in (present["older"], present["allow cuda"]), setting
                assert present["mkldnn.matmul"] in ("none", "ieee"), setting
            assert told() == before, setting
            assert stored() == Setting(setting.older, cuda=setting.cuda, mkldnn=setting.mkldnn)


@needs_newer
@pytest.mark.parametrize("allow", [True, False])
def test_settings_of_convolutions_are_left_alone(allow):
    torch.backends.cudnn.allow_tf32 = allow
    before = told()
    try:
        with Setting(all="bf16", cuda="tf32")():
            Calls(*SMALL).fit()
        assert told() == before
    finally:
        torch.backends.cudnn.allow_tf32 = True


# and what products on CUDA may be
ALLOWED = [(Setting(older), "highest" if older == "highest" else "high") for older in OLDER]
if NEWER:
    ALLOWED += [
        (Setting(cuda="tf32"), "high"),
        (Setting(cuda="none", cuda_all="tf32"), "high"),
        (Setting(cuda="none", all="tf32"), "high"),
        (Setting(cuda="none", all="bf16"), "highest"),
        (Setting("high", cuda="ieee"), "highest"),
        (Setting("medium", cuda="none"), "highest"),
        (Setting("high", all="ieee"), "high"),
        (Setting(mkldnn="bf16"), "highest"),
    ]


@pytest.mark.parametrize(("setting", "expected"), ALLOWED, ids=str)
def test_products_on_cuda_are_as_both_interfaces_allow(setting, expected, monkeypatch):
    calls = Calls(*SMALL)
    with setting():
        assert (allowed(), allowed_for(calls.A)) == (expected, "highest")
        monkeypatch.setattr(precision, "TF32_ON", ("cpu",))
        assert allowed_for(calls.A) == expected
        assert allowed_for(calls.A.double()) == "highest"
        fitted = calls.model("residual")
        fitted.fit(calls.A, 1)
    assert fitted.fit_info_.precision == ("tf32" if expected == "high" else "float32")


@pytest.mark.parametrize(("setting", "expected"), ALLOWED, ids=str)
def test_kernels_take_the_same(setting, expected):
    products = pytest.importorskip("fastnmf.kernels.products", reason="triton is not installed")
    A = torch.ones(2, 2)
    with setting():
        assert products.in_tf32(A) == (expected == "high")
        assert not products.in_tf32(A.double())
        for chosen in ("highest", "high"):
            with products_in(chosen):
                assert products.in_tf32(A) == (chosen == "high")


def test_torch_without_the_newer_interface_has_the_older_one_set_and_restored(monkeypatch):
    for name in ("_get", "_set"):
        monkeypatch.setattr(precision, name, None)
    for older in OLDER:
        with Setting(older)():
            for chosen in ("highest", "high"):
                with products_in(chosen):
                    assert torch.get_float32_matmul_precision() == allowed() == chosen
                assert torch.get_float32_matmul_precision() == older
            assert allowed() == ("highest" if older == "highest" else "high")


def test_innermost_context_of_a_thread_counts():
    seen = []
    with products_in("highest"):
        with contextlib.suppress(Left), products_in("high"), products_in(None):
            seen += [allowed(), on_cuda()]
            raise Left
        seen += [allowed(), on_cuda()]
    assert seen == ["high", "high", "highest", "highest"]


def on_cuda():
    """The precision of products as the older interface tells it."""
    return torch.get_float32_matmul_precision()


@pytest.mark.parametrize("older", OLDER)
def test_contexts_of_threads_that_overlap_restore_what_was_before_the_first(older):
    """Float32 is given to those that need it; the first to enter is the first to leave."""
    steps, seen, before = threading.Barrier(2, timeout=60), [], None

    def needs_float32():
        with products_in("highest"):
            steps.wait()
            steps.wait()
            seen.append(on_cuda())
        steps.wait()
        steps.wait()

    with Setting(older)():
        before = told()
        thread = threading.Thread(target=needs_float32)
        thread.start()
        steps.wait()
        with products_in("high"):
            # its operands are rounded, whatever the products are
            seen.append(allowed())
            steps.wait()
            steps.wait()
            seen.append(on_cuda())
            steps.wait()
        thread.join()
        assert told() == before
    assert seen == ["high", "highest", "high"]


def test_fits_in_several_threads_have_the_bits_of_one_and_restore_the_setting():
    calls = Calls(*SMALL)
    expected, found = calls.fit(), []
    with ALLOWED[-1][0]():
        before = told()
        threads = [
            threading.Thread(target=lambda: found.append(Calls(*SMALL).fit())) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told() == before
    assert len(found) == 4
    assert all(torch.equal(*pair) for one in found for pair in zip(one, expected, strict=True))
