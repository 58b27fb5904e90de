"""PNG files: what Pillow reads is what was given."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from fastnmf.results.pages.png import data_url, png


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_are_read_back(channels):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(pixels))))
    np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)


def test_data_url_is_the_file_in_base64():
    pixels = np.zeros((1, 1, 3), np.uint8)
    kind, content = data_url(pixels).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == png(pixels)
