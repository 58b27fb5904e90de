"""max_memory: how it is written, and what is refused because it does not fit."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from streams import model, sharded

from fastnmf import NMF, InvalidInput, Tuning, nnls
from fastnmf.planning import memory
from fastnmf.solvers.registry import SOLVERS


@pytest.mark.usefixtures("small_budgets")
def test_impossible_budget_says_what_the_least_is(tmp_path):
    folder = sharded(tmp_path / "A")
    with pytest.raises(
        InvalidInput, match=r"max_memory of 10kB.*at least (\d)MB.*codes="
    ) as refusal:
        model(max_memory=10_000).fit(folder)
    least = str(refusal.value).split("at least ")[1].split(" ")[0]
    model(max_memory=least, max_iter=1).fit(folder)


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("2GB", 2 * 10**9), ("512MiB", 512 << 20), ("1.5 g", 1500000000), (4096, 4096), (None, None)],
)
def test_sizes_are_read(given, bytes_):
    assert memory.bytes_of(given) == bytes_


@pytest.mark.parametrize("given", ["1B", "999B", "1kB", "10kB", "1234B", "1MB", "64MB", "2GB"])
def test_sizes_are_reported_as_they_are_given(given):
    assert memory.size_of(memory.bytes_of(given)) == given


def test_size_that_is_rounded_is_enough():
    assert memory.size_of((1 << 30) + 1) == "1074MB"
    assert memory.size_of(24 * 10**15 + 1) == "24001TB"
    assert memory.size_of(123_456_789_012) == "124GB"


@pytest.mark.parametrize("given", ["2XB", "", "-1GB", "0", 0, -5])
def test_size_that_is_none_is_refused(given):
    with pytest.raises(InvalidInput, match=r"max_memory=.*'2GB'"):
        NMF(3, max_memory=given)


@pytest.mark.parametrize("given", [True, 2.5])
def test_size_of_another_type_is_refused(given):
    with pytest.raises(TypeError, match="max_memory="):
        NMF(3, max_memory=given)


NO_FIT = 10**9
A = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))


def wide(K=3, d=12, **options):
    return NMF(K, **options).load_dictionary(torch.ones(K, d))


TOO_LARGE = {
    **{f"fit by {name}": lambda name=name: NMF(NO_FIT, solver=name).fit(A) for name in SOLVERS},
    "fit in float64": lambda: NMF(NO_FIT).fit(A.double()),
    "fit of an array from rows": lambda: NMF(NO_FIT, init="rows").fit(A.numpy()),
    "fit without codes": lambda: NMF(NO_FIT).fit(A, codes=None),
    "fit with codes in a file": lambda: NMF(NO_FIT).fit(A, codes="never.npy"),
    "fit in normal form": lambda: NMF(10**6, tuning=Tuning(form="normal")).fit(A),
    "fit with max_memory": lambda: NMF(10**6, max_memory="1GB").fit(A),
    "partial_fit": lambda: NMF(NO_FIT).partial_fit(A),
    "partial_fit, only ZᵀZ": lambda: NMF(10**6).partial_fit(A),
    "partial_fit with max_memory": lambda: NMF(5000, max_memory="50MB").partial_fit(A),
    "init_random_z": lambda: NMF(NO_FIT).init_random_z(A),
    "init_random_d": lambda: NMF(NO_FIT).init_random_d(A),
    "decode": lambda: wide(2, 10**6).decode(torch.ones(10**7, 2)),
    "decode of an array": lambda: wide(2, 10**6).decode(np.ones((10**7, 2), np.float32)),
    "decode with max_memory": lambda: wide(2, 10**6, max_memory="1MB").decode(torch.ones(9, 2)),
    "encode": lambda: wide(10**6, 1).encode(torch.ones(1, 1).expand(10**7, 1)),
    "encode by numpy": lambda: wide(10**6, 1).encode(np.ones((10**7, 1), np.float32)),
    "nnls": lambda: nnls(torch.ones(10**7, 1), torch.ones(10**6, 1)),
}


@pytest.mark.parametrize("call", TOO_LARGE)
def test_what_cannot_fit_is_refused_with_the_size_that_it_takes(call):
    """Before anything of that size is allocated."""
    message = r"at least [\d.e+]+ ?[TGM]B (of memory )?are needed"
    with pytest.raises(InvalidInput, match=message):
        TOO_LARGE[call]()


def test_size_names_what_takes_it_and_what_to_do():
    with pytest.raises(InvalidInput) as refusal:
        NMF(NO_FIT).fit(A)
    said = str(refusal.value)
    assert "at least 208 GB" in said
    assert "the codes 160 GB, the dictionary 48 GB" in said
    assert "give fewer concepts" in said


@pytest.mark.parametrize("available", [10**9, 10**8])
def test_limit_is_what_is_available(available, monkeypatch):
    """Of a fit that needs 0.4 GB."""
    monkeypatch.setattr(memory, "_unused", lambda: available)
    model = NMF(10**4, max_iter=0, tuning=Tuning(form="normal"), accelerate=False, init="random")
    if available == 10**9:
        model.fit(A)
    else:
        with pytest.raises(InvalidInput, match=r"0\.402 GB .* 0\.1 GB are available"):
            model.fit(A)


def test_auto_accelerates_only_where_the_copies_of_the_codes_fit(monkeypatch):
    """48 MB of codes, and as many again for each of two copies."""
    data = torch.rand(120_000, 120, generator=torch.Generator().manual_seed(0))
    options = {"seed": 0, "init": "random", "max_iter": 1}
    assert data.shape[0] * 100 * 4 == 48_000_000
    for available, accelerated in ((200_000_000, True), (100_000_000, False)):
        monkeypatch.setattr(memory, "_unused", lambda available=available: available)
        model = NMF(100, **options)
        model.fit(data)
        assert model.fit_info_.accelerated == accelerated
    with pytest.raises(InvalidInput, match=r"copies of the codes for acceleration 0\.096 GB"):
        NMF(100, accelerate=True, **options).fit(data)


GROWTH = """
import json, re, sys
import torch
from fastnmf import NMF, Tuning
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
from fastnmf.planning import memory
n, d, K, options = json.loads(sys.argv[1])
form = options.pop("form", None)
A = torch.rand(n, d)
# what loads with the first fit, and threads
NMF(2, max_iter=1, **options).fit(A[:20])
sizes, sizes_of = [], memory.sizes_of_fit
from fastnmf.fit.starts import plan
def noted(*given, **named):
    sizes.append(sum(sizes_of(*given, **named).values()))
    return sizes_of(*given, **named)
plan.sizes_of_fit = noted
before = peak()
NMF(K, max_iter=2, tol=0, tuning=Tuning(form=form), **options).fit(A)
print(sizes[-1], peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "case",
    [
        (20, 30, 5000, {"form": "normal", "init": "random"}),
        (20000, 60, 1000, {"form": "normal", "accelerate": True, "init": "random"}),
        (5000, 4000, 60, {"form": "residual", "init": "random"}),
        (1500, 1500, 500, {"init": "nndsvda", "form": "normal"}),
    ],
)
def test_fit_takes_at_least_what_it_is_refused_for(case, fresh):
    ran = fresh(GROWTH, json.dumps(case))
    assert ran.returncode == 0, ran.stderr
    least, grown = map(int, ran.stdout.split())
    assert least > 40e6
    assert grown >= least
