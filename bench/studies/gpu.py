"""Check every kernel on a GPU, then compare iterations and fits with Overcomplete's.

Exact least squares is checked too, and compared with plain torch and the extension on the CPU.
Nothing is timed unless all checks pass. Sizes that do not fit in the card's memory are reported.

Takes under eight minutes on an H100 or H200. Needs a CUDA GPU, Triton and overcomplete; for exact
least squares the extension for CUDA (`fastnmf info` shows whether it is built).
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fastnmf import NMF, Tuning, nnls
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.loop import factorize_
from fastnmf.engine.state import State, Stopping
from fastnmf.planning import hardware
from fastnmf.planning.memory import plan_beside
from fastnmf.planning.plan import Problem
from fastnmf.solvers.penalties import NO_PENALTIES, Penalties

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import gpu_checks
from support.candidate import method_of
from support.gpu_checks import draw
from support.loops import overcomplete_loop
from support.measure import least_seconds
from support.options import parser_of, write_json

# no further part begins after these seconds
SECONDS = 8 * 60
# concepts of Overcomplete's loop that are timed at K = 10,000; the rest is extrapolated
PART = 64
# rows, features, concepts of exact least squares
NNLS_TIMED = ((100_000, 64, 32), (100_000, 256, 128), (20_000, 384, 2_000), (4_000, 768, 10_000))
# backend, device, and which fraction of the rows is timed: the slow ones get one in 50
NNLS_CONTENDERS = (("cuda", "cuda", 1), ("torch", "cuda", 50), ("cpp", "cpu", 50))

seconds_of = functools.partial(least_seconds, device="cuda")


def iteration(solver: str, backend: str, A, Z, D, penalties: Penalties = NO_PENALTIES) -> dict:
    """One iteration of a fit by the plan that it would take; Z and D are overwritten."""
    method = replace(method_of(solver, backend, A.device), penalties=penalties)
    problem = Problem(*A.shape, len(D), A.element_size(), method.solver)
    free = hardware.free_bytes(A.device)
    chosen = plan_beside(A, problem, method.backend, method.tuning, free)

    # eight iterations share a residual, as in a fit
    def iterate() -> None:
        factorize_(State(InMemory(Z), D), Data(A), method, chosen, Stopping(8, 0))

    seconds = seconds_of(iterate, 1) / 8
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
    """What was measured, or that it does not fit in the memory of this card."""
    try:
        return timed(*draw(n, d, K))
    except torch.cuda.OutOfMemoryError as error:
        return {"left_out": str(error).splitlines()[0]}
    finally:
        torch.cuda.empty_cache()


def few_concepts() -> list[dict]:
    """63,700 × 2,048, K = 10: whole fits of 100 iterations, start included.

    As by default, the change is read in each iteration. With and without a CUDA graph, accelerated
    and not.
    """
    from overcomplete import NMF as Overcomplete

    torch.set_float32_matmul_precision("highest")
    A, *_ = draw(63_700, 2_048, 10)
    found = []
    for solver in ("hals", "mu", "pgd"):
        label = {"size": (63_700, 2_048, 10), "solver": solver, "precision": "highest"}
        options = {"nb_concepts": 10, "device": "cuda", "solver": solver, "tol": 0}
        for accelerate, graph in itertools.product(("auto", False), (True, False)):
            tuning = Tuning(cuda_graph=graph)
            how = {"accelerate": accelerate, "tuning": tuning, "backend": "triton", "seed": 0}
            model = NMF(**{**options, "tol": 1e-30}, **how)
            seconds = seconds_of(lambda model=model: model.fit(A, max_iter=100), 2)
            info = model.fit_info_
            how = f"accelerated {info.accelerated}, {info.cuda_graph} repeats of a CUDA graph"
            name = f"fastnmf (triton), 100 iterations, {how}"
            found.append({**label, "contender": name, "seconds": seconds})
        theirs = seconds_of(functools.partial(Overcomplete(**options).fit, A, max_iter=100), 1)
        found.append({**label, "contender": "Overcomplete, 100 iterations", "seconds": theirs})
    return found


def in_16_bits(n: int = 400_000, d: int = 2_048, K: int = 50) -> list[dict]:
    """Few concepts in normal form, where A is most of the memory: bfloat16 data, and the same data
    converted to float32 first. Bytes count from before the data were made."""
    torch.set_float32_matmul_precision("highest")
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        before = torch.cuda.memory_allocated()
        A = draw(n, d, K)[0].bfloat16().to(dtype)
        torch.cuda.reset_peak_memory_stats()
        options = {"init": "random", "backend": "triton", "tuning": Tuning(form="normal")}
        model = NMF(K, "cuda", tol=0, seed=0, **options)
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


def exact_codes() -> list[dict]:
    """Exact least squares: seconds for all rows, extrapolated where only a part was timed."""
    if reason := gpu_checks.nnls_reason():
        return [{"left_out": reason}]
    found = []
    kinds = itertools.product(NNLS_TIMED, ("rectified", "lowrank"), NNLS_CONTENDERS)
    for sizes, kind, (backend, device, part) in kinds:
        A, D = gpu_checks.nnls_problem(kind, sizes, device=device)
        A = A[: sizes[0] // part]
        call = functools.partial(nnls, A, D, backend=backend)
        seconds = least_seconds(call, 2, device)
        found.append(
            {"size": sizes, "kind": kind, "contender": f"nnls ({backend}, {device})",
             "seconds": seconds * part, "measured_on": f"{len(A)} rows",
             "us_a_row": 1e6 * seconds / len(A)}
        )  # fmt: skip
    return found


def exact_fits() -> list[dict]:
    """Three iterations of anls."""
    if reason := gpu_checks.nnls_reason():
        return [{"left_out": reason}]
    found = []
    for n, d, K in ((60_000, 384, 256), (20_000, 384, 1_000)):
        A, _ = gpu_checks.nnls_problem("lowrank", (n, d, 2))
        model = NMF(K, "cuda", "anls", tol=0, backend="cuda", seed=0, init="random", max_iter=3)
        seconds = seconds_of(functools.partial(model.fit, A), 2)
        found.append({"size": (n, d, K), "contender": "3 iterations of anls", "seconds": seconds})
    return found


def all_checks() -> list[dict]:
    """Of everything that can run here; exits where one fails."""
    found = gpu_checks.checks() + gpu_checks.graph_checks()
    if reason := gpu_checks.nnls_reason():
        print(f"exact least squares is neither checked nor timed: {reason}")
    else:
        found += gpu_checks.nnls_checks()
    if failed := [check for check in found if not check["passed"]]:
        sys.exit("\n".join(f"FAILED {check}" for check in failed))
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the results there")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this study needs a GPU, and torch finds none here")
    begun = time.perf_counter()
    card = torch.cuda.get_device_properties(0)
    results = {"card": card.name, "bytes": card.total_memory, "torch": torch.__version__}
    results["checks"] = all_checks()
    print(f"{card.name}: {len(results['checks'])} checks passed")
    parts = (many_concepts, few_concepts, in_16_bits, exact_codes, exact_fits, million_rows)
    for part in parts:
        if time.perf_counter() - begun > SECONDS:
            print(f"{part.__name__} is left out: {SECONDS} s have passed")
            continue
        results[part.__name__] = part()
        for entry in results[part.__name__]:
            print(json.dumps(entry))
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
