"""Numbers about concepts, against loops over them in float64."""

from __future__ import annotations

import pytest
import torch

from fastnmf.results.concepts import statistics

DRAWN = torch.Generator().manual_seed(0)
Z = (torch.rand(50, 6, generator=DRAWN) - 0.6).clamp(min=0)
Z[:, 4] = 0
D = torch.rand(6, 9, generator=DRAWN)
D[5] = 2 * D[1] + 0.001
CHOSEN = torch.tensor([1, 4, 5])


@pytest.fixture(params=["dense", "sparse"], autouse=True)
def codes(request, monkeypatch):
    """The codes, in tiles of five rows."""
    monkeypatch.setattr(statistics, "_ENTRIES", 30)
    return Z if request.param == "dense" else Z.to_sparse_csr()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_numbers_are_those_of_a_loop(codes):
    found = statistics.numbers_of(codes, D)
    energies = [float(Z[:, k].norm() ** 2 * D[k].norm() ** 2) for k in range(6)]
    for k in range(6):
        some = Z[:, k][Z[:, k] > 0]
        assert float(found.energy[k]) == pytest.approx(energies[k] / sum(energies), rel=1e-5)
        assert float(found.active[k]) == pytest.approx(len(some) / 50)
        assert float(found.largest[k]) == (float(some.max()) if len(some) else 0)
        assert float(found.mean[k]) == pytest.approx(float(some.mean()) if len(some) else 0)
        cosines = torch.cosine_similarity(D[k], D, dim=1)
        cosines[k] = -2
        assert int(found.twin[k]) == int(cosines.argmax())
        assert float(found.cosine[k]) == pytest.approx(float(cosines.max()), abs=1e-5)
    assert int(found.twin[5]) == 1


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_top_rows_histograms_and_groups_are_those_of_a_loop(codes):
    rows, values = statistics.top_rows(codes, CHOSEN, 3)
    bars = statistics.histograms(codes, CHOSEN, Z.amax(0).double())
    groups = statistics.largest_of_groups(codes, CHOSEN, 10)
    for place, k in enumerate(CHOSEN.tolist()):
        expected = Z[:, k].sort(descending=True).values[:3]
        assert torch.equal(values[place], expected)
        assert torch.equal(Z[rows[place], k], expected)
        assert int(bars[place].sum()) == int((Z[:, k] > 0).sum())
        assert torch.equal(groups[place], Z[:, k].reshape(5, 10).amax(1))
    assert int(bars[0, -1]) >= 1


def test_one_concept_has_no_twin():
    twin, cosine = statistics.twins(D[:1])
    assert (twin.tolist(), cosine.tolist()) == ([-1], [0.0])
