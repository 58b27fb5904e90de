"""Checks of the kernels on a GPU, and of fits from CUDA graphs.

studies/gpu.py runs them; the tests run them in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnmf import NMF, Tuning
from fastnmf.backends.registry import BACKENDS, REFERENCE, select
from fastnmf.precision import products_in
from fastnmf.solvers.pgd import GradientStep
from support import gpu_errors
from support.gaussian import draw
from support.gpu_errors import Exact, product_error
from support.gpu_sizes import GRAPHED, Size

# further variants that kernels are compiled for, which takes seconds each: checked at the last size
VARIANTS = {
    "mu_residual_": ("", " penalised", " 16-bit", " 16-bit penalised"),
    "mu_normal_": ("", " penalised"),
    "pgd_residual_": ("", " penalised"),
}
# which copy an operand unless it is large
PACKED = ("mu_residual_", "pgd_residual_")
# of the normal form, whose products are never in tf32
IN_FLOAT32 = ("hals_sweep_", "mu_normal_", "pgd_normal_")
L1, MOMENTUM = 0.5, 0.3


@dataclass(frozen=True)
class Case:
    """An operation on a problem of n rows, d features and K concepts: the half-step of the codes,
    of m = n samples and p = d features, or that of the dictionary, m = d and p = n."""

    name: str
    variant: str
    size: Size
    codes: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """K, m, p."""
        n, d, K = self.size
        return (K, n, d) if self.codes else (K, d, n)

    @property
    def label(self) -> dict:
        K, m, p = self.sizes
        layout = "codes" if self.codes else "dictionary"
        return {"check": self.name + self.variant, "layout": layout, "K": K, "m": m, "p": p}


@dataclass(frozen=True)
class Operands:
    """What an operation is given: F (K, m); X and W (m, p), D (K, p), G (K, K), C and R (K, m);
    curvature (K, 1) with a penalty. second: what it writes beside F, NaN before."""

    F: Tensor
    second: Tensor
    C: Tensor
    R: Tensor
    G: Tensor
    D: Tensor
    X: Tensor
    W: Tensor
    step: Tensor
    curvature: Tensor | None

    def double(self) -> Operands:
        """The same numbers in float64."""
        return Operands(*(M if M is None else M.double() for M in vars(self).values()))


def operands(case: Case, device: str) -> Operands:
    """The same numbers at each call; concept K // 2 is zero."""
    K, m, p = case.sizes
    A, Z, D = draw(m, p, K, device)
    # the curvature of a dead concept is not zero
    curvature = D.square().sum(1, keepdim=True) if "penalised" in case.variant else None
    D[K // 2] = 0
    # in full precision, whatever is allowed to the operation
    with products_in("highest"):
        G, C, W = D @ D.T, D @ A.T, Z @ D
        F, C = (M.T.contiguous().T if case.codes else M.contiguous() for M in (Z.T.clone(), C))
        R = (C - G @ F).contiguous()
    second = torch.full_like(R if case.name == "hals_block_" else C, torch.nan)
    if not case.codes:
        # the layouts of a fit: the data and the codes are fixed factors, and turned
        A, W, D = (M.T.contiguous().T for M in (A, W, D))
    X = A.bfloat16() if "16-bit" in case.variant else A
    return Operands(F, second, C, R, G, D, X, W, 1 / D.square().sum(), curvature)


def called(case: Case, ops: dict[str, Callable], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """F, the second output and the sums that the operation leaves."""
    on, op = operands(case, device), ops[case.name]
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    penalty = () if on.curvature is None else (L1, on.curvature)
    to = GradientStep(on.F, on.second, on.F, on.step, MOMENTUM, None)
    F = on.F
    {
        "hals_block_": lambda: op(F, on.R, on.G, on.second, sums),
        "hals_sweep_": lambda: op(F, on.C, on.G, sums),
        "mu_residual_": lambda: op(F, on.X, on.W, on.D, sums, *penalty),
        "mu_normal_": lambda: op(F, on.C, on.G, on.second, sums, *penalty[:1]),
        "pgd_residual_": lambda: op(F, F, on.X - on.W, on.D, to, *penalty),
        "pgd_normal_": lambda: op(F.clone(), F.clone(), on.C, on.G, to),
        "round_tf32_": lambda: op(on.second, F),
    }[case.name]()
    elsewhere = case.name in ("mu_normal_", "round_tf32_")
    return (on.second if elsewhere else F, on.second, sums)


def exact(case: Case, device: str, tf32: bool) -> Exact:
    """What the operation should leave, by float64."""
    given = operands(case, device)
    on, F, coarse = given.double(), given.F.double(), tf32 and case.name not in IN_FLOAT32
    curvature = 0.0 if on.curvature is None else on.curvature
    l1 = 0.0 if on.curvature is None else L1
    if case.name == "round_tf32_":
        REFERENCE["round_tf32_"](given.second, given.F)
        return Exact(given.second.double(), torch.zeros_like(F))
    if case.name == "hals_block_":
        return gpu_errors.hals_block(F, on.R, on.G, coarse)
    if case.name == "hals_sweep_":
        return gpu_errors.hals_sweep(F, on.C, on.G)
    step = (float(on.step), MOMENTUM)
    if case.name == "pgd_normal_":
        error = product_error(on.G, F, coarse)
        # a sum that begins or ends with C
        error += gpu_errors.SAFETY * gpu_errors.UNIT * (2 * on.C.abs())
        return gpu_errors.gradient_step(F, F, on.G @ F - on.C, error, step)
    if case.name == "pgd_residual_":
        E = (given.X - given.W).double()
        slope = l1 + curvature * F - on.D @ E.T
        error = product_error(on.D, E.T, coarse)
        error += gpu_errors.SAFETY * gpu_errors.UNIT * 3 * (l1 + curvature * F)
        return gpu_errors.gradient_step(F, F, slope, error, step)
    if case.name == "mu_normal_":
        denominator, errors = on.G @ F + l1, (0.0, product_error(on.G, F, coarse))
        return gpu_errors.quotient(F, on.C, denominator, errors)
    numerator, denominator = on.D @ on.X.T, on.D @ on.W.T + l1 + curvature * F
    narrow = "16-bit" in case.variant
    errors = (
        product_error(on.X, on.D.T, coarse, exact_X=narrow).T,
        product_error(on.W, on.D.T, coarse).T,
    )
    return gpu_errors.quotient(F, numerator, denominator, errors)


def cases(
    sizes: tuple[Size, ...], names: tuple[str, ...] | None = None, narrow: bool = True
) -> list[Case]:
    """Of the named operations of the backend `triton`, or of all; sizes: of (n, d, K); narrow: with
    data in 16 bits, too."""
    return [
        Case(name, variant, some, codes)
        for name in names or BACKENDS["triton"].operations
        for variant in VARIANTS.get(name, ("",))
        if narrow or "16-bit" not in variant
        for some in (sizes[-1:] if variant else sizes)
        for codes in (True, False)
    ]


def checked(case: Case, device: str) -> Iterator[dict]:
    """Both precisions of a case: against float64, and twice for the same bits."""
    operations, on = BACKENDS["triton"].operations, torch.device(device)
    ops = select(operations, on, "triton")[1]
    for precision in ("highest", "high"):
        with products_in(precision):
            given, again = called(case, ops, device), called(case, ops, device)
        equal = all(
            torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))
            for x, y in zip(given, again, strict=True)
        )
        with products_in("highest"):
            expected = exact(case, device, tf32=precision == "high")
        off = expected.off(*given)
        relative = float((given[0].double() - expected.F).norm() / expected.F.norm())
        yield {**case.label, "precision": precision, "off_by_bound": off, "relative": relative,
               "same_bits": equal, "passed": equal and off <= 1}  # fmt: skip


def graph_checks(
    size: Size, iterations: int, fits: tuple[tuple[str, str], ...], device: str
) -> Iterator[dict]:
    """Whole fits whose iterations are repeated from a CUDA graph; fits: of (solver, options)."""
    A, *_ = draw(*size, device)
    for solver, variant in fits:
        yield graph_checked(A, size[2], solver, variant, iterations)


def graph_checked(A: Tensor, K: int, solver: str, variant: str, iterations: int = 30) -> dict:
    """A fit with a graph against the same fit without, to the bit."""
    fits = []
    for graph in (True, False):
        options = {"seed": 0, "backend": "triton", **GRAPHED[variant]}
        device = str(A.device)
        model = NMF(K, device, solver, 0, tuning=Tuning(cuda_graph=graph), **options)
        fits.append((*model.fit(A, max_iter=iterations), model.fit_info_.cuda_graph))
    equal = all(map(torch.equal, fits[0][:2], fits[1][:2]))
    passed = equal and fits[0][2] >= iterations - 2 and fits[1][2] == 0
    return {"check": f"graph of {solver}, {variant}", "same_bits": equal, "repeats": fits[0][2],
            "passed": passed}  # fmt: skip
