"""Show how long an iteration on sparse data takes beside scikit-learn's on CSR, and the products
alone beside SciPy's.

Both start from the same factors, by coordinate descent, without acceleration; the errors after
five iterations must agree to 1e-4. The seconds of an iteration are the difference of a long and a
short fit, the best of several, in turns. With one thread it is processor time.

The small data are drawn evenly; those of cells have rows and columns whose sums are log-normal.

Takes about five minutes; --quick half a minute. Needs scikit-learn, and 1 GB.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from sklearn.decomposition import non_negative_factorization

from fastnmf import NMF, Tuning
from fastnmf.data.sparse.arrays import sparse_matrix

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.options import parser_of

# n, d, density, concepts, threads, iterations of the short and the long fit, turns, times as fast
SMALL = [
    (3_000, 2_000, 0.16, 10, 1, (10, 60), 5, 2.5),
    (3_000, 2_000, 0.05, 10, 1, (20, 120), 5, 2.0),
    (3_000, 2_000, 0.01, 10, 1, (20, 220), 5, 1.5),
]
CELLS = [
    (20_000, 30_000, 0.03, 20, 2, (2, 6), 4, 3.0),
    (20_000, 30_000, 0.03, 100, 2, (2, 4), 3, 4.0),
]


def even(n: int, d: int, density: float) -> scipy.sparse.csr_array:
    return scipy.sparse.random_array((n, d), density=density, dtype=np.float32, rng=0, format="csr")


def cells(n: int, d: int, density: float) -> scipy.sparse.csr_array:
    """Counts whose rows and columns have log-normal sums, as logarithms."""
    generator = np.random.default_rng(0)
    depth, share = generator.lognormal(0, 0.5, n), generator.lognormal(0, 1.5, d)
    depth, share = depth / depth.mean(), share / share.sum()
    low, high = 0.0, 1e9
    for _ in range(60):
        middle = (low + high) / 2
        less = (1 - np.exp(-middle * share)).mean() < density
        low, high = (middle, high) if less else (low, middle)
    columns = []
    for i in range(n):
        chance = 1 - np.exp(-low * depth[i] * share)
        columns.append(np.flatnonzero(generator.random(d, np.float32) < chance).astype(np.int32))
    bounds = np.cumsum([0, *map(len, columns)]).astype(np.int32)
    values = np.log1p(generator.poisson(1, bounds[-1]) + 1).astype(np.float32)
    return scipy.sparse.csr_array((values, np.concatenate(columns), bounds), (n, d))


def start_of(A: scipy.sparse.csr_array, K: int) -> tuple[np.ndarray, np.ndarray]:
    generator, (n, d) = np.random.default_rng(1), A.shape
    Z, D = generator.random((n, K), np.float32), generator.random((K, d), np.float32)
    scale = np.float32((A.sum() / (Z.sum(0) @ D.sum(1))) ** 0.5)
    return Z * scale, D * scale


def ours(A, start, iterations: int) -> float:
    """The relative error."""
    options = {"tol": 0.0, "accelerate": False, "tuning": Tuning(form="normal")}
    nmf = NMF(len(start[1]), init=start, **options)
    nmf.fit(A, iterations)
    return nmf.fit_info_.relative_error


def theirs(A, start, iterations: int) -> float:
    K, (Z, D) = len(start[1]), (F.copy() for F in start)
    options = {"init": "custom", "tol": 0.0, "max_iter": iterations, "n_components": K}
    W, H, _ = non_negative_factorization(A, W=Z, H=D, **options)
    W, H = W.astype(np.float64), H.astype(np.float64)
    square = float(A.astype(np.float64).power(2).sum())
    inner, gram = float(((A @ H.T) * W).sum()), float(((W.T @ W) * (H @ H.T)).sum())
    return (max(0.0, square - 2 * inner + gram) / square) ** 0.5


def best(runs: dict[str, Callable[[], object]], turns: int, threads: int) -> dict[str, float]:
    """The fewest seconds of each, in turns."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(turns):
        for name, run in runs.items():
            begun = clock()
            run()
            seconds[name] = min(seconds[name], clock() - begun)
    return seconds


def iterations_of(A, case) -> None:
    """Print a row: an iteration of both, and their ratio."""
    n, d, _, K, threads, (short, long), turns, wanted = case
    torch.set_num_threads(threads)
    start = start_of(A, K)
    errors = ours(A, start, 5), theirs(A, start, 5)
    assert abs(errors[0] - errors[1]) < 1e-4 * errors[1], errors
    seconds = best(
        {
            "ours short": lambda: ours(A, start, short),
            "ours long": lambda: ours(A, start, long),
            "theirs short": lambda: theirs(A, start, short),
            "theirs long": lambda: theirs(A, start, long),
        },
        turns,
        threads,
    )
    us, them = (
        1e3 * (seconds[f"{who} long"] - seconds[f"{who} short"]) / (long - short)
        for who in ("ours", "theirs")
    )
    size = f"{n:,} × {d:,}, {A.nnz / n / d:.1%} | {K} | {threads}"
    print(f"| {size} | {us:.2f} | {them:.2f} | {them / us:.2f} | {wanted} | {errors[0]:.4f} |")


def products_of(A, K: int, threads: int) -> None:
    """Print a row: both products, and SciPy's."""
    torch.set_num_threads(threads)
    (n, d), X = A.shape, sparse_matrix(A)
    Z, D = start_of(A, K)
    Bt = np.ascontiguousarray(D.T)
    codes, fixed, of_rows, of_columns = map(
        torch.from_numpy, (Z, Bt, np.empty((n, K), np.float32), np.empty((d, K), np.float32))
    )
    runs = {
        "dot": lambda: X.dot(fixed, of_rows),
        "tdot": lambda: X.tdot(codes, of_columns),
        "SciPy dot": lambda: A @ Bt,
        "SciPy tdot": lambda: A.T @ Z,
    }
    took = {name: 1e3 * one for name, one in best(runs, 5, threads).items()}
    size = f"{n:,} × {d:,}, {A.nnz / n / d:.1%} | {K} | {threads}"
    dot, tdot = took["dot"], took["tdot"]
    theirs_of = f"{took['SciPy dot']:.2f} | {took['SciPy tdot']:.2f}"
    print(f"| {size} | {dot:.2f} | {tdot:.2f} | {theirs_of} |")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="the small data only")
    arguments = parser.parse_args()
    # both are stopped before they converge
    warnings.simplefilter("ignore")
    drawn = [(even(*case[:3]), case) for case in SMALL]
    if not arguments.quick:
        A = cells(*CELLS[0][:3])
        drawn += [(A, case) for case in CELLS]
    columns = "data | K | threads | fastnmf | scikit-learn | ratio | wanted | error"
    print(f"ms of an iteration\n\n| {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    for A, case in drawn:
        iterations_of(A, case)
    print("\nms of a product\n\n| data | K | threads | X B | XᵀZ | SciPy X B | SciPy XᵀZ |")
    print("|---|---|---|---|---|---|---|")
    for A, case in drawn:
        products_of(A, case[3], case[4])


if __name__ == "__main__":
    main()
