"""Show how well and how fast fits with missing values are: beside a float64 oracle, alternating
exact non-negative least squares, and beside two packages that take a mask, wNMF and TensorLy.

Data are planted, non-negative, with 5 % noise. The same mask and the same random start are given to
all; errors are of the entries that are observed, and of those that are held back. `--part mask`:
1,000 × 1,000, 20 % missing, K = 20, and the seconds until the error of the other package is
reached. `--part stored`: 20,000 × 5,000 with 2 % stored, K = 20, the seconds of an iteration beside
those without weights, and the memory. `--part scaled`: weights of rows and of features beside none.

With one thread seconds are processor time. The packages are optional: pip install wNMF tensorly.
--quick: 300 × 300, without the oracle's last digits.
"""

from __future__ import annotations

import importlib.util
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastnmf import NMF
from fastnmf.backends.registry import select
from fastnmf.data.weights.entries import EntryWeights
from fastnmf.exact.weighted.rows import weighted_codes
from fastnmf.solvers import anls
from fastnmf.solvers.penalties import NO_PENALTY

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row

PARTS = ("mask", "stored", "scaled")
# iterations of all, and of the oracle, in which each half is exact
ITERATIONS, EXACT = 60, 60


def planted(n: int, d: int, K: int) -> Tensor:
    drawn = torch.Generator().manual_seed(0)
    Z = torch.rand(n, K, generator=drawn) * (torch.rand(n, K, generator=drawn) < 0.4)
    A = Z @ torch.rand(K, d, generator=drawn).pow(3)
    return A + 0.05 * A.mean() * torch.rand(n, d, generator=drawn)


def clock(threads: int) -> float:
    return time.process_time() if threads == 1 else time.perf_counter()


class Mask:
    """A masked problem: data, what is observed, and a start that all take."""

    def __init__(self, n: int, K: int, threads: int) -> None:
        self.A, self.K, self.threads = planted(n, n, K), K, threads
        drawn = torch.Generator().manual_seed(1)
        self.W = torch.rand(n, n, generator=drawn) > 0.2
        scale = float((self.A[self.W].mean() / K).sqrt())
        self.start = tuple(scale * torch.rand(*s, generator=drawn) * 2 for s in ((n, K), (K, n)))

    def errors(self, Z: Tensor, D: Tensor) -> tuple[float, float]:
        """The relative errors of observed and of held-back entries."""
        E = (self.A.double() - Z.double() @ D.double()).square()
        A = self.A.double().square()
        return tuple(float((E[S].sum() / A[S].sum()).sqrt()) for S in (self.W, ~self.W))

    def ours(self, iterations: int) -> tuple[Tensor, Tensor, list[float]]:
        nmf = NMF(self.K, init=self.start, tol=0, max_iter=iterations, accelerate=True)
        Z, D = nmf.fit(torch.where(self.W, self.A, torch.nan), weights=self.W)
        return Z, D, [one.relative_error for one in nmf.fit_info_.history]

    def oracle(self, iterations: int) -> tuple[Tensor, Tensor]:
        ops = select(anls.SOLVER.operations, torch.device("cpu"), "auto")[1]
        A, (Z, D) = self.A.double(), (F.double() for F in self.start)
        rows, columns = (
            EntryWeights(A, self.W),
            EntryWeights(A.T.contiguous(), self.W.T.contiguous()),
        )
        for _ in range(iterations):
            Z = weighted_codes(rows, D, NO_PENALTY, ops, Z)[0]
            D = weighted_codes(columns, Z.T.contiguous(), NO_PENALTY, ops, D.T)[0].T.contiguous()
        return Z, D

    def wnmf(self, iterations: int) -> tuple[Tensor, Tensor]:
        from wNMF import wNMF

        # its A is features × samples; zeros are refused
        model = wNMF(self.K, beta_loss="frobenius", max_iter=iterations, tol=1e-300, verbose=0)
        A, W = self.A.double().numpy() + 1e-9, self.W.double().numpy()
        model.fit(A, W)
        return torch.from_numpy(np.array(model.U)), torch.from_numpy(np.array(model.V))

    def tensorly(self, iterations: int) -> tuple[Tensor, Tensor]:
        from tensorly.decomposition import non_negative_parafac

        Z, D = (F.double().numpy() for F in self.start)
        given = {"init": (None, [Z, D.T.copy()]), "mask": self.W.double().numpy(), "tol": 0}
        found = non_negative_parafac(self.A.double().numpy(), self.K, iterations, **given)
        weights, (Z, Dt) = found
        Z = Z if weights is None else Z * weights
        return torch.from_numpy(Z), torch.from_numpy(Dt.T.copy())


def compare_masks(given) -> None:
    n = 300 if given.quick else 1000
    problem = Mask(n, given.concepts, given.threads)
    print(markdown_head(["", "iterations", "seconds", "observed", "held back", "ours as exact"]))
    Z, D, path = problem.ours(ITERATIONS)
    begun = clock(given.threads)
    problem.ours(ITERATIONS)
    whole = clock(given.threads) - begun
    row = ["fastnmf", str(ITERATIONS), f"{whole:.2f}", *map("{:.6f}".format, problem.errors(Z, D))]
    print(markdown_row([*row, ""]), flush=True)
    others = {"oracle": (problem.oracle, 20 if given.quick else EXACT)}
    for name, run in (("wNMF", problem.wnmf), ("tensorly", problem.tensorly)):
        if importlib.util.find_spec(name):
            others[name] = run, given.iterations
    for name, (run, iterations) in others.items():
        begun = clock(given.threads)
        errors = problem.errors(*run(iterations))
        taken = clock(given.threads) - begun
        reached = next((i for i, error in enumerate(path, 1) if error <= errors[0]), None)
        ours = "not reached"
        if reached is not None:
            begun = clock(given.threads)
            problem.ours(reached)
            seconds = clock(given.threads) - begun
            ours = f"{seconds:.2f} s, {taken / seconds:.1f} times faster"
        row = [name, str(iterations), f"{taken:.2f}", *map("{:.6f}".format, errors), ours]
        print(markdown_row(row), flush=True)


def seconds_of(run: Callable[[int], None], threads: int, turns: int = 3) -> float:
    """Seconds of an iteration: of the difference of fits of 2 and of 12, the best of some."""
    taken = {few: [] for few in (2, 12)}
    for _ in range(turns):
        for iterations, found in taken.items():
            begun = clock(threads)
            run(iterations)
            found.append(clock(threads) - begun)
    return (min(taken[12]) - min(taken[2])) / 10


def compare_stored(given) -> None:
    n, d = (2000, 500) if given.quick else (20000, 5000)
    drawn = torch.Generator().manual_seed(0)
    places = torch.randint(n * d, (int(0.02 * n * d),), generator=drawn).unique()
    values = torch.rand(len(places), generator=drawn) + 0.1
    index = torch.stack((places // d, places % d))
    A = torch.sparse_coo_tensor(index, values, (n, d)).coalesce().to_sparse_csr()
    start = torch.rand(n, given.concepts), torch.rand(given.concepts, d)

    def run(iterations: int, **how) -> None:
        options = {"init": start, "tol": 0, "accelerate": False, "max_iter": iterations}
        NMF(given.concepts, **options).fit(A, **how)

    plain = seconds_of(run, given.threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weighted = seconds_of(lambda iterations: run(iterations, weights="stored"), given.threads)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(markdown_head(["an iteration", "without weights", "'stored'", "quotient", "memory grew"]))
    row = f"{n:,} × {d:,}", f"{plain:.4f} s", f"{weighted:.4f} s", f"{weighted / plain:.2f}"
    print(markdown_row([*row, f"{grown:.0f} MiB (dense: {4 * n * d / 2**20:.0f} MiB)"]), flush=True)


def compare_scaled(given) -> None:
    n, d = (1000, 200) if given.quick else (20000, 500)
    A = planted(n, d, given.concepts)
    rows, features = torch.rand(n, 1) + 0.5, torch.rand(1, d) + 0.5
    start = torch.rand(n, given.concepts), torch.rand(given.concepts, d)
    print(markdown_head(["weights", "seconds of 100 iterations", "beside none"]))

    def taken(weights: Tensor | None) -> float:
        begun = clock(given.threads)
        NMF(given.concepts, init=start, tol=0, max_iter=100).fit(A, weights=weights)
        return clock(given.threads) - begun

    kinds = {"none": None, "rows": rows, "features": features}
    found = {name: [] for name in kinds}
    for _ in range(3):
        for name, weights in kinds.items():
            found[name].append(taken(weights))
    for name, each in found.items():
        ratio = min(each) / min(found["none"])
        print(markdown_row([name, f"{min(each):.3f}", f"{ratio:.3f}"]), flush=True)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--concepts", type=count, default=20)
    parser.add_argument("--iterations", type=count, default=200, help="of the other packages")
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--quick", action="store_true", help="small problems")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    print(machine_text(machine()))
    compare = {"mask": compare_masks, "stored": compare_stored, "scaled": compare_scaled}
    for part in given.part:
        compare[part](given)


if __name__ == "__main__":
    main()
