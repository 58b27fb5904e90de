"""Real data that need no download: from scikit-learn, from Python's own library, and activations
of a network whose weights are in a package."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from support.measure import imported
from support.workloads import WORKLOADS, load

# rows drawn at most, fewer where there are many features, and words of the vocabulary
ROWS, FEWER_ROWS, WORDS = 10_000, 3_000, 1_000
# of a docstring that is used
FEWEST_WORDS = 20


@dataclass(frozen=True)
class DataSet:
    """draw(seed) → rows (n, d), float32, ≥ 0; K: the number of concepts they are fitted with.

    draw skips, as `imported` does, where a package that it needs is not installed.
    """

    draw: Callable[[int], Tensor]
    K: int


def digits(seed: int) -> Tensor:
    """All 1,797 digits of scikit-learn, 8 × 8 grey levels of 0 to 16, whatever the seed."""
    imported("sklearn.datasets", "scikit-learn")
    return load("digits").A


def colour_patches(seed: int) -> Tensor:
    """8 × 8 × 3, from anywhere in scikit-learn's two photographs."""
    return _patches(photographs(), 8, seed)


def grey_patches(seed: int) -> Tensor:
    """16 × 16, the mean of the three colours."""
    return _patches(photographs().mean(3, keepdims=True), 16, seed)


def large_patches(seed: int) -> Tensor:
    """24 × 24 × 3: enough features for 1,000 concepts."""
    return _patches(photographs(), 24, seed, FEWER_ROWS)


def activations(seed: int) -> Tensor:
    """The third convolution (64 channels) of MTCNN's third network, rectified, at random positions
    of both photographs. Source: Zhang, Zhang, Li & Qiao, 2016."""
    # the weights alone, without importing a package that requires other versions of torch
    found = importlib.util.find_spec("facenet_pytorch")
    if found is None:
        pytest.skip("facenet-pytorch is not installed (pip install --no-deps facenet-pytorch)")
    file = Path(found.submodule_search_locations[0]) / "data" / "onet.pt"
    weights = torch.load(file, weights_only=True)
    X = torch.from_numpy(photographs()).permute(0, 3, 1, 2) * 2 - 1
    for layer in (1, 2, 3):
        X = functional.conv2d(X, weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"])
        X = functional.prelu(X, weights[f"prelu{layer}.weight"])
        if layer < 3:
            X = functional.max_pool2d(X, 3, 2, ceil_mode=True)
    rows = X.clamp(min=0).permute(0, 2, 3, 1).reshape(-1, X.shape[1])
    return rows[np.random.default_rng(seed).choice(len(rows), ROWS, replace=False)]


def docstrings(seed: int) -> Tensor:
    """tf-idf of the most frequent words in docstrings of Python's own library, whatever the seed:
    a row of norm 1 for each docstring with enough words. They depend on the version of Python."""
    text = imported("sklearn.feature_extraction.text", "scikit-learn")
    vectorizer = text.TfidfVectorizer(
        max_features=WORDS, stop_words="english", token_pattern="[a-z]{3,}", dtype=np.float32
    )
    rows = torch.from_numpy(vectorizer.fit_transform(sorted(set(_docstrings()))).toarray())
    return rows[rows.any(1)]


def online_patches(rows: int) -> Tensor:
    """8 × 8 × 3 patches (rows, 192) of the first photograph, from the same draws every time."""
    X = _patches(photographs()[:1, :-1, :-1], 8, 0, rows).reshape(rows, 3, 64)
    return X.transpose(1, 2).reshape(rows, -1)


DATA_SETS = {
    "digits": DataSet(digits, WORKLOADS["digits"].K),
    "colour patches": DataSet(colour_patches, 64),
    "grey patches": DataSet(grey_patches, 128),
    "activations": DataSet(activations, 48),
    "docstrings": DataSet(docstrings, 50),
    "large patches": DataSet(large_patches, 1_000),
}


def photographs() -> np.ndarray:
    """(2, 427, 640, 3), float32, 0 to 1."""
    found = imported("sklearn.datasets", "scikit-learn").load_sample_images().images
    return np.stack(found).astype(np.float32) / 255


def _patches(images: np.ndarray, size: int, seed: int, rows: int = ROWS) -> Tensor:
    random = np.random.default_rng(seed)
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))
    image, top, left = (random.integers(0, most, rows) for most in windows.shape[:3])
    return torch.from_numpy(windows[image, top, left].reshape(rows, -1))


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for file in itertools.chain(library.glob("*.py"), library.glob("*/*.py")):
        if file.parent.name in ("site-packages", "dist-packages", "test"):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found = ast.get_docstring(node) or ""
                if len(found.split()) >= FEWEST_WORDS:
                    yield found
