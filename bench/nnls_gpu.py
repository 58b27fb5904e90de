"""Exact non-negative least squares on a GPU: checked on problems that break active sets, then timed
beside plain torch on the same card and the extension on the CPU. Run by bench_gpu.py."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fastnmf import NMF, nnls
from fastnmf.backends import BACKENDS

# as in tests/oracle.py: rounding of the products that the codes are computed from
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
# rows, features, concepts: a warp a row, a block a row, more concepts than features, working sets
CHECKED = [(5_003, 64, 32), (2_001, 256, 200), (601, 128, 512), (301, 256, 6_000)]
TIMED = [(100_000, 64, 32), (100_000, 256, 128), (20_000, 384, 2_000), (4_000, 768, 10_000)]
# of the rows that a contender which is slow by far is timed on
PART = 50


def problem(kind: str, n: int, d: int, K: int, dtype=torch.float32, device="cuda"):
    """A (n, d), D (K, d): rectified Gaussian, sparser concepts; lowrank: 32 factors and noise,
    concepts drawn from the rows; dependent: half of the concepts twice, some rows and concepts
    zero."""
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    A, D = normal(n, d).clamp(min=0), (normal(K, d) - 0.5).clamp(min=0)
    if kind == "lowrank":
        A = normal(n, 32).abs() @ normal(32, d).abs() / 32 + 0.1 * normal(n, d).abs()
        D = A[torch.randint(n, (K,), generator=generator)] * normal(K, 1).abs()
    elif kind == "dependent":
        D[K // 2 :] = D[: K - K // 2] * (1 + 1e-5 * normal(K - K // 2, d))
        D[::7], A[::7] = 0, 0
    return A.to(device, dtype), D.to(device, dtype)


def kkt_residual(Z: Tensor, A: Tensor, D: Tensor) -> float:
    """The largest violation of the KKT conditions in float64, over the largest slope at zero of its
    row, unit concepts."""
    Z, A, D = Z.double(), A.double(), D.double()
    norms = D.norm(dim=1)
    unit = D / norms.clamp(min=1e-300)[:, None]
    slope = (A - Z @ D) @ unit.T
    violation = torch.where(Z > 0, slope.abs(), slope.clamp(min=0)).amax(1)
    return float((violation / (A @ unit.T).abs().amax(1).clamp(min=1e-300)).max())


def checks(backend: str = "cuda", device: str = "cuda") -> list[dict]:
    """Every kernel and both ways to reach it: the KKT conditions, from nothing and from another
    solution, and the same bits twice."""
    found = []
    for dtype, tolerance in TOLERANCES.items():
        for kind in ("rectified", "lowrank", "dependent"):
            for sizes in CHECKED:
                A, D = problem(kind, *sizes, dtype, device)
                Z, info = nnls(A, D, backend=backend, return_info=True)
                equal = torch.equal(nnls(A, D, backend=backend), Z)
                warm = nnls(A, D, Z.roll(1, 0), backend=backend)
                off = max(kkt_residual(codes, A, D) for codes in (Z, warm))
                zero = not Z[~A.any(1)].any() and not Z[:, ~D.any(1)].any() and bool((Z >= 0).all())
                passed = equal and zero and off <= tolerance and info.capped == 0
                found.append(
                    {"check": "nnls", "dtype": str(dtype), "kind": kind, "size": sizes, "off": off,
                     "same_bits": equal, "zeros_kept": zero, "capped": info.capped,
                     "passed": passed}
                )  # fmt: skip
    return found


def seconds_of(call, device: str) -> float:
    """The lesser of two rounds after one that warms up."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def timings() -> list[dict]:
    """Seconds for all rows, extrapolated where a part of them was timed; and iterations of anls."""
    found = []
    for sizes in TIMED:
        for kind in ("rectified", "lowrank"):
            for backend, device, part in (
                ("cuda", "cuda", 1),
                ("torch", "cuda", PART),
                ("cpp", "cpu", PART),
            ):
                A, D = problem(kind, *sizes, device=device)
                A = A[: sizes[0] // part]
                seconds = seconds_of(lambda A=A, D=D, b=backend: nnls(A, D, backend=b), device)
                found.append(
                    {"size": sizes, "kind": kind, "contender": f"nnls ({backend}, {device})",
                     "seconds": seconds * part, "measured_on": f"{len(A)} rows",
                     "us_a_row": 1e6 * seconds / len(A)}
                )  # fmt: skip
    for n, d, K in ((60_000, 384, 256), (20_000, 384, 1_000)):
        A, _ = problem("lowrank", n, d, 2)
        model = NMF(K, "cuda", "anls", tol=0, backend="cuda", seed=0, init="random", max_iter=3)
        seconds = seconds_of(lambda A=A, model=model: model.fit(A), "cuda")
        found.append({"size": (n, d, K), "contender": "3 iterations of anls", "seconds": seconds})
    return found


def reason() -> str | None:
    """Why nothing of this can be run here, or None."""
    return BACKENDS["cuda"].reason
