"""Pictures of concepts: the concept itself, the mean of its top rows, and these, as one picture; or
heat maps of its codes over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidInput
from ...frames import REAL
from ..pages.png import data_url

# pixels between two images, and the longest side of one
GAP, SIDE = 2, 96
# of heat maps
_HOT = np.array([255, 96, 32], np.float32)


@dataclass(frozen=True)
class Patches:
    """Rows of A, and concepts, that are images of shape (h, w, c)."""

    shape: tuple[int, int, int]

    def picture(self, concept: np.ndarray, rows: np.ndarray) -> str:
        """The concept (d,), the mean of its top rows (m, d), and these."""
        shown = [_scaled(concept.reshape(self.shape), signed=bool((concept < 0).any()))]
        if len(rows):
            images = rows.reshape(-1, *self.shape)
            shown += [_scaled(each) for each in (images.mean(0), *images)]
        return data_url(_grid([shrunk(each) for each in shown], 5))


@dataclass(frozen=True)
class Heat:
    """Rows of A that are the places (h, w) of images (N, H, W, c), image after image."""

    tokens: tuple[int, int]
    images: np.ndarray

    def picture(self, tops: list[int], codes: np.ndarray) -> str:
        """These images, each lit by the codes (m, h, w) of a concept."""
        most = max(float(codes.max()), 1e-30)
        shown = []
        for number, heat in zip(tops, codes, strict=True):
            image = shrunk(colours(self.images[number])).astype(np.float32)
            h, w = image.shape[:2]
            rows = np.arange(h) * heat.shape[0] // h
            columns = np.arange(w) * heat.shape[1] // w
            share = (heat[rows][:, columns] / most)[..., None]
            grey = image.mean(2, keepdims=True) * 0.5
            shown.append((grey * (1 - share) + (0.5 * image + 0.5 * _HOT) * share).astype(np.uint8))
        return data_url(_grid(shown, 2 if len(shown) <= 4 else 3))


def kind_of(n: int, d: int, image_shape: Any, tokens: Any, images: Any) -> Patches | Heat | None:
    """What the rows of A (n, d) are. Raises InvalidInput for shapes that do not fit."""
    if tokens is None and images is None:
        return None if image_shape is None else Patches(_image_shape(image_shape, d))
    if image_shape is not None:
        raise InvalidInput("image_shape= is for rows that are images; give it without tokens=")
    if tokens is None or images is None:
        raise InvalidInput(
            "heat maps need both tokens=(h, w), the places of an image that are rows, and images=, "
            "(N, H, W, c)"
        )
    h, w = _sizes("tokens", tokens, 2)
    pixels = _pixels(images)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4):
        raise InvalidInput(
            f"images has shape {pixels.shape}; it must be (N, H, W, c) with c = 1, 3 or 4: give "
            "images.permute(0, 2, 3, 1) of channels that come first"
        )
    if len(pixels) * h * w != n:
        raise InvalidInput(
            f"{len(pixels)} images of {h} × {w} tokens are {len(pixels) * h * w:,} rows, A has "
            f"{n:,}; give the images in the order of the rows"
        )
    bad = [i for i, image in enumerate(pixels) if not np.isfinite(image).all()]
    if bad:
        raise InvalidInput(
            f"{len(bad):,} of {len(pixels):,} images have entries that are nan or inf, first "
            f"image {bad[0]}; give finite ones"
        )
    return Heat((h, w), pixels)


def _pixels(images: Any) -> np.ndarray:
    """Images as an array of numbers."""
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = images.float() if images.dtype == torch.bfloat16 else images
    pixels = np.asarray(images)
    if pixels.dtype.kind not in REAL:
        raise InvalidInput(f"images has dtype {pixels.dtype}; it must hold real numbers")
    return pixels


def _image_shape(image_shape: Any, d: int) -> tuple[int, int, int]:
    given = tuple(image_shape) if hasattr(image_shape, "__iter__") else (image_shape,)
    h, w, c = _sizes("image_shape", given + (1,) * (len(given) == 2), 3)
    if h * w * c != d or c not in (1, 3, 4):
        raise InvalidInput(
            f"image_shape={given} has {h * w * c:,} values, A has {d:,} features; give (h, w, c) "
            "with h w c = d, and c = 1, 3 or 4"
        )
    return h, w, c


def _sizes(name: str, given: Any, count: int) -> tuple[int, ...]:
    sizes = tuple(given) if hasattr(given, "__iter__") else ()
    whole = all(hasattr(size, "__index__") and not isinstance(size, bool) for size in sizes)
    if len(sizes) != count or not whole or min(sizes) < 1:
        raise InvalidInput(f"{name}={given!r} must be {count} whole numbers above 0")
    return tuple(map(int, sizes))


def colours(image: np.ndarray) -> np.ndarray:
    """An image (h, w, c) as uint8: floats from 0 to 1 as they are, others scaled."""
    if image.dtype == np.uint8:
        return image
    if image.min() < 0 or image.max() > 1:
        return _scaled(image)
    return (image * 255).round().astype(np.uint8)


def _scaled(image: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """An image of any range as uint8, from black to white; of any signs, zero is grey."""
    image = np.asarray(image, np.float32)
    if signed:
        most = max(float(np.abs(image).max()), 1e-30)
        return (127.5 + 127.5 * image / most).round().astype(np.uint8)
    least, most = min(float(image.min()), 0.0), float(image.max())
    return ((image - least) / max(most - least, 1e-30) * 255).round().astype(np.uint8)


def shrunk(image: np.ndarray) -> np.ndarray:
    """An image whose sides are at most SIDE, by means of squares of pixels."""
    step = -(-max(image.shape[:2]) // SIDE)
    if step == 1:
        return image
    h, w = (max(1, side // step) for side in image.shape[:2])
    image = image[: h * step, : w * step] if min(image.shape[:2]) >= step else image[:step, :step]
    blocks = image.reshape(h, image.shape[0] // h, w, image.shape[1] // w, -1)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def _grid(images: list[np.ndarray], columns: int) -> np.ndarray:
    """One picture (…, …, 4) of equal images, row after row, with clear pixels between them."""
    (h, w), count = images[0].shape[:2], len(images)
    across, down = min(columns, count), -(-count // columns)
    whole = np.zeros((down * (h + GAP) - GAP, across * (w + GAP) - GAP, 4), np.uint8)
    for place, image in enumerate(images):
        top, left = (h + GAP) * (place // columns), (w + GAP) * (place % columns)
        c = image.shape[2]
        part = whole[top : top + h, left : left + w]
        part[..., :3] = np.repeat(image, 3, 2) if c == 1 else image[..., :3]
        part[..., 3] = image[..., 3] if c == 4 else 255
    return whole
