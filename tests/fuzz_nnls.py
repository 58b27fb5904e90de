"""Random problems of exact non-negative least squares with concepts of any signs, and their check:
python tests/fuzz_nnls.py --problems 200000 --backend cpp.

Codes must be finite, never worse than zero codes, have a small KKT residual, and reach the
objective of an independent solver, scipy's or, where it gives up, the one by the residual.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import torch
from scipy.optimize import nnls as scipy_nnls

import fastnmf
from fastnmf.backends.nnls.residual import solve_by_residual, violation

# features and concepts: fewer, as many and many more concepts than features
SIZES = ((2, 3), (3, 8), (10, 10), (10, 40), (20, 60), (64, 128), (64, 512))
KINDS = ("gaussian", "integers", "spanning", "duplicated", "nearly dependent")
# of ‖a‖²: by how much an objective may be above the optimum; and the KKT residual
OBJECTIVE = {torch.float32: 1e-5, torch.float64: 1e-9}
KKT = {torch.float32: 1e-5, torch.float64: 1e-9}


def draw(kind: str, d: int, K: int, rows: int, generator: np.random.Generator):
    """A (rows, d) and D (K, d) in float64."""
    A, D = generator.normal(size=(rows, d)), generator.normal(size=(K, d))
    half = K // 2
    if kind == "integers":
        A, D = np.round(2 * A), np.round(2 * D)
    elif kind == "spanning":
        # pairs of opposite concepts: some x ≥ 0 has Dᵀ x = 0
        D[half : 2 * half] = -D[:half]
    elif kind == "duplicated":
        D[half : 2 * half] = D[:half]
    elif kind == "nearly dependent":
        D[half : 2 * half] = D[:half] + 1e-4 * D[half : 2 * half]
    return A, D


def faults(A: torch.Tensor, D: torch.Tensor, backend: str, compared: int) -> list[str]:
    """What is wrong with the codes of A; the objectives of the first `compared` rows are compared
    with an independent solver's."""
    Z, info = fastnmf.nnls(A, D, backend=backend, return_info=True)
    found = []
    kkt, above_zero = violation(A, D, Z)
    if not bool(Z.isfinite().all() and (Z >= 0).all()):
        found.append("codes that are not finite or negative")
    if bool((above_zero > 0).any()):
        found.append(f"{int((above_zero > 0).sum())} rows worse than zero codes")
    if float(kkt.max()) > KKT[Z.dtype]:
        found.append(f"KKT residual {float(kkt.max()):.1e}")
    if not torch.allclose(info.kkt, kkt) or bool(((info.status == 0) & (kkt > KKT[Z.dtype])).any()):
        found.append("an info that is not true")
    allowed, (A, D, Z) = OBJECTIVE[Z.dtype], (M.double() for M in (A, D, Z))
    for a, z in zip(A[:compared], Z[:compared], strict=True):
        gap = (float((a - z @ D).square().sum()) - _least(a, D)) / float(a @ a)
        if gap > allowed:
            found.append(f"an objective {gap:.1e} of ‖a‖² above the optimum")
    return found


def _least(a: torch.Tensor, D: torch.Tensor) -> float:
    try:
        return scipy_nnls(D.T.numpy(), a.numpy(), maxiter=50 * len(D))[1] ** 2
    except RuntimeError:
        z = solve_by_residual(a, D, 1e-13)
        return float((a - z @ D).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200_000)
    parser.add_argument("--backend", default="cpp")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, begun, rows = np.random.default_rng(arguments.seed), time.perf_counter(), 500
    cases = list(itertools.product(SIZES, KINDS, OBJECTIVE))
    done = failed = 0
    while done < arguments.problems:
        for (d, K), kind, dtype in cases:
            A, D = (torch.from_numpy(M).to(dtype) for M in draw(kind, d, K, rows, generator))
            for fault in faults(A, D, arguments.backend, compared=2):
                failed += 1
                print(f"d = {d}, K = {K}, {kind}, {dtype}: {fault}", flush=True)
            done += rows
    seconds = time.perf_counter() - begun
    print(f"{done:,} problems on {arguments.backend} in {seconds:.0f} s: {failed} faults")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
