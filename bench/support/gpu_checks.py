"""Checks of what runs on a GPU: every kernel, fits from CUDA graphs, exact least squares.

studies/gpu.py runs them before it times anything; the tests run them in Triton's interpreter.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from fastnmf import NMF, Tuning, nnls
from fastnmf.backends.registry import BACKENDS, REFERENCE, select
from fastnmf.precision import products_in
from fastnmf.solvers.pgd import GradientStep
from support import nnls_problems
from support.workloads import rectified_gaussian

DEVICE = "cuda"
# relative to a factor after one float32 update: rounding of products summed in another order
TOLERANCE = 1e-5
# K, m, p of each check; the last has the widest block
CHECKED = ((10, 63_701, 384), (131, 5_003, 77), (1024, 20_000, 768))
# further variants that kernels are compiled for, which takes seconds each: checked at the last size
VARIANTS = {
    "mu_residual_": ("", " penalised", " 16-bit", " 16-bit penalised"),
    "mu_normal_": ("", " penalised"),
    "pgd_residual_": ("", " penalised"),
}
# options of the fits whose graphs are checked
GRAPHED = {
    "accelerated": {},
    "plain": {"accelerate": False},
    "penalised": {"alpha_Z": 1e-3, "alpha_D": 1e-3, "l1_ratio": 0.5},
    "unit norm": {"alpha_Z": 1e-3, "l1_ratio": 1.0, "unit_norm": True},
}
# as in tests/oracle.py: rounding of the products that the codes are computed from
NNLS_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
# rows, features, concepts: a warp a row, a block a row, more concepts than features, working sets
NNLS_CHECKED = ((5_003, 64, 32), (2_001, 256, 200), (601, 128, 512), (301, 256, 6_000))


def draw(n: int, d: int, K: int) -> tuple[Tensor, ...]:
    """A (n, d), Z (n, K), D (K, d), rectified Gaussian, with Z D scaled to A."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    A = rectified_gaussian(n, d, generator)
    Z, D = (
        torch.randn(*size, device=DEVICE, generator=generator).abs_() for size in ((n, K), (K, d))
    )
    ZD = Z[:1000] @ D
    return A, Z, D.mul_((A[:1000] * ZD).sum() / ZD.square().sum())


def operands(
    name: str, variant: str, K: int, m: int, p: int, codes: bool
) -> Callable[[dict], list]:
    """A function that calls one operation of a backend and returns what it wrote."""
    A, Z, D = draw(m, p, K)
    penalty = (0.5, D.square().sum(1, keepdim=True)) if "penalised" in variant else ()
    D[K // 2] = 0
    step, sums = 1 / D.square().sum(), torch.zeros(3, dtype=torch.float64, device=DEVICE)
    G, C, W = D @ D.T, D @ A.T, Z @ D
    ordered = (lambda F: F.T.contiguous().T) if codes else (lambda F: F.contiguous())
    F, C = ordered(Z.T.clone()), ordered(C)
    R, blank = (C - G @ F).contiguous(), torch.full_like(C, torch.nan)
    delta = torch.full_like(R, torch.nan)
    to = GradientStep(F, blank, F, step, 0.3, None)
    X = A.bfloat16() if "16-bit" in variant else A
    written = {
        "hals_block_": lambda ops: (ops[name](F, R, G, delta, sums), F, delta),
        "hals_sweep_": lambda ops: (ops[name](F, C, G, sums), F),
        "mu_residual_": lambda ops: (ops[name](F, X, W, D, sums, *penalty), F),
        "mu_normal_": lambda ops: (ops[name](F, C, G, blank, sums, *penalty[:1]), blank),
        "pgd_residual_": lambda ops: (
            ops[name](F, F, A - W, D, to, *penalty), F, blank
        ),
        "pgd_normal_": lambda ops: (
            ops[name](F.clone(), F.clone(), C, G, to), F, blank
        ),
    }  # fmt: skip
    return lambda ops: [*written[name](ops)[1:], sums]


def composed() -> dict[str, Callable]:
    """The fused operations, composed of plain products and the reference."""

    def mu_normal_(F, C, G, updated, sums, l1=0.0):
        updated.copy_(F)
        REFERENCE["mu_"](updated, C, G @ F + l1, sums)

    def mu_residual_(F, X, W, B, sums, l1=0.0, curvature=0.0):
        REFERENCE["mu_"](F, B @ X.to(B).T, B @ W.T + l1 + curvature * F, sums)

    def pgd_residual_(F, Y, E, B, step, l1=0.0, curvature=0.0):
        pgd(F, Y, l1 + curvature * Y - B @ E.T, step)

    def pgd_normal_(F, Y, C, G, step):
        pgd(F, Y, G @ Y - C, step)

    def pgd(F, Y, gradient, step):
        before, extrapolated = F.clone(), Y.clone()
        REFERENCE["pgd_"](before, extrapolated, gradient, step.length, step.momentum)
        step.next_F.copy_(before), step.next_Y.copy_(extrapolated)

    return {
        **REFERENCE,
        "mu_normal_": mu_normal_,
        "mu_residual_": mu_residual_,
        "pgd_normal_": pgd_normal_,
        "pgd_residual_": pgd_residual_,
    }


def checks() -> list[dict]:
    """Every kernel, launched for real: against the reference, and twice for the same bits."""
    found = []
    for name in BACKENDS["triton"].operations:
        for variant in VARIANTS.get(name, ("",)):
            for sizes in CHECKED[-1:] if variant else CHECKED:
                found += [checked(name, variant, *sizes, codes) for codes in (True, False)]
    return found


def checked(name: str, variant: str, K: int, m: int, p: int, codes: bool) -> dict:
    kernels, reference = (
        select(BACKENDS["triton"].operations, torch.device(DEVICE), "triton")[1],
        composed(),
    )
    make = functools.partial(operands, name, variant, K, m, p, codes)
    with products_in("highest"):
        given, again, expected = make()(kernels), make()(kernels), make()(reference)
    equal = all(map(torch.equal, given, again))
    pairs = zip(given, expected, strict=True)
    off = max(float((x - y).norm() / y.norm().clamp(min=1e-30)) for x, y in pairs)
    with products_in("high"):
        coarse, once_more = make()(kernels), make()(kernels)
    equal &= all(map(torch.equal, coarse, once_more))
    coarse_off = float((coarse[0] - expected[0]).norm() / expected[0].norm())
    passed = equal and off <= TOLERANCE and coarse_off <= 2e-2
    layout = "codes" if codes else "dictionary"
    return {"check": name + variant, "layout": layout, "K": K, "m": m, "off": off,
            "off_in_tf32": coarse_off, "same_bits": equal, "passed": passed}  # fmt: skip


def graph_checks() -> list[dict]:
    """Whole fits whose iterations are repeated from a CUDA graph."""
    A, *_ = draw(20_000, 512, 10)
    every = itertools.product(("hals", "mu", "pgd"), GRAPHED)
    return [graph_checked(A, 10, solver, variant) for solver, variant in every]


def graph_checked(A: Tensor, K: int, solver: str, variant: str, iterations: int = 30) -> dict:
    """A fit with a graph against the same fit without, to the bit."""
    fits = []
    for graph in (True, False):
        options = {"seed": 0, "backend": "triton", **GRAPHED[variant]}
        model = NMF(K, DEVICE, solver, 0, tuning=Tuning(cuda_graph=graph), **options)
        fits.append((*model.fit(A, max_iter=iterations), model.fit_info_.cuda_graph))
    equal = all(map(torch.equal, fits[0][:2], fits[1][:2]))
    passed = equal and fits[0][2] >= iterations - 2 and fits[1][2] == 0
    return {"check": f"graph of {solver}, {variant}", "same_bits": equal, "repeats": fits[0][2],
            "passed": passed}  # fmt: skip


def nnls_reason() -> str | None:
    """Why exact least squares cannot run on this GPU, or None."""
    return BACKENDS["cuda"].reason


def nnls_checks(backend: str = "cuda", device: str = "cuda") -> list[dict]:
    """Exact least squares: the KKT conditions, from zero and from another solution, and the same
    bits twice."""
    kinds = itertools.product(NNLS_TOLERANCES, nnls_problems.KINDS, NNLS_CHECKED)
    return [nnls_checked(kind, sizes, dtype, backend, device) for dtype, kind, sizes in kinds]


def nnls_checked(kind: str, sizes: tuple, dtype: torch.dtype, backend: str, device: str) -> dict:
    A, D = nnls_problem(kind, sizes, dtype, device)
    Z, info = nnls(A, D, backend=backend, return_info=True)
    equal = torch.equal(nnls(A, D, backend=backend), Z)
    warm = nnls(A, D, Z.roll(1, 0), backend=backend)
    off = max(kkt_residual(codes, A, D) for codes in (Z, warm))
    zero = not Z[~A.any(1)].any() and not Z[:, ~D.any(1)].any() and bool((Z >= 0).all())
    passed = equal and zero and off <= NNLS_TOLERANCES[dtype] and info.capped == 0
    return {"check": "nnls", "dtype": str(dtype), "kind": kind, "size": sizes, "off": off,
            "same_bits": equal, "zeros_kept": zero, "capped": info.capped,
            "passed": passed}  # fmt: skip


def nnls_problem(kind: str, sizes: tuple, dtype=torch.float32, device: str = "cuda"):
    """A (n, d), D (K, d) of `nnls_problems.draw`, on the device."""
    return (torch.from_numpy(M).to(device, dtype) for M in nnls_problems.draw(kind, *sizes))


def kkt_residual(Z: Tensor, A: Tensor, D: Tensor) -> float:
    """As in tests/oracle.py, on the device: the largest violation of the KKT conditions in float64,
    relative to the largest slope at zero of its row, for concepts of unit norm."""
    Z, A, D = Z.double(), A.double(), D.double()
    norms = D.norm(dim=1)
    unit = D / norms.clamp(min=1e-300)[:, None]
    slope = (A - Z @ D) @ unit.T
    violation = torch.where(Z > 0, slope.abs(), slope.clamp(min=0)).amax(1)
    return float((violation / (A @ unit.T).abs().amax(1).clamp(min=1e-300)).max())
