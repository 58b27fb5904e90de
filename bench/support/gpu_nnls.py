"""Exact least squares on a GPU: checked by the KKT conditions in float64, and timed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fastnmf import NMF, nnls
from fastnmf.backends.registry import BACKENDS
from support import nnls_problems
from support.gpu_sizes import Size
from support.seconds import least_seconds, seconds_of

# of the KKT residual: rounding of the products that the codes are computed from, as in
# tests/oracle.py
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
# seconds for which a slow contender is given more rows, each time four times as many
PATIENCE = 1.0


def problem(kind: str, size: Size, dtype=torch.float32, device: str = "cuda") -> Iterator[Tensor]:
    """A (n, d), D (K, d) of `nnls_problems.draw`, on the device."""
    return (torch.from_numpy(M).to(device, dtype) for M in nnls_problems.draw(kind, *size))


def checks(sizes: tuple[Size, ...], backend: str, device: str) -> Iterator[dict]:
    """The KKT conditions, from zero and from another solution, and the same bits twice."""
    for dtype, kind, size in itertools.product(TOLERANCES, nnls_problems.KINDS, sizes):
        yield checked(kind, size, dtype, backend, device)


def checked(kind: str, size: Size, dtype: torch.dtype, backend: str, device: str) -> dict:
    A, D = problem(kind, size, dtype, device)
    Z, info = nnls(A, D, backend=backend, return_info=True)
    equal = torch.equal(nnls(A, D, backend=backend), Z)
    warm = nnls(A, D, Z.roll(1, 0), backend=backend)
    off = max(kkt_residual(codes, A, D) for codes in (Z, warm))
    zero = not Z[~A.any(1)].any() and not Z[:, ~D.any(1)].any() and bool((Z >= 0).all())
    passed = equal and zero and off <= TOLERANCES[dtype] and info.capped == 0
    return {"check": "nnls", "dtype": str(dtype), "kind": kind, "size": size, "off": off,
            "same_bits": equal, "zeros_kept": zero, "capped": info.capped,
            "passed": passed}  # fmt: skip


def kkt_residual(Z: Tensor, A: Tensor, D: Tensor) -> float:
    """As in tests/oracle.py, on the device: the largest violation of the KKT conditions in float64,
    relative to the largest slope at zero of its row, for concepts of unit norm."""
    Z, A, D = Z.double(), A.double(), D.double()
    norms = D.norm(dim=1)
    unit = D / norms.clamp(min=1e-300)[:, None]
    slope = (A - Z @ D) @ unit.T
    violation = torch.where(Z > 0, slope.abs(), slope.clamp(min=0)).amax(1)
    return float((violation / (A @ unit.T).abs().amax(1).clamp(min=1e-300)).max())


def codes(
    sizes: tuple[Size, ...], backend: str, device: str, rows: int | None = None
) -> Iterator[dict]:
    """Seconds for all rows; where `rows` are given, of a slow contender, timed on so many, then on
    four times as many while they take less than PATIENCE, and extrapolated."""
    for (n, d, K), kind in itertools.product(sizes, ("rectified", "lowrank")):
        A, D = problem(kind, (n, d, K), device=device)
        part = n if rows is None else min(rows, n)
        if rows is None:
            call = functools.partial(nnls, A, D, backend=backend)
            seconds = least_seconds(call, 2, device)
        while rows is not None:
            some = A[:part].contiguous()
            seconds, _ = seconds_of(functools.partial(nnls, some, D, backend=backend), device)
            if part == n or seconds > PATIENCE / 4:
                break
            part = min(4 * part, n)
        what = f"nnls, {n:,} × {d:,}, K = {K:,}, {kind}"
        yield {"what": what, "contender": f"{backend}, {device}",
               "seconds": seconds * n / part, "measured_on": f"{part:,} rows",
               "us_a_row": 1e6 * seconds / part}  # fmt: skip


def fits(sizes: tuple[Size, ...], backend: str, device: str) -> Iterator[dict]:
    """Three iterations of anls."""
    for n, d, K in sizes:
        A, _ = problem("lowrank", (n, d, 2), device=device)
        model = NMF(K, device, "anls", tol=0, backend=backend, seed=0, init="random", max_iter=3)
        seconds = least_seconds(functools.partial(model.fit, A), 1, device)
        yield {"what": f"3 iterations of anls, {n:,} × {d:,}, K = {K:,}",
               "contender": f"{backend}, {device}", "seconds": seconds,
               "relative_error": model.fit_info_.relative_error}  # fmt: skip


def refuses(backend: str) -> str | None:
    """Why a backend cannot be used here, or None."""
    reason = BACKENDS[backend].reason
    return reason and f"backend {backend}: {reason}"
