import json

import pytest
import torch
from planted import planted

import fastnmf
from fastnmf import InvalidInput
from fastnmf.selection.matching import mean_cosine


def test_planted_concepts_are_stable_and_noise_is_not():
    A, D = planted(200, 30, 4, 0.2, seed=1)
    found = fastnmf.stability(A, 4, runs=4, seed=0)
    assert found.score > 0.95
    assert mean_cosine([found.dictionary, D]) > 0.95
    assert torch.equal(found.kept, torch.ones(4, dtype=torch.float64))
    noise = torch.rand(200, 30, generator=torch.Generator().manual_seed(0))
    assert fastnmf.stability(noise, 4, runs=4, seed=0).score < 0.5


def test_consensus_is_a_start_and_its_codes_are_exact():
    A, _ = planted(100, 20, 3, 0.3, seed=0)
    found = fastnmf.stability(A, 3, runs=3, seed=0, resample="starts")
    assert found.codes.shape == (100, 3)
    assert torch.allclose(torch.linalg.vector_norm(found.dictionary, dim=1), torch.ones(3))
    error = torch.dist(A, found.codes @ found.dictionary) / torch.linalg.vector_norm(A)
    assert found.relative_error == pytest.approx(float(error), rel=1e-5)
    nmf = fastnmf.NMF(3, init=found.init)
    nmf.fit(A)
    assert nmf.fit_info_.relative_error <= found.relative_error * (1 + 1e-6)


def test_concepts_of_runs_are_in_the_order_of_the_consensus():
    A, _ = planted(100, 20, 3, 0.1, seed=0)
    found = fastnmf.stability(A, 3, runs=3, seed=0)
    for D in found.dictionaries:
        cosines = torch.nn.functional.cosine_similarity(D[:, None], found.dictionary[None], dim=2)
        assert cosines.argmax(1).tolist() == [0, 1, 2]
    assert str(found).splitlines()[0].startswith("stability:")
    assert len(json.loads(json.dumps(found.as_dict()))["scores"]) == 3


def test_density_filter_leaves_out_a_run_that_went_elsewhere(monkeypatch):
    A, D = planted(100, 20, 3, 0.1, seed=0)
    fit = fastnmf.NMF.fit

    def astray(self, A, **options):
        Z, _ = fit(self, A, **options)
        if self.seed == 2:
            self.D = torch.eye(3, 20)
        return Z, self.D

    monkeypatch.setattr(fastnmf.NMF, "fit", astray)
    found = fastnmf.stability(A, 3, runs=5, seed=0, resample="starts")
    assert (found.kept <= 0.8).all()
    assert mean_cosine([found.dictionary, D]) > 0.99
    everything = fastnmf.stability(A, 3, runs=5, seed=0, resample="starts", density_threshold=None)
    assert torch.equal(everything.kept, torch.ones(3, dtype=torch.float64))


def test_more_runs_continue_from_a_checkpoint(tmp_path, monkeypatch):
    A, _ = planted(60, 20, 3, 0.2, seed=0)
    path = tmp_path / "runs.safetensors"
    fastnmf.stability(A, 3, runs=2, seed=0, checkpoint=path)
    whole = fastnmf.stability(A, 3, runs=3, seed=0)
    fit, fits = fastnmf.NMF.fit, []

    def counted(self, A, **options):
        fits.append(self.seed)
        return fit(self, A, **options)

    monkeypatch.setattr(fastnmf.NMF, "fit", counted)
    found = fastnmf.stability(A, 3, runs=3, checkpoint=path, resume=True)
    assert fits == [2]
    assert torch.equal(found.dictionary, whole.dictionary)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"runs": 1}, "runs=1"),
        ({"init": "nndsvda", "resample": "starts"}, "same start for all runs"),
        ({"resample": "columns"}, "rows, starts"),
        ({"density_threshold": -1.0}, "density_threshold"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, text):
    A, _ = planted(60, 20, 3, 0.2, seed=0)
    with pytest.raises(InvalidInput, match=text):
        fastnmf.stability(A, 3, **given)


def test_offsets_are_refused():
    with pytest.raises(InvalidInput, match="offset=True has no consensus"):
        fastnmf.stability(torch.rand(9, 4), 2, model=fastnmf.SemiNMF, offset=True)
