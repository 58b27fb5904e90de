"""Show what a fit that is chosen from several starts costs and gains (n_init).

For each data set: fits from every start to their ends, with the seeds that n_init takes; a fit with
n_init; and for the digits fits of scikit-learn. Printed are errors in percent above the least of
all, and times in units of the median fit from one start. Times are those of the processor, with one
thread, so that other processes matter little.

Takes ten minutes, and one with --quick. Needs scikit-learn.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastnmf import NMF

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.data_sets import DATA_SETS, photographs
from support.measure import machine
from support.options import count, parser_of
from support.tables import machine_text, markdown_head, markdown_row


def photograph_patches(rows: int) -> Tensor:
    """Patches (rows, 384) of 8 × 16 × 3 from anywhere in scikit-learn's two photographs."""
    windows = np.lib.stride_tricks.sliding_window_view(photographs(), (8, 16), (1, 2))
    random = np.random.default_rng(0)
    image, top, left = (random.integers(0, most, rows) for most in windows.shape[:3])
    return torch.from_numpy(windows[image, top, left].reshape(rows, -1))


def timed(fit: Callable[[], float]) -> tuple[float, float]:
    """The error that `fit` returns, and the seconds of the processor that it takes."""
    begun = time.process_time()
    error = fit()
    return error, time.process_time() - begun


def ours(A: Tensor, K: int, **options) -> tuple[float, float]:
    def fit() -> float:
        model = NMF(K, **options)
        model.fit(A)
        return model.fit_info_.relative_error

    return timed(fit)


def of_scikit_learn(A: Tensor, K: int, seed: int) -> tuple[float, float]:
    from sklearn.decomposition import NMF as Theirs

    def fit() -> float:
        model = Theirs(K, init="random", random_state=seed, max_iter=500)
        model.fit(A.numpy())
        return model.reconstruction_err_ / float(A.norm())

    return timed(fit)


def rows_of(name: str, A: Tensor, K: int, starts: int, *, theirs: bool) -> None:
    """Print a row of the table for these data."""
    single = [ours(A, K, init="random", seed=seed) for seed in range(starts)]
    errors, seconds = np.array(single).T
    one = float(np.median(seconds))
    error, spent = ours(A, K, n_init=starts, seed=0)
    plain, _ = ours(A, K, seed=0)
    found = [of_scikit_learn(A, K, seed) for seed in range(5)] if theirs else []
    least = min([errors.min(), error, *(each for each, _ in found)])
    above = [f"{100 * (each / least - 1):.2f}" for each in (plain, errors.min(), error)]
    cells = [f"{name}, {len(A):,} × {A.shape[1]}, K = {K}", *above, f"{spent / one:.1f}"]
    if found:
        best = min(found)[0]
        fastest = min(seconds for _, seconds in found)
        cells += [f"{100 * (best / least - 1):.2f}, one takes {fastest / spent:.1f} × n_init"]
    print(markdown_row([*cells, *[""] * (6 - len(cells))]), flush=True)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="the digits alone")
    text = "a .npy file of rows in place of all others: 10,000 of them, negative entries as zeros"
    parser.add_argument("--data", type=Path, help=text)
    parser.add_argument("--starts", type=count, default=20, help="starts of a fit (20)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{machine_text(machine())}\n")
    titles = ["one fit", "best of single fits", "n_init", "time of n_init", "scikit-learn"]
    print(markdown_head(["data", *titles]))
    if arguments.data is not None:
        A = torch.from_numpy(np.load(arguments.data)[:10_000]).float().clamp(min=0)
        rows_of(arguments.data.stem, A, 50, arguments.starts, theirs=False)
        return
    digits = DATA_SETS["digits"]
    rows_of("digits", digits.draw(0), digits.K, arguments.starts, theirs=True)
    if not arguments.quick:
        A = photograph_patches(10_000)
        rows_of("patches", A, 50, arguments.starts, theirs=False)


if __name__ == "__main__":
    main()
