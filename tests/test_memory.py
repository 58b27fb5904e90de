"""At many concepts a fit holds the factors, the data and their residual, and little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import re, torch
from fastnmf import NMF

def read(key):
    with open("/proc/self/status") as status:
        return int(re.search(key + r":\\s+(\\d+) kB", status.read())[1]) / 1024

n, d, K = 2000, 384, 20000
A = torch.relu(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))
# threads, their buffers and what is imported at first use
NMF(600, max_iter=1, tol=0, form="residual").fit(A)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = read("VmRSS")
model = NMF(K, max_iter=2, tol=0, seed=0)
Z, D = model.fit(A)
print(read("VmHWM") - before, (A.numel() * 2 + Z.numel() + D.numel()) * 4 / 2**20)
assert model.fit_info_.form == "residual", model.fit_info_.form
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
def test_many_concepts_take_the_memory_of_the_factors_and_the_residual():
    """20,000 concepts: a Gram matrix would be 1.6 GB, a second copy of the codes 153 MiB."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    grown, needed = map(float, ran.stdout.split())
    assert grown < needed + 64
