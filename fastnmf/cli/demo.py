"""The demo: learn concepts of a photograph's patches, draw them, and rebuild the photograph.

It needs the extra `demo`: scikit-learn, which has the photograph, and Pillow, which draws."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.paths import replacing
from ..errors import InvalidInput
from ..models.nmf import NMF
from ..results.info import FitInfo

if TYPE_CHECKING:
    from PIL.Image import Image


REQUIRED = {"sklearn": "scikit-learn", "PIL": "Pillow"}
# in pixels; a concept is drawn SCALE times its size
PATCH, SCALE, GAP, MARGIN, CAPTION = 16, 2, 1, 28, 34
COLUMNS, SHOWN = 40, 1000
BACKGROUND, INK = (24, 24, 27), (228, 228, 231)
FIT_ITERATIONS = 20


@dataclass(frozen=True)
class DemoSummary:
    """Summary of the fit of the patches, and ‖A − Z D‖ / ‖A‖ of the rebuilt photograph."""

    fit: FitInfo
    photograph_error: float

    def __str__(self) -> str:
        fit = self.fit
        lines = {
            "data": f"{fit.n:,} patches of {PATCH} × {PATCH} pixels: {fit.d} features",
            "concepts": f"{fit.nb_concepts:,}, of which {fit.dead_concepts:,} dead",
            "relative error": f"{fit.relative_error:.4g}; photograph: {self.photograph_error:.4g}",
            "mean L0": f"{fit.mean_l0:.4g} concepts a patch",
            "solver": f"{fit.solver}, backend {fit.backend}, on {fit.device}",
            "time": f"{fit.seconds:.3g} s for {fit.iterations} iterations",
        }
        return "\n".join(f"{name + ':':<16}{value}" for name, value in lines.items())


def learn_photograph(
    path: Path,
    *,
    concepts: int = SHOWN,
    patches: int = 20_000,
    seed: int = 0,
    solver: str = "hals",
    device: str = "cpu",
    verbose: bool = False,
) -> DemoSummary:
    """Learn the concepts of a photograph's patches, and write a picture of both to path (.png).

    Raises ModuleNotFoundError, saying what to install, without the extra `demo`, and InvalidInput
    for options that cannot be used.
    """
    reason = probe()
    if reason is not None:
        raise ModuleNotFoundError(reason)
    if not 1 <= concepts <= patches:
        raise InvalidInput(
            f"concepts={concepts} must be from 1 to the number of patches, {patches}"
        )
    photograph = load_photograph()
    random = np.random.default_rng(seed)
    A = draw_patches(photograph, patches, random)
    start = start_from_patches(A, concepts, random)
    # a fixed amount of work: tol=0 never stops early
    nmf = NMF(concepts, device, solver, 0, verbose, max_iter=FIT_ITERATIONS, init=start)
    Z, D = nmf.fit(A)
    tiles = cut(photograph)
    rebuilt = nmf.decode(nmf.encode(tiles)).cpu().numpy()
    error = float(np.linalg.norm(tiles - rebuilt) / np.linalg.norm(tiles))
    light = Z.sum(0) * D.sum(1)
    shown = D[light.argsort(descending=True)[:SHOWN]].cpu().numpy()
    with replacing(path) as part:
        draw(photograph, join(rebuilt, photograph.shape), shown, error).save(part)
    assert Z is not None
    assert nmf.fit_info_ is not None
    return DemoSummary(nmf.fit_info_, error)


def probe() -> str | None:
    """Why the demo cannot run here, or None."""
    missing = [name for module, name in REQUIRED.items() if not importlib.util.find_spec(module)]
    if not missing:
        return None
    return f"the demo needs {' and '.join(missing)}: pip install {' '.join(missing)}"


def load_photograph() -> np.ndarray:
    """A photograph (h, w, 3) in 0 … 1, cut to whole patches."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")
    h, w = (side // PATCH * PATCH for side in pixels.shape[:2])
    return pixels[:h, :w].astype(np.float32) / 255


def draw_patches(photograph: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """A (n, d): patches drawn in proportion to their contrast, since half of the picture is sky."""
    windows = np.lib.stride_tricks.sliding_window_view
    contrast = windows(photograph.mean(2), (PATCH, PATCH)).std((2, 3))
    chosen = random.choice(contrast.size, n, p=contrast.ravel() / contrast.sum())
    rows, columns = np.divmod(chosen, contrast.shape[1])
    return windows(photograph, (PATCH, PATCH, 3))[rows, columns, 0].reshape(n, -1)


def start_from_patches(
    A: np.ndarray, concepts: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(Z0, D0): some patches as concepts, and each patch coded by the most similar concept."""
    D = A[random.permutation(len(A))[:concepts]]
    norms = np.linalg.norm(D, axis=1)
    likeness = A @ (D / norms[:, None]).T
    nearest = likeness.argmax(1)
    # not zero, which multiplicative updates could never leave
    Z = np.full_like(likeness, 1e-4)
    every = np.arange(len(A))
    Z[every, nearest] = likeness[every, nearest] / norms[nearest]
    return Z, D


def cut(photograph: np.ndarray) -> np.ndarray:
    """The patches that tile a photograph, one a row."""
    h, w, _ = photograph.shape
    tiles = photograph.reshape(h // PATCH, PATCH, w // PATCH, PATCH, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, PATCH * PATCH * 3)


def join(tiles: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The photograph of which `cut` gives these tiles."""
    h, w, _ = shape
    tiles = tiles.reshape(h // PATCH, w // PATCH, PATCH, PATCH, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(shape)


def draw(photograph: np.ndarray, rebuilt: np.ndarray, D: np.ndarray, error: float) -> Image:
    """The photograph beside its reconstruction, and the concepts (K, d) below, each scaled to full
    brightness."""
    from PIL import Image, ImageDraw, ImageFont

    cell = PATCH * SCALE + GAP
    h, w, _ = photograph.shape
    left, right = MARGIN, MARGIN + COLUMNS * cell - GAP
    top = MARGIN + CAPTION
    below = top + h + MARGIN + CAPTION
    bottom = below + -(-len(D) // COLUMNS) * cell - GAP
    picture = Image.new("RGB", (right + MARGIN, bottom + MARGIN), BACKGROUND)
    picture.paste(_image(photograph), (left, top))
    picture.paste(_image(rebuilt), (right - w, top))
    for place, concept in enumerate(D):
        row, column = divmod(place, COLUMNS)
        tile = concept.reshape(PATCH, PATCH, 3) / max(concept.max(), np.finfo(D.dtype).tiny)
        tile = _image(tile.repeat(SCALE, 0).repeat(SCALE, 1))
        picture.paste(tile, (left + column * cell, below + row * cell))
    captions = {
        (left, top): "the photograph",
        (right - w, top): f"rebuilt from its concepts: relative error {error:.1%}",
        (left, below): f"{len(D):,} concepts, by the share of the light they carry",
    }
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(19)
    for (x, y), text in captions.items():
        pen.text((x, y - CAPTION), text, fill=INK, font=font)
    return picture


def _image(values: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
