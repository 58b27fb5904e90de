"""The demo on a few patches: what it finds, and what the picture shows."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

from fastnmf.cli import demo
from fastnmf.cli import main as cli
from fastnmf.errors import InvalidInput

CONCEPTS = 45


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(summary, pixels) of a small demo."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    path = tmp_path_factory.mktemp("demo") / "concepts.png"
    summary = demo.learn_photograph(path, concepts=CONCEPTS, patches=300)
    assert os.listdir(path.parent) == ["concepts.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return summary, np.asarray(picture).astype(np.float32) / 255


def place(pixels, left, top, width, height):
    return pixels[top : top + height, left : left + width]


TOP = demo.MARGIN + demo.CAPTION
CELL = demo.PATCH * demo.SCALE + demo.GAP


def test_picture_is_large_enough_for_all(shown):
    _, pixels = shown
    width = demo.COLUMNS * CELL - demo.GAP + 2 * demo.MARGIN
    height = 2 * TOP + 416 + 2 * CELL - demo.GAP + demo.MARGIN
    assert pixels.shape == (height, width, 3)


def test_picture_shows_the_photograph_and_what_was_rebuilt(shown):
    summary, pixels = shown
    photograph = place(pixels, demo.MARGIN, TOP, 640, 416)
    rebuilt = place(pixels, pixels.shape[1] - demo.MARGIN - 640, TOP, 640, 416)
    np.testing.assert_allclose(photograph, demo.load_photograph(), atol=1 / 255)
    error = np.linalg.norm(photograph - rebuilt) / np.linalg.norm(photograph)
    assert 0 < error < 0.3
    assert error == pytest.approx(summary.photograph_error, abs=0.01)


def test_picture_shows_every_concept_at_its_brightest(shown):
    summary, pixels = shown
    below = 2 * TOP + 416
    tiles = [
        place(
            pixels, demo.MARGIN + k % demo.COLUMNS * CELL, below + k // demo.COLUMNS * CELL, 32, 32
        )
        for k in range(CONCEPTS)
    ]
    bright = [tile.max() for tile in tiles]
    assert bright.count(1) == CONCEPTS - summary.fit.dead_concepts
    varied = [tile.std() > 0.01 for tile in tiles]
    assert sum(varied) > 0.9 * CONCEPTS


def test_summary_says_what_was_found(shown):
    summary, _ = shown
    assert 0 < summary.fit.relative_error < 0.5
    printed = str(summary)
    for words in ("300 patches", "45, of which", "relative error", "mean L0", "backend"):
        assert words in printed


def test_cut_and_join_are_inverse():
    photograph = np.random.default_rng(0).random((32, 48, 3))
    tiles = demo.cut(photograph)
    assert tiles.shape == (6, 768)
    np.testing.assert_array_equal(tiles[1].reshape(16, 16, 3), photograph[:16, 16:32])
    np.testing.assert_array_equal(demo.join(tiles, photograph.shape), photograph)


def test_same_seed_gives_the_same_patches():
    photograph = np.random.default_rng(0).random((40, 40, 3))
    first, again = (demo.draw_patches(photograph, 9, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (9, 768)


def test_more_concepts_than_patches_are_refused(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for concepts in (0, 301):
        with pytest.raises(InvalidInput, match="from 1 to the number of patches, 300"):
            demo.learn_photograph(tmp_path / "x.png", concepts=concepts, patches=300)


@pytest.mark.parametrize("quiet", [False, True])
def test_summary_is_printed_unless_quiet(quiet, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "learn_photograph", lambda *given, **options: "what was found")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--out", "x.png", *["--quiet"][:quiet]]) == 0
    printed = capsys.readouterr().out
    assert printed == "" if quiet else {"found", "x.png"} <= set(printed.split())


def test_missing_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in demo.REQUIRED else found(name)
    )
    assert cli.main(["demo"]) == 1
    printed = capsys.readouterr().err
    assert "needs scikit-learn and Pillow: pip install scikit-learn Pillow" in printed
    assert not os.listdir(tmp_path)
