"""Pictures of concepts: what is where on them, and shapes that do not fit."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch

from fastnmf.errors import InvalidInput
from fastnmf.results.concepts.pictures import Heat, Patches, kind_of, shrunk

IMAGES = np.zeros((2, 4, 6, 3), np.uint8)


def pixels(url):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_patches_are_the_concept_the_mean_and_the_rows():
    concept, rows = np.array([0, 1, 2, 4.0]), np.array([[4.0, 0, 0, 0], [0, 0, 0, 4.0]])
    picture = pixels(Patches((2, 2, 1)).picture(concept, rows))
    assert picture.shape == (2, 4 * 2 + 3 * 2, 4)
    assert picture[:, :2, 0].tolist() == [[0, 64], [128, 255]]
    assert picture[:, 4:6, 0].tolist() == [[255, 0], [0, 255]]
    assert picture[:, 8:10, 0].tolist() == [[255, 0], [0, 0]]
    # between two images
    assert not picture[:, 2:4, 3].any()


def test_zero_of_a_concept_of_any_signs_is_grey():
    picture = pixels(Patches((1, 3, 1)).picture(np.array([-2.0, 0, 2.0]), np.zeros((0, 3))))
    assert picture[0, :, 0].tolist() == [0, 128, 255]


def test_heat_is_where_the_codes_are():
    heat = Heat((2, 3), IMAGES)
    picture = pixels(heat.picture([0], np.array([[[0, 0, 1.0], [0, 0, 0]]])))
    assert picture.shape == (4, 6, 4)
    assert picture[:2, 4:, 0].all()
    assert not picture[:2, :4, 0].any()
    assert not picture[2:, :, 0].any()


@pytest.mark.parametrize("shape", [(300, 200, 3), (97, 3, 1), (50, 60, 4)])
def test_large_images_are_made_small(shape):
    small = shrunk(np.full(shape, 7, np.uint8))
    assert max(small.shape[:2]) <= 96
    assert small.shape[2] == shape[2]
    assert (small == 7).all()


WRONG = {
    "no image": ({"image_shape": (2, 3, 3)}, "has 18 values, A has 12 features"),
    "channels": ({"image_shape": (2, 3, 2)}, "c = 1, 3 or 4"),
    "no numbers": ({"image_shape": "ab"}, "must be 3 whole numbers above 0"),
    "tokens alone": ({"tokens": (2, 3)}, "need both tokens="),
    "images alone": ({"images": IMAGES}, "need both tokens="),
    "both": ({"tokens": (2, 3), "images": IMAGES, "image_shape": (2, 6)}, "without tokens="),
    "rows": ({"tokens": (2, 2), "images": IMAGES}, "2 images of 2 × 2 tokens are 8 rows, A has 12"),
    "channels first": (
        {"tokens": (2, 3), "images": IMAGES.transpose(0, 3, 1, 2)},
        r"images.permute\(0, 2, 3, 1\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_shapes_that_do_not_fit_are_refused(case):
    given, message = WRONG[case]
    options = {"image_shape": None, "tokens": None, "images": None, **given}
    with pytest.raises(InvalidInput, match=message):
        kind_of(12, 12, *options.values())


def test_shapes_that_fit():
    assert kind_of(12, 12, (2, 6), None, None) == Patches((2, 6, 1))
    assert isinstance(kind_of(12, 12, None, (2, 3), IMAGES[..., 0]), Heat)
    assert kind_of(12, 12, None, None, None) is None


def test_images_that_are_not_finite_are_refused():
    """They were drawn as any colour, with NumPy's warning."""
    images = np.ones((3, 4, 4, 3))
    images[1, 2] = np.nan
    with pytest.raises(InvalidInput, match="1 of 3 images have entries that are nan or inf, first"):
        kind_of(12, 5, None, (2, 2), images)
    with pytest.raises(InvalidInput, match="images has dtype complex128"):
        kind_of(12, 5, None, (2, 2), images * 1j)


@pytest.mark.parametrize("kind", ["bfloat16", "gradient", "bool"])
def test_images_of_any_kind_of_tensor_are_read(kind):
    images = torch.ones(3, 4, 4, 3)
    given = {
        "bfloat16": images.bfloat16(),
        "gradient": images.clone().requires_grad_(),
        "bool": images.bool(),
    }[kind]
    found = kind_of(12, 5, None, (2, 2), given)
    expected = kind_of(12, 5, None, (2, 2), images)
    codes = np.ones((3, 2, 2), np.float32)
    assert found.picture([0, 1, 2], codes) == expected.picture([0, 1, 2], codes)


def test_sizes_may_be_whole_numbers_of_numpy_and_no_bools():
    assert kind_of(4, 12, tuple(np.array([2, 2, 3])), None, None).shape == (2, 2, 3)
    with pytest.raises(InvalidInput, match="must be 3 whole numbers above 0"):
        kind_of(4, 12, (True, 4, 3), None, None)
