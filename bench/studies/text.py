"""Show default fits of a real sparse matrix, and scripts, by fastnmf and by scikit-learn.

The matrix: TF-IDF of the docstrings of numpy, torch, scipy and scikit-learn, as installed, with up
to 20,000 words that are in two or more of them. A fit: NMF(K, random_state=0) of fastnmf.sklearn
and of sklearn.decomposition, in turn, the least of some times.

The scripts run unchanged with and without patch_sklearn: a pipeline of TfidfVectorizer and NMF on
the same texts, and consensus NMF (as cNMF: `mu`, random starts, clusters of components, codes for
their medians) of 2,000 × 2,000 counts.

Takes two minutes, and half a minute with --quick. Needs scikit-learn.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn import decomposition
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline

from fastnmf.sklearn import NMF, patch_sklearn, unpatch_sklearn

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.options import count, parser_of

PACKAGES = ("numpy", "torch", "scipy.stats", "sklearn.linear_model", "sklearn.ensemble")
SHORTEST = 200
COMPONENTS = (10, 20, 50, 100)
PROGRAMS = 8


def docstrings() -> list[str]:
    """The docstrings of all that the packages have imported, in one order."""
    for package in PACKAGES:
        importlib.import_module(package)
    tops = tuple(package.partition(".")[0] for package in PACKAGES)
    found: dict[str, None] = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in tops:
            found |= dict.fromkeys(_texts(module))
    return list(found)


def _texts(module: Any) -> Iterator[str]:
    for _, value in sorted(getattr(module, "__dict__", {}).items()):
        members = vars(value).values() if inspect.isclass(value) else ()
        for each in (value, *members):
            text = None if inspect.ismodule(each) else getattr(each, "__doc__", None)
            if isinstance(text, str) and len(text) > SHORTEST:
                yield inspect.cleandoc(text)


def fastest(call: Callable[[], Any], times: int, clock: Callable[[], float]) -> tuple[float, Any]:
    """The least time of some calls, and what the last returned."""
    least, found = float("inf"), None
    for _ in range(times):
        begun = clock()
        found = call()
        least = min(least, clock() - begun)
    return least, found


def fits(X: Any, components: tuple[int, ...], times: int, clock: Callable[[], float]) -> None:
    print("\n| K | scikit-learn | iterations | fastnmf | iterations | times as fast | error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for K in components:
        theirs, model = fastest(
            lambda K=K: decomposition.NMF(K, random_state=0).fit(X), times, clock
        )
        ours, own = fastest(lambda K=K: NMF(K, random_state=0).fit(X), times, clock)
        error = own.reconstruction_err_ / model.reconstruction_err_ - 1
        print(
            f"| {K} | {theirs:.2f} s | {model.n_iter_} | {ours:.2f} s | {own.n_iter_} | "
            f"{theirs / ours:.1f} | {error:+.3%} |"
        )


def pipeline(texts: list[str]) -> float:
    """Topics of texts; the error of their factorization."""
    steps = [
        ("tfidf", TfidfVectorizer(min_df=2, max_features=20_000, stop_words="english")),
        ("nmf", decomposition.NMF(20, random_state=0)),
    ]
    return Pipeline(steps).fit(texts)["nmf"].reconstruction_err_


def counts(n: int = 2000, d: int = 2000) -> scipy.sparse.csr_matrix:
    """Counts of n cells × d genes, drawn from PROGRAMS programs."""
    random = np.random.default_rng(0)
    programs = random.gamma(0.1, size=(PROGRAMS, d))
    cells = random.gamma(0.3, size=(n, PROGRAMS)) @ (programs / programs.sum(1, keepdims=True))
    return scipy.sparse.csr_matrix(random.poisson(200 * cells).astype(float))


def consensus(X: Any) -> float:
    """Consensus of ten fits; the error of the codes for it."""
    options = {"init": "random", "solver": "mu", "max_iter": 1000, "tol": 1e-4}
    components = []
    for seed in range(10):
        _, H, _ = decomposition.non_negative_factorization(
            X, n_components=PROGRAMS, random_state=seed, **options
        )
        components.append(H / np.linalg.norm(H, axis=1, keepdims=True))
    components = np.vstack(components)
    found = KMeans(PROGRAMS, n_init=10, random_state=0).fit_predict(components)
    medians = np.array([np.median(components[found == k], axis=0) for k in range(PROGRAMS)])
    W, H, _ = decomposition.non_negative_factorization(
        X, H=medians, n_components=PROGRAMS, update_H=False
    )
    return float(np.linalg.norm(X - W @ H))


def scripts(given: dict[str, tuple[Callable, Any]], clock: Callable[[], float]) -> None:
    print("\n| script | scikit-learn | patched | times as fast | error |")
    print("|---|---:|---:|---:|---:|")
    for name, (script, data) in given.items():
        theirs, error = fastest(lambda script=script, data=data: script(data), 1, clock)
        patch_sklearn()
        try:
            ours, own = fastest(lambda script=script, data=data: script(data), 1, clock)
        finally:
            unpatch_sklearn()
        ratio = own / error - 1
        print(f"| {name} | {theirs:.2f} s | {ours:.2f} s | {theirs / ours:.1f} | {ratio:+.3%} |")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer components, one time each")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="of the one thread, where other programs run: with --threads 1 and OMP_NUM_THREADS=1",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    warnings.simplefilter("ignore")
    texts = docstrings()
    vectorizer = TfidfVectorizer(min_df=2, max_features=20_000, stop_words="english")
    X = vectorizer.fit_transform(texts)
    print(f"{X.shape[0]:,} × {X.shape[1]:,}, {X.nnz / np.prod(X.shape):.2%}, {X.dtype}")
    few = arguments.quick
    fits(X, COMPONENTS[:2] if few else COMPONENTS, 1 if few else 3, clock)
    scripts({"pipeline": (pipeline, texts), "consensus": (consensus, counts())}, clock)


if __name__ == "__main__":
    main()
