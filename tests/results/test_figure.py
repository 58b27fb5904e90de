"""Figures in notebooks."""

from __future__ import annotations

import struct

import pytest
import torch

from fastnmf import NMF, choose_concepts

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

A = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))


def of_a_fit():
    model = NMF(2, seed=0, max_iter=3, tol=0)
    model.fit(A)
    return model.plot()


def of_a_choice():
    return choose_concepts(A, [1, 2], folds=2, seed=0, max_iter=3, tol=0).plot()


@pytest.mark.parametrize("draw", [of_a_fit, of_a_choice])
def test_a_notebook_is_given_a_picture_of_twice_the_size_it_is_shown(draw):
    picture, shown = draw()._repr_png_()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert (shown["width"], shown["height"]) == (width // 2, height // 2)
    assert shown["width"] > 500
