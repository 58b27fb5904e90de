import itertools

import pytest
import torch

from fastnmf.selection.matching import (
    aligned,
    directions,
    distances_of_neighbours,
    in_order,
    match,
    mean_cosine,
    median,
    silhouettes,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_match_has_the_largest_sum_of_cosines_of_all_permutations():
    U, V = directions(drawn(5, 7)), directions(drawn(5, 7, seed=1))
    cosines = U @ V.T
    best = max(
        float(cosines[range(5), list(order)].sum()) for order in itertools.permutations(range(5))
    )
    assert float(cosines[range(5), match(U, V)].sum()) == pytest.approx(best, abs=1e-12)


def test_directions_of_tiny_huge_and_zero_concepts():
    D = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]])
    found = directions(D)
    assert torch.allclose(found[:3], torch.tensor([0.6, 0.8]).double(), atol=1e-7)
    assert (found[3] == 0).all()


def test_mean_cosine_of_permuted_and_scaled_dictionaries_is_one():
    D = drawn(6, 9)
    assert mean_cosine([D, 3 * D[torch.randperm(6)], D.flip(0)]) == pytest.approx(1, abs=1e-12)
    assert mean_cosine([D]) == 1


def test_alignment_undoes_permutations():
    D = directions(drawn(6, 9))
    orders = [torch.randperm(6, generator=torch.Generator().manual_seed(r)) for r in range(4)]
    units = torch.stack([D[order] for order in orders])
    order, centres = aligned(units, 0)
    ordered = in_order(units, order)
    assert all(torch.equal(ordered[0], each) for each in ordered)
    assert torch.allclose(centres, ordered[0])


def test_silhouettes_and_distances_equal_their_definitions():
    units = directions(drawn(4, 3, 5))
    distances = 1 - torch.einsum("rkd,sld->rksl", units, units)
    for r, k in itertools.product(range(4), range(3)):
        others = [s for s in range(4) if s != r]
        within = distances[r, k, others, k].mean()
        apart = min(distances[r, k, :, other].mean() for other in range(3) if other != k)
        expected = (apart - within) / max(apart, within)
        assert silhouettes(units)[r, k] == pytest.approx(float(expected), abs=1e-12)
        nearest = min(float(torch.dist(units[r, k], units[s, k])) for s in others)
        assert distances_of_neighbours(units)[r, k] == pytest.approx(nearest, abs=1e-7)


def test_silhouette_of_one_concept_is_its_mean_cosine():
    units = directions(drawn(3, 1, 5))
    cosines = units[:, 0] @ units[:, 0].T
    expected = (cosines.sum(1) - 1) / 2
    assert torch.allclose(silhouettes(units)[:, 0], expected)


def test_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert median(torch.tensor([[1.0], [2.0], [4.0], [9.0]])).item() == 3
