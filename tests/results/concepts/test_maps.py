"""Maps of concepts."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fastnmf import NMF, InvalidInput
from fastnmf.results.concepts import maps

DRAWN = torch.Generator().manual_seed(0)
# three groups of six
CENTRES = torch.eye(3, 12).repeat_interleave(6, 0)
D = CENTRES + 0.1 * torch.rand(18, 12, generator=DRAWN)


def grouped(xy):
    """Whether the nearest other concept of each is of its own group."""
    nearest = torch.cdist(xy, xy).fill_diagonal_(torch.inf).argmin(1)
    return bool((nearest // 6 == torch.arange(18) // 6).all())


@pytest.mark.parametrize("kind", maps.MAPS)
def test_similar_concepts_are_near_each_other_the_same_in_each_call(kind):
    if maps.MAPS[kind].module is not None:
        pytest.importorskip(maps.MAPS[kind].module)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    xy = maps.places(D, kind)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert (xy.shape, xy.dtype) == ((18, 2), torch.float64)
    assert xy.abs().amax(0).tolist() == pytest.approx([1, 1])
    assert grouped(xy)
    assert torch.equal(xy, maps.places(D, kind))


def test_by_svd_it_has_the_leading_singular_vectors():
    xy = maps.places(D)
    units = torch.nn.functional.normalize(D.double(), dim=1)
    U, S, _ = torch.linalg.svd(units - units.mean(0))
    for axis in range(2):
        cosine = torch.cosine_similarity(xy[:, axis], U[:, axis] * S[axis], dim=0)
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (2, 2)])
def test_map_of_few_concepts_or_features_is_finite(shape):
    xy = maps.places(torch.rand(shape, generator=DRAWN))
    assert xy.shape == (shape[0], 2)
    assert bool(xy.isfinite().all())


def test_dead_concepts_have_a_place():
    pytest.importorskip("sklearn")
    dead = torch.cat([D, torch.zeros(2, 12)])
    assert bool(maps.places(dead, "tsne").isfinite().all())


def test_umap_is_asked_for_a_map_that_is_the_same_in_each_call(monkeypatch):
    """Whatever is installed."""
    asked = {}

    class UMAP:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, units):
            return units[:, :2].astype(np.float32)

    module = ModuleType("umap")
    module.UMAP = UMAP
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "umap", module)
    xy = maps.places(D, "umap")
    assert xy.dtype == torch.float64
    assert asked["random_state"] == 0
    assert asked["n_neighbors"] == 15


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="map='umap' needs umap-learn: pip install"):
        maps.places(D, "umap")


def test_a_number_of_concepts_it_is_not_for_is_refused(monkeypatch):
    pytest.importorskip("sklearn")
    with pytest.raises(InvalidInput, match="5 to 5,000 concepts, the model has 4; take map='svd'"):
        maps.places(D[:4], "tsne")
    with pytest.raises(InvalidInput, match="the model has 5,001"):
        maps.places(torch.ones(5_001, 2), "tsne")


def test_the_page_says_what_made_its_map():
    pytest.importorskip("sklearn")
    model = NMF(18).load_dictionary(D)
    for kind, title in {"svd": "two leading singular vectors", "tsne": "t-SNE"}.items():
        concepts = model.show_concepts(D, torch.eye(18), map=kind)
        assert concepts.map == kind
        assert f"Map ({title}" in concepts.html()
    with pytest.raises(InvalidInput, match="did you mean 'tsne'"):
        model.show_concepts(D, map="t-sne")


@pytest.mark.parametrize("kind", ["tsne", "umap"])
def test_concepts_that_are_the_same_are_no_map(kind):
    """t-SNE crashed: segmentation fault."""
    pytest.importorskip(maps.MAPS[kind].module)
    for concepts in (torch.zeros(8, 4), D[:1].repeat(8, 1), D[[0, 1, 2, 2, 1, 0]]):
        with pytest.raises(InvalidInput, match="5 or more concepts that differ"):
            maps.places(concepts, kind)
    assert maps.places(torch.zeros(8, 4)).isfinite().all()
