"""Show mean L0 of the codes against the error, at K > d: penalised fits and thresholded codes.

The digits of scikit-learn (1,797 × 64) with 128 concepts, medians of three starts. Ours: alpha_Z
from small to large, l1_ratio 1, unit_norm. Overcomplete: one fit with as many iterations, of whose
codes, for concepts of norm 1, only the largest are kept. Refitted: the values of the same codes
fitted again by least squares; zeros stay zero.

Takes about five minutes, and one with --quick. Needs scikit-learn, overcomplete and matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from fastnmf import NMF

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.chart import COLOURS, OUR_COLOURS, plain, plt, save
from support.data_sets import digits
from support.options import parser_of

OURS = "fastnmf, L1 penalty"
CONCEPTS = 128
# relative to the entries of A, the largest of which is 1
ALPHAS = np.geomspace(1e-5, 0.03, 14)
KEPT = (44, 36, 28, 22, 16, 12, 8, 6, 4, 3, 2)
SEEDS = (0, 1, 2)
Point = tuple[float, float]
# name of the curve → setting → (mean L0, relative error)
Curves = dict[str, dict[str, Point]]


def point(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> Point:
    """(mean L0, relative error)."""
    return float((Z > 0).sum(1).mean()), float(np.linalg.norm(A - Z @ D) / np.linalg.norm(A))


def penalised(A: np.ndarray, alpha: float, iterations: int, seed: int):
    """Codes and dictionary of a fit with alpha_Z, from a random start."""
    options = {"l1_ratio": 1.0, "unit_norm": True, "seed": seed, "tol": 0}
    nmf = NMF(CONCEPTS, alpha_Z=alpha, max_iter=iterations, **options)
    return (F.numpy() for F in nmf.fit(torch.from_numpy(A)))


def overcomplete(A: np.ndarray, iterations: int, seed: int):
    """Codes and dictionary of norm 1 by Overcomplete's hals, from its own start."""
    from overcomplete import NMF as Theirs

    torch.manual_seed(seed)
    theirs = Theirs(CONCEPTS, solver="hals", tol=0)
    Z, D = (F.numpy() for F in theirs.fit(torch.from_numpy(A), max_iter=iterations))
    norms = np.linalg.norm(D, axis=1)
    return Z * norms, D / np.where(norms > 0, norms, 1)[:, None]


def thresholded(Z: np.ndarray, level: float) -> np.ndarray:
    """The codes above a threshold that keeps `level` of them a row, on average."""
    entries = np.sort(Z.ravel())[::-1]
    return np.where(Z >= entries[min(round(level * len(Z)), entries.size) - 1], Z, 0)


def largest(Z: np.ndarray, level: int) -> np.ndarray:
    """The largest codes of every row."""
    limit = np.sort(Z, axis=1)[:, -level, None]
    return np.where(Z >= limit, Z, 0)


def refitted(A: np.ndarray, Z: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The best codes on the concepts that each row uses: 300 multiplicative updates, which keep
    zeros and work for any support."""
    Z = Z.astype(np.float64)
    C, G = A @ D.T, D @ D.T
    for _ in range(300):
        Z *= C / np.maximum(Z @ G, 1e-12)
    return np.where(Z > 1e-6 * Z.max(), Z, 0)


def curves(A: np.ndarray, quick: bool, seed: int) -> Curves:
    """The curves of one start, the densest codes first."""
    iterations, step = (50, 4) if quick else (500, 1)
    found = {}

    def add(name: str, setting: str, Z: np.ndarray, D: np.ndarray) -> None:
        found.setdefault(name, {})[setting] = point(A, Z, D)
        found.setdefault(f"{name}, refitted", {})[setting] = point(A, refitted(A, Z, D), D)

    for alpha in ALPHAS[::step]:
        add(OURS, f"alpha_Z = {alpha:.2g}", *penalised(A, float(alpha), iterations, seed))
    Z, D = overcomplete(A, iterations, seed)
    for name, keep in {"threshold": thresholded, "largest of a row": largest}.items():
        add(f"Overcomplete, {name}", "all codes", Z, D)
        for level in KEPT[::step]:
            add(f"Overcomplete, {name}", f"{level} a row", keep(Z, level), D)
    return found


def medians(of_starts: list[Curves]) -> Curves:
    return {
        name: {
            setting: tuple(np.median([found[name][setting] for found in of_starts], axis=0))
            for setting in points
        }
        for name, points in of_starts[0].items()
    }


def draw(found: Curves, path: Path) -> None:
    """Write the chart to path (.png)."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, points in found.items():
        ours = name.startswith(OURS)
        theirs = COLOURS["Overcomplete" if "threshold" in name else "scikit-learn"]
        l0, error = zip(*points.values(), strict=True)
        axis.plot(
            l0,
            error,
            marker="o",
            markersize=4.5 if ours else 3,
            linewidth=2.0 if ours else 1.2,
            linestyle="--" if "refitted" in name else "-",
            color=OUR_COLOURS[0] if ours else theirs,
            label=name,
            zorder=3 if ours else 2,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axis.minorticks_off()
    errors = ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    axis.set_yticks([float(error) for error in errors], errors)
    axis.set_xlabel("mean L0: concepts a row uses")
    axis.set_ylabel("relative error ‖A − ZD‖ / ‖A‖")
    axis.set_title(
        f"Digits (1,797 × 64), K = {CONCEPTS}: fewer concepts for the same error is better",
        loc="left",
        fontsize=11,
    )
    plain(axis)
    axis.legend(frameon=False, fontsize=9, handlelength=3.5)
    save(figure, path)


def main() -> None:
    parser = parser_of(__doc__)
    quick_help = "few points, few iterations, one start"
    parser.add_argument("--quick", action="store_true", help=quick_help)
    parser.add_argument(
        "--figure", type=Path, metavar="PATH.png", default="sparsity.png", help="(sparsity.png)"
    )
    arguments = parser.parse_args()
    A = digits(0).numpy() / 16
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    found = medians([curves(A, arguments.quick, seed) for seed in seeds])
    for name, points in found.items():
        print(name)
        for setting, (l0, error) in points.items():
            print(f"  {setting:<20}L0 {l0:6.2f}   error {error:.4f}")
    draw(found, arguments.figure)
    print(f"chart written to {arguments.figure}")


if __name__ == "__main__":
    main()
