"""Sparse dictionaries beside sparse autoencoders: error against L0 on rows not trained on.

fastnmf (unit norm, l1 penalty; SemiNMF where A has negative entries) and Overcomplete's TopK,
BatchTopK and JumpReLU autoencoders, each trained for the same CPU seconds of one thread, and for
three times as many. Overcomplete's `train_sae` trains them, on inputs that are centred and divided
by their standard deviation, with the best of a grid, by the error with own codes on rows that are
neither trained nor tested on: the learning rate, rows of a batch, the weight of the auxiliary loss
(that of JumpReLU is on its L0), and an encoder that is tied or starts at the dictionary. The grid
is searched with a third of the seconds, which are not counted.

Errors are ‖T − ZD‖ / ‖T‖ of test rows T, for three kinds of codes: a model's own (of fastnmf exact
l1 codes, with the penalty at which new rows have the mean L0); the same refitted exactly on their
support; and exact pursuit codes (`nnls`, top_k). The mean row of an autoencoder costs no concept.
Stability is the mean best cosine of the concepts of two seeds; chance that of rows and other rows
(centred for autoencoders).

--data: .npy files of activations (n, d). By default scikit-learn's digits, 64 features. Full size
(three sets, --concepts 2000 10000) takes days of one core; results are added to --out as they come,
and what is there is not computed again.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnmf import NMF, SemiNMF, nnls

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.chart import COLOURS, OUR_COLOURS, plt, save
from support.options import count, parser_of, positive, write_json

OURS = "fastnmf"
KINDS = ("TopK", "BatchTopK", "JumpReLU")
# learning rate, rows of a batch, weight of the auxiliary loss, and whether the encoder is tied
GRID = {"lr": (3e-4, 1e-3, 3e-3), "batch": (512,), "auxiliary": (0.0, 0.1), "tied": (False, True)}
QUICK = {"lr": (1e-3,), "batch": (512,), "auxiliary": (0.1,), "tied": (False, True)}
# l1 of the start, relative to the mean norm of a row, iterations between two changes of it, and the
# share of the seconds in which it is changed
FIRST_L1, EVERY, CHANGES = 0.01, 2, 0.4
# the penalty of new rows is found on as many, by as many halvings
HALVED_ROWS, HALVINGS = 200, 12


@dataclass(frozen=True)
class Rows:
    """Rows to train on, to choose settings by, and to test on."""

    train: Tensor
    choose: Tensor
    test: Tensor

    @classmethod
    def of(cls, A: Tensor, train: int, test: int, seed: int) -> Rows:
        order = torch.randperm(len(A), generator=torch.Generator().manual_seed(seed))
        first, second = A[order[:test]], A[order[test : 2 * test]]
        return cls(A[order[2 * test : 2 * test + train]], first, second)


def digits() -> Tensor:
    """The digits of scikit-learn."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data).float() / 16


@dataclass(frozen=True)
class Coder:
    """A trained model: D (K, d) with rows of norm 1, the mean row, and codes of its own (n, K)."""

    D: Tensor
    mean: Tensor
    codes: Callable[[Tensor], Tensor]

    def errors(self, T: Tensor, k: int) -> dict[str, float]:
        """The errors of the three kinds of codes of the rows T, and the mean L0 of the first."""
        X, Z = T - self.mean, self.codes(T)
        pursued = nnls(X, self.D, top_k=k)
        found = {"own": Z, "refitted": refitted(X, Z, self.D), "pursuit": pursued}
        errors = {name: float((X - C @ self.D).norm() / T.norm()) for name, C in found.items()}
        return {"l0": float((Z > 0).sum(1).float().mean()), **errors}


def refitted(X: Tensor, Z: Tensor, D: Tensor) -> Tensor:
    """The best codes ≥ 0 on the concepts that each row uses."""
    found = torch.zeros_like(Z)
    for x, z, used in zip(X, found, Z > 0, strict=True):
        if used.any():
            z[used] = nnls(x[None], D[used])[0].to(z)
    return found


def penalised_codes(T: Tensor, D: Tensor, k: int) -> Tensor:
    """Exact l1 codes of T, by the penalty at which some of the rows have a mean L0 of k."""
    some, low, high = T[:HALVED_ROWS], 0.0, float((T @ D.T).max())
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5 if low else high / 10
        active = float((nnls(some, D, l1=middle) > 0).sum(1).float().mean())
        low, high = (middle, high) if active > k else (low, middle)
    return nnls(T, D, l1=high)


def ours(A: Tensor, K: int, k: int, seconds: list[float], seed: int) -> Iterator[Coder]:
    """A model after each of these CPU seconds. The penalty follows L0 / k at first, then stays."""
    kind = SemiNMF if bool((A < 0).any()) else NMF
    options: dict[str, Any] = {"l1_ratio": 1.0, "unit_norm": True, "tol": 0.0, "seed": seed}
    alpha = FIRST_L1 * float(A.norm(dim=1).mean()) / A.shape[1]
    begun, pair = time.process_time(), "auto"
    while time.process_time() - begun < CHANGES * seconds[0] or pair == "auto":
        model = kind(K, alpha_Z=alpha, max_iter=EVERY, init=pair, **options)
        pair = Z, _ = model.fit(A)
        alpha *= min(4.0, max(0.25, float((Z > 0).sum() / len(Z)) / k))
    for until in seconds:
        left = begun + until

        def late(_: object, left: float = left) -> bool:
            return time.process_time() >= left

        model = kind(K, alpha_Z=alpha, max_iter=10**6, init=pair, **options)
        pair = _, D = model.fit(A, callback=late)
        mean = D.new_zeros(D.shape[1])
        yield Coder(D, mean, lambda T, D=D: penalised_codes(T, D, k))


class Batches:
    """Shuffled batches, without an end but that of the CPU seconds."""

    def __init__(self, X: Tensor, rows: int, seed: int) -> None:
        self._X, self._rows = X, rows
        self._generator = torch.Generator().manual_seed(seed)
        self._end = time.process_time()

    def until(self, end: float) -> Batches:
        self._end = end
        return self

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(self._X), generator=self._generator)
            for some in order.split(self._rows):
                if time.process_time() >= self._end:
                    return
                if len(some) == self._rows:
                    yield self._X[some]


def theirs(
    A: Tensor, K: int, k: int, seconds: list[float], seed: int, kind: str, setting: dict[str, Any]
) -> Iterator[Coder]:
    """An autoencoder after each of these CPU seconds, trained by Overcomplete's loop."""
    from overcomplete import sae
    from overcomplete.sae import jump_sae, losses

    torch.manual_seed(seed)
    mean, scale = A.mean(0), float((A - A.mean(0)).square().mean().sqrt())
    given = {"input_shape": A.shape[1], "nb_concepts": K}
    if kind == "TopK":
        model = sae.TopKSAE(top_k=k, **given)
    elif kind == "BatchTopK":
        model = sae.BatchTopKSAE(top_k=k * setting["batch"], **given)
    else:
        model = sae.JumpSAE(**given)
    model = model.tied(bias=True) if setting["tied"] else model.untied(bias=True)
    weight = setting["auxiliary"]

    def loss(x: Tensor, x_hat: Tensor, pre: Tensor, z: Tensor, D: Tensor) -> Tensor:
        if kind == "JumpReLU":
            # the mean L0 is drawn to k, by the gradient that its threshold has
            limits = model.thresholds.exp()
            active = jump_sae.heaviside(pre, limits, model.kernel_fn, model.bandwidth)
            return (x - x_hat).square().mean() + weight * (active.sum(1).mean() / k - 1).square()
        return losses.top_k_auxiliary_loss(x, x_hat, pre, z, D, penalty=weight)

    begun, batches = time.process_time(), Batches((A - mean) / scale, setting["batch"], seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting["lr"])
    for until in seconds:
        end = batches.until(begun + until)
        sae.train_sae(model, end, loss, optimizer, nb_epochs=1, monitoring=0)
        yield _coder(model, mean, scale)


def _coder(trained: Any, mean: Tensor, scale: float) -> Coder:
    model = copy.deepcopy(trained).eval()
    D = model.get_dictionary().detach()
    norms = D.norm(dim=1).clamp(min=1e-12)

    @torch.no_grad()
    def codes(T: Tensor) -> Tensor:
        return model.encode((T - mean) / scale)[1] * (norms * scale)

    return Coder(D / norms[:, None], mean, codes)


def best_setting(
    rows: Rows, K: int, k: int, seconds: float, kind: str, grid: dict[str, Any]
) -> dict[str, Any]:
    """The setting with which an autoencoder of this kind leaves the least error, own codes."""
    grid = {**grid, "auxiliary": grid["auxiliary"] if kind != "JumpReLU" else (0.1, 1.0)}
    settings = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]

    def error(setting: dict[str, Any]) -> float:
        (coder,) = theirs(rows.train, K, k, [seconds], 0, kind, setting)
        X = rows.choose - coder.mean
        Z = coder.codes(rows.choose)
        # more concepts than allowed would be no better
        excess = max(1.0, float((Z > 0).sum() / len(Z)) / (1.1 * k))
        return float((X - Z @ coder.D).norm()) * excess

    return min(settings, key=error) if len(settings) > 1 else settings[0]


def likeness(first: Tensor, second: Tensor) -> float:
    """The mean best cosine of rows with other rows."""
    first, second = (F / F.norm(dim=1, keepdim=True).clamp(min=1e-12) for F in (first, second))
    return float((first @ second.T).amax(1).mean())


def chance(A: Tensor, K: int) -> float:
    """The likeness of K rows and K others, or as many as there are."""
    some = A[: 2 * K]
    return likeness(some[::2], some[1::2])


def measure(name: str, A: Tensor, K: int, k: int, arguments: Namespace, found: list[dict]) -> None:
    """Add what is not yet there of one set, number of concepts and L0 to the entries `found`."""
    about = {"data": name, "K": K, "k": k, "seconds_of_one": arguments.seconds}
    rows = Rows.of(A, arguments.rows, arguments.test_rows, 0)
    about |= {"n": len(rows.train), "d": A.shape[1]}
    seconds = [arguments.seconds, 3 * arguments.seconds]
    grid = QUICK if arguments.quick else GRID
    for model in (OURS, *KINDS):
        if any(entry.items() >= {**about, "model": model}.items() for entry in found):
            continue
        entries, dictionaries, setting = [], [], None
        if model != OURS:
            setting = best_setting(rows, K, k, arguments.seconds / 3, model, grid)
        for seed in range(arguments.seeds):
            given = rows.train, K, k, seconds, seed
            coders = ours(*given) if setting is None else theirs(*given, model, setting)
            for until, coder in zip(seconds, coders, strict=True):
                errors = coder.errors(rows.test, k)
                run = {"model": model, "seed": seed, "seconds": until, "setting": setting}
                entries.append({**about, **run, **errors})
                print(entries[-1], flush=True)
            dictionaries.append(coder.D)
        if len(dictionaries) > 1:
            centred = rows.train if setting is None else rows.train - rows.train.mean(0)
            pairs = itertools.combinations(dictionaries, 2)
            alike = float(np.mean([likeness(*pair) for pair in pairs]))
            entries.append({**about, "model": model, "alike": alike, "chance": chance(centred, K)})
            print(entries[-1], flush=True)
        found += entries
        write_json(arguments.out, found)


def medians(found: list[dict]) -> dict[tuple, dict[str, float]]:
    """Medians over seeds, by data set, K, k, model and seconds relative to the autoencoder's."""
    grouped: dict[tuple, list[dict]] = {}
    for entry in found:
        if "seconds" in entry:
            times = round(entry["seconds"] / entry["seconds_of_one"])
            key = (*(entry[name] for name in ("data", "K", "k", "model")), times)
            grouped.setdefault(key, []).append(entry)
    kinds = ("l0", "own", "refitted", "pursuit")
    return {
        key: {kind: float(np.median([entry[kind] for entry in each])) for kind in kinds}
        for key, each in grouped.items()
    }


def table(found: list[dict]) -> str:
    """The errors and the likeness of two seeds as a Markdown table."""
    alike = {
        tuple(entry[name] for name in ("data", "K", "k", "model")): entry
        for entry in found
        if "alike" in entry
    }
    head = ("data", "K", "k", "model", "seconds", "L0", "own codes", "refitted", "pursuit")
    lines = [
        f"| {' | '.join(head)} | two seeds (chance) |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (*key, times), errors in medians(found).items():
        pair = alike.get(tuple(key))
        both = "" if pair is None or times == 1 else f"{pair['alike']:.2f} ({pair['chance']:.2f})"
        numbers = " | ".join(f"{errors[kind]:.3f}" for kind in ("own", "refitted", "pursuit"))
        name = " | ".join(map(str, key))
        lines.append(f"| {name} | {times} × | {errors['l0']:.1f} | {numbers} | {both} |")
    return "\n".join(lines)


def draw(found: list[dict], path: Path) -> None:
    """Write a chart to path (.png): a panel for each data set and K, error against L0."""
    points = medians(found)
    panels = list(dict.fromkeys(key[:2] for key in points))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.4 * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    colours = dict(zip((OURS, *KINDS), (OUR_COLOURS[0], *COLOURS.values()), strict=True))
    for axis, panel in zip(axes[0], panels, strict=True):
        for model, colour in colours.items():
            for kind, style in {"own": "o-", "pursuit": "^:"}.items():
                some = [
                    (errors["l0"] if kind == "own" else key[2], errors[kind])
                    for key, errors in points.items()
                    if key[:2] == panel and key[3:] == (model, 1)
                ]
                if some:
                    line = {"color": colour, "label": f"{model}, {kind} codes"}
                    axis.plot(*zip(*sorted(some), strict=True), style, **line)
        axis.set_title(f"{panel[0]}, K = {panel[1]:,}", loc="left", fontsize=11)
        active = sorted({key[2] for key in points if key[:2] == panel})
        axis.set_xscale("log")
        axis.set_xlim(active[0] / 1.5, active[-1] * 1.5)
        axis.set_xticks(active, [str(k) for k in active])
        axis.minorticks_off()
        axis.set_xlabel("mean L0 of new rows")
    axes[0][0].set_ylabel("relative error ‖T − ZD‖ / ‖T‖")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save(figure, path)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", nargs="*", type=Path, default=[], help=".npy files (n, d)")
    parser.add_argument("--concepts", nargs="+", type=count, default=[2000, 10_000])
    parser.add_argument("--l0", nargs="+", type=count, default=[16, 32, 64])
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--seconds", type=positive, default=120.0, help="CPU seconds of a model")
    parser.add_argument("--rows", type=count, default=30_000, help="to train on, at most")
    parser.add_argument("--test-rows", type=count, default=1000)
    parser.add_argument("--quick", action="store_true", help="a grid of one learning rate")
    parser.add_argument("--out", type=Path, default=Path("bench/results/sae.json"))
    arguments = parser.parse_args()
    # others' threads would count as ours, by CPU seconds
    torch.set_num_threads(1)
    sets = {path.stem: path for path in arguments.data}
    drawn = {name: torch.from_numpy(np.load(path)).float() for name, path in sets.items()}
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for name, A in (drawn or {"digits": digits()}).items():
        for K, k in itertools.product(arguments.concepts, arguments.l0):
            measure(name, A, K, k, arguments, found)
    print(table(found))
    draw(found, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
