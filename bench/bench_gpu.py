"""Check every kernel on a GPU, then time whole iterations against Overcomplete on the same card;
exact least squares besides (nnls_gpu.py).

python bench/bench_gpu.py [results.json]: under eight minutes on an H100 or H200. Not part of
`pytest bench`. Nothing is timed unless all checks pass. Sizes that do not fit are left out by name.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nnls_gpu
import torch
from overcomplete_loop import overcomplete_loop

from fastnmf import NMF, engine, memory
from fastnmf.backends import BACKENDS, REFERENCE, select
from fastnmf.penalties import NO_PENALTIES, Penalties
from fastnmf.precision import products_in
from fastnmf.rows import Rows

SECONDS = 8 * 60
# concepts of Overcomplete's loop that are timed at K = 10,000; the rest is reckoned
PART = 64
# of a factor after one float32 update: rounding of products summed in another order
TOLERANCE = 1e-5
DEVICE = "cuda"
# K, m, p of what is checked; the last is the widest block
CHECKED = ((10, 63_701, 384), (131, 5_003, 77), (1024, 20_000, 768))
# what kernels are compiled for besides, which takes seconds each: checked at the last size
VARIANTS = {
    "mu_residual_": ("", " penalised", " 16-bit", " 16-bit penalised"),
    "mu_normal_": ("", " penalised"),
    "pgd_residual_": ("", " penalised"),
}


def draw(n: int, d: int, K: int) -> tuple[torch.Tensor, ...]:
    """A (n, d), Z (n, K), D (K, d), rectified Gaussian, Z D of the scale of A."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    A, Z, D = (
        torch.randn(*size, device=DEVICE, generator=generator) for size in ((n, d), (n, K), (K, d))
    )
    ZD = Z[:1000].abs() @ D.abs()
    return A.clamp_(min=0), Z.abs_(), D.abs_().mul_((A[:1000] * ZD).sum() / ZD.square().sum())


def seconds_of(call: Callable[[], object], rounds: int = 3) -> float:
    """The least of some rounds, after one that compiles and warms up."""
    call()
    least = float("inf")
    for _ in range(rounds):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize()
        least = min(least, time.perf_counter() - begun)
    return least


def operands(
    name: str, variant: str, K: int, m: int, p: int, codes: bool
) -> Callable[[dict], list]:
    """A function of the operations of a backend that calls one of them and gives what it wrote."""
    A, Z, D = draw(m, p, K)
    penalty = (0.5, D.square().sum(1, keepdim=True)) if "penalised" in variant else ()
    D[K // 2] = 0
    step, sums = 1 / D.square().sum(), torch.zeros(3, dtype=torch.float64, device=DEVICE)
    G, C, W = D @ D.T, D @ A.T, Z @ D
    laid = (lambda F: F.T.contiguous().T) if codes else (lambda F: F.contiguous())
    F, C = laid(Z.T.clone()), laid(C)
    R, blank = (C - G @ F).contiguous(), torch.full_like(C, torch.nan)
    delta = torch.full_like(R, torch.nan)
    X = A.bfloat16() if "16-bit" in variant else A
    written = {
        "hals_block_": lambda ops: (ops[name](F, R, G, delta, sums), F, delta),
        "hals_sweep_": lambda ops: (ops[name](F, C, G, sums), F),
        "mu_residual_": lambda ops: (ops[name](F, X, W, D, sums, *penalty), F),
        "mu_normal_": lambda ops: (ops[name](F, C, G, blank, sums, *penalty[:1]), blank),
        "pgd_residual_": lambda ops: (
            ops[name](F, F, A - W, D, F, blank, F, step, 0.3, None, *penalty), F, blank
        ),
        "pgd_normal_": lambda ops: (
            ops[name](F.clone(), F.clone(), C, G, F, blank, F, step, 0.3, None), F, blank
        ),
    }  # fmt: skip
    return lambda ops: [*written[name](ops)[1:], sums]


def composed() -> dict[str, Callable]:
    """What the fused operations stand for, of plain products and the reference."""

    def mu_normal_(F, C, G, updated, sums, l1=0.0):
        updated.copy_(F)
        REFERENCE["mu_"](updated, C, G @ F + l1, sums)

    def mu_residual_(F, X, W, B, sums, l1=0.0, curvature=0.0):
        REFERENCE["mu_"](F, B @ X.to(B).T, B @ W.T + l1 + curvature * F, sums)

    def pgd_residual_(
        F, Y, E, B, next_F, next_Y, start, step, momentum, sums, l1=0.0, curvature=0.0
    ):
        pgd(F, Y, l1 + curvature * Y - B @ E.T, next_F, next_Y, step, momentum)

    def pgd(F, Y, gradient, next_F, next_Y, step, momentum):
        before, ahead = F.clone(), Y.clone()
        REFERENCE["pgd_"](before, ahead, gradient, step, momentum)
        next_F.copy_(before), next_Y.copy_(ahead)

    return {
        **REFERENCE,
        "mu_normal_": mu_normal_,
        "mu_residual_": mu_residual_,
        "pgd_normal_": lambda F, Y, C, G, next_F, next_Y, start, step, momentum, sums: pgd(
            F, Y, G @ Y - C, next_F, next_Y, step, momentum
        ),
        "pgd_residual_": pgd_residual_,
    }


def checks() -> list[dict]:
    """Every kernel with real launches: against the reference, and twice for the same bits."""
    found = []
    for name in BACKENDS["triton"].operations:
        for variant in VARIANTS.get(name, ("",)):
            for sizes in CHECKED[-1:] if variant else CHECKED:
                found += [checked(name, variant, *sizes, codes) for codes in (True, False)]
    return found


def checked(name: str, variant: str, K: int, m: int, p: int, codes: bool) -> dict:
    kernels, reference = select("hals", torch.device(DEVICE), "triton")[1], composed()
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


# what an iteration has besides
GRAPHED = {
    "accelerated": {},
    "plain": {"accelerate": False},
    "penalised": {"alpha_Z": 1e-3, "alpha_D": 1e-3, "l1_ratio": 0.5},
    "unit norm": {"alpha_Z": 1e-3, "l1_ratio": 1.0, "unit_norm": True},
}


def graph_checks() -> list[dict]:
    """Whole fits whose iterations are repeated from a CUDA graph."""
    A, *_ = draw(20_000, 512, 10)
    every = itertools.product(("hals", "mu", "pgd"), GRAPHED)
    return [graph_checked(A, 10, solver, variant) for solver, variant in every]


def graph_checked(A, K: int, solver: str, variant: str, iterations: int = 30) -> dict:
    """A fit with a graph against the same without, to the bit."""
    fits = []
    for graph in (True, False):
        options = {"seed": 0, "backend": "triton", "cuda_graph": graph, **GRAPHED[variant]}
        model = NMF(K, DEVICE, solver, 0, **options)
        fits.append((*model.fit(A, max_iter=iterations), model.fit_info_.cuda_graph))
    equal = all(map(torch.equal, fits[0][:2], fits[1][:2]))
    passed = equal and fits[0][2] >= iterations - 2 and fits[1][2] == 0
    return {"check": f"graph of {solver}, {variant}", "same_bits": equal, "repeats": fits[0][2],
            "passed": passed}  # fmt: skip


def iteration(solver: str, backend: str, A, Z, D, penalties: Penalties = NO_PENALTIES) -> dict:
    """One iteration of a fit by the plan it would follow; the start is not kept."""
    _, ops = select(solver, A.device, backend)
    free = memory.free_bytes(A.device)
    chosen = memory.choose(A, D.shape[0], solver, backend, free, form="auto")
    options = {"solver": solver, "ops": ops, "plan": chosen, "tol": 0, "penalties": penalties}
    # eight share a residual, as in a fit
    seconds = seconds_of(lambda: engine.factorize_(Z, D, Rows(A), max_iter=8, **options), 1) / 8
    return {"seconds": seconds, "predicted": chosen.seconds, "plan": str(chosen)}


def overcomplete_step(solver: str, A, Z, D) -> dict:
    """One iteration of Overcomplete; of hals with many concepts, a part of the loops is timed."""
    from overcomplete.optimization import nmf

    K = D.shape[0]
    if solver == "pgd":
        fit = nmf.projected_gradient_descent
        return {"seconds": seconds_of(lambda: fit(A, Z, D, max_iter=3, tol=0), 1) / 3}
    if solver == "mu":
        return {"seconds": seconds_of(lambda: nmf._one_step_multiplicative_rule(A, Z, D), 1)}
    if K <= PART:
        return {"seconds": seconds_of(lambda: nmf._one_step_hals(A, Z, D), 1)}
    made = [A @ D.T, D @ D.T, Z.T @ A, Z.T @ Z]
    fixed = seconds_of(lambda: (A @ D.T, D @ D.T, Z.T @ A, Z.T @ Z), 1)
    loops = seconds_of(lambda: overcomplete_loop(*made, Z, D, PART), 1)
    return {"seconds": fixed + loops * K / PART, "measured_on": f"{PART} of {K:,} concepts"}


def many_concepts() -> list[dict]:
    """100,000 × 768, K = 10,000: an iteration of each solver at either precision."""
    found, sizes = [], (100_000, 768, 10_000)
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        for solver in ("hals", "mu", "pgd"):
            contenders = {
                "fastnmf (triton)": lambda *state, solver=solver: iteration(
                    solver, "triton", *state
                ),
                "Overcomplete": lambda *state, solver=solver: overcomplete_step(solver, *state),
            }
            if precision == "high":
                contenders["fastnmf (triton), penalised"] = lambda *state, solver=solver: iteration(
                    solver, "triton", *state, Penalties(1e-3, 1e-3, 0.5)
                )
            for name, timed in contenders.items():
                labels = {"solver": solver, "precision": precision, "contender": name}
                found.append({"size": sizes, **labels, **attempted(timed, *sizes)})
    return found


def attempted(timed: Callable, n: int, d: int, K: int) -> dict:
    """What was measured, or that it does not fit on this card."""
    try:
        return timed(*draw(n, d, K))
    except torch.cuda.OutOfMemoryError as error:
        return {"left_out": str(error).splitlines()[0]}
    finally:
        torch.cuda.empty_cache()


def few_concepts() -> list[dict]:
    """63,700 × 2,048, K = 10: whole fits of 100 iterations, start included, each iteration watched
    as it is by default; with and without a CUDA graph, accelerated and not."""
    from overcomplete import NMF as Overcomplete

    torch.set_float32_matmul_precision("highest")
    A, *_ = draw(63_700, 2_048, 10)
    found = []
    for solver in ("hals", "mu", "pgd"):
        label = {"size": (63_700, 2_048, 10), "solver": solver, "precision": "highest"}
        options = {"nb_concepts": 10, "device": "cuda", "solver": solver, "tol": 0}
        for accelerate, graph in itertools.product(("auto", False), (True, False)):
            model = NMF(**{**options, "tol": 1e-30}, seed=0, backend="triton",
                        accelerate=accelerate, cuda_graph=graph)  # fmt: skip
            seconds = seconds_of(lambda model=model: model.fit(A, max_iter=100), 2)
            info = model.fit_info_
            how = f"accelerated {info.accelerated}, {info.cuda_graph} repeats of a CUDA graph"
            name = f"fastnmf (triton), 100 iterations, {how}"
            found.append({**label, "contender": name, "seconds": seconds})
        theirs = seconds_of(functools.partial(Overcomplete(**options).fit, A, max_iter=100), 1)
        found.append({**label, "contender": "Overcomplete, 100 iterations", "seconds": theirs})
    return found


def in_16_bits(n: int = 400_000, d: int = 2_048, K: int = 50) -> list[dict]:
    """Few concepts in normal form, where A is most of the memory: bfloat16 data, and the same
    widened first. Bytes beside what was there before the data."""
    torch.set_float32_matmul_precision("highest")
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        before = torch.cuda.memory_allocated()
        A = draw(n, d, K)[0].bfloat16().to(dtype)
        torch.cuda.reset_peak_memory_stats()
        model = NMF(K, "cuda", tol=0, seed=0, init="random", form="normal", backend="triton")
        seconds = seconds_of(lambda model=model, A=A: model.fit(A, max_iter=10), 1)
        peak, error = torch.cuda.max_memory_allocated() - before, model.fit_info_.relative_error
        label = {"size": (n, d, K), "solver": "hals", "contender": f"{dtype}, 10 iterations"}
        found.append({**label, "seconds": seconds, "peak_bytes": peak, "relative_error": error})
        del A, model
    return found


def million_rows() -> list[dict]:
    """1,000,000 × 768, K = 10,000: an iteration of hals; the codes alone are 40 GB."""
    torch.set_float32_matmul_precision("high")
    sizes = (1_000_000, 768, 10_000)
    timed = attempted(lambda *state: iteration("hals", "triton", *state), *sizes)
    label = {"size": sizes, "solver": "hals", "precision": "high"}
    return [{**label, "contender": "fastnmf (triton)", **timed}]


def exact() -> list[dict]:
    """Exact non-negative least squares, and iterations of anls."""
    return nnls_gpu.timings() if nnls_gpu.reason() is None else [{"left_out": nnls_gpu.reason()}]


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench_gpu needs a GPU; torch sees none here")
    begun = time.perf_counter()
    card = torch.cuda.get_device_properties(0)
    results = {"card": card.name, "bytes": card.total_memory, "torch": torch.__version__}
    results["checks"] = checks() + graph_checks()
    if why := nnls_gpu.reason():
        print(f"nnls left out, neither checked nor timed: {why}")
    else:
        results["checks"] += nnls_gpu.checks()
    failed = [check for check in results["checks"] if not check["passed"]]
    for check in failed:
        print("FAILED", check)
    if failed:
        sys.exit(1)
    print(f"{card.name}: {len(results['checks'])} checks passed")
    for part in (many_concepts, few_concepts, in_16_bits, exact, million_rows):
        if time.perf_counter() - begun > SECONDS:
            print(f"{part.__name__} left out: {SECONDS} s are over")
            continue
        results[part.__name__] = part()
        for entry in results[part.__name__]:
            print(json.dumps(entry))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
