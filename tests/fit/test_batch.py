"""A whole fit: where its codes go, what it refuses, and what its options are for.

fit/batch.py; files that are not overwritten are in test_refusals.py. Checks of options are in
tests/models/test_nmf.py, fits that read in passes in test_streamed.py, the types between fit and
the operations in tests/test_structure.py.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from fits import nmf, rows_of_five_concepts

from fastnmf import NMF, InvalidInput
from fastnmf.fit.options import Options, generator


def test_codes_of_data_in_memory_may_go_to_a_file(tmp_path):
    A = rows_of_five_concepts()
    options = {"seed": 0, "tol": 0, "max_iter": 5}
    Z, D = NMF(5, **options).fit(A)
    model = NMF(5, **options)
    mapped, D_too = model.fit(A, codes=tmp_path / "Z.npy")
    assert model.fit_info_.codes == str(tmp_path / "Z.npy")
    assert torch.equal(mapped, Z)
    assert torch.equal(D_too, D)
    np.testing.assert_array_equal(np.load(tmp_path / "Z.npy"), Z.numpy())


def test_fit_that_fails_leaves_no_file_of_codes(tmp_path):
    def broken(_):
        raise ZeroDivisionError

    (tmp_path / "Z.npy").write_bytes(b"as it was")
    with pytest.raises(ZeroDivisionError):
        NMF(5).fit(rows_of_five_concepts(), codes=tmp_path / "Z.npy", callback=broken)
    assert [file.name for file in tmp_path.iterdir()] == ["Z.npy"]
    assert (tmp_path / "Z.npy").read_bytes() == b"as it was"


def test_acceleration_that_is_not_possible_is_refused(tmp_path):
    A = rows_of_five_concepts()
    with pytest.raises(InvalidInput, match="does not go with alpha_Z"):
        NMF(5, accelerate=True, alpha_Z=0.1).fit(A)
    with pytest.raises(InvalidInput, match="keeps two copies of the codes"):
        NMF(5, accelerate=True).fit(A.split(10), codes=None)


def test_seconds_are_those_of_the_whole_fit():
    model = nmf(5, seed=0, tol=0, max_iter=5)
    model.fit(rows_of_five_concepts())
    history = model.fit_info_.history
    assert 0 < history[0].seconds < history[-1].seconds < model.fit_info_.seconds


def test_settings_of_a_checkpoint_are_those_that_bits_depend_on():
    names = Options(3).of_a_fit().keys()
    assert {"nb_concepts", "solver", "seed", "init", "form", "block", "precision"} <= names
    assert {"alpha_Z", "alpha_D", "l1_ratio", "unit_norm", "accelerate", "revive"} <= names
    # which may differ when a fit goes on
    assert not {"max_iter", "tol", "verbose", "callback"} & names


def test_codes_and_dictionary_have_generators_of_their_own():
    first, again, other = (generator(1, sequence).initial_seed() for sequence in (0, 0, 1))
    assert first == again != other
    assert generator(None) is None


STARTS = ["auto", "random", "nndsvda", "nndsvdar", "rows", "spread"]


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("kind", ["memory", "no codes", "batches", "more concepts"])
def test_seed_that_was_drawn_repeats_the_fit(init, kind):
    """It was recorded nowhere."""
    A, K = rows_of_five_concepts(), 5
    run = {"codes": None} if kind == "no codes" else {}
    if kind == "more concepts":
        A, K = A[:, :4], 6
        if init in ("nndsvda", "nndsvdar"):
            pytest.skip("needs no more concepts than features")
    data = A.split(9) if kind == "batches" else A
    first, again = NMF(K, init=init, tol=0), None
    Z, D = first.fit(data, 5, **run)
    seed = first.fit_info_.seed
    assert 0 <= seed < 2**32
    assert f", seed {seed}" in str(first.fit_info_)
    again = NMF(K, init=init, tol=0, seed=seed)
    for F, same in zip((Z, D), again.fit(data, 5, **run), strict=True):
        assert F is same is None or torch.equal(F, same)
    other = NMF(K, init=init, tol=0)
    other.fit(data, 5, **run)
    assert other.fit_info_.seed != seed


def test_seed_is_drawn_from_the_global_generator_and_a_given_one_is_recorded():
    A, seeds = rows_of_five_concepts(), []
    for _ in range(2):
        torch.manual_seed(3)
        model = NMF(5, max_iter=2, tol=0)
        model.fit(A)
        seeds.append(model.fit_info_.seed)
    assert seeds[0] == seeds[1]
    before = torch.get_rng_state()
    for options, seed in (({"seed": 2**62}, 2**62), ({"init": (A[:, :5], A[:5])}, None)):
        model = NMF(5, max_iter=2, tol=0, **options)
        model.fit(A)
        assert model.fit_info_.seed == seed
    assert ", seed" not in str(model.fit_info_)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_is_kept_in_checkpoints_model_files_and_pickles(tmp_path):
    A, file = rows_of_five_concepts(), tmp_path / "fit.safetensors"
    model = nmf(5, init="random", tol=0, checkpoint_seconds=0)
    model.fit(A, 4, checkpoint=file)
    seed, resumed = model.fit_info_.seed, NMF(5, init="random", tol=0)
    Z, D = resumed.fit(A, 8, checkpoint=file, resume=True)
    assert resumed.fit_info_.seed == seed
    again = NMF(5, init="random", tol=0, seed=seed).fit(A, 8)
    assert torch.equal(Z, again[0])
    assert torch.equal(D, again[1])
    resumed.save(tmp_path / "model.safetensors")
    assert NMF.load(tmp_path / "model.safetensors").fit_info_.seed == seed
    assert pickle.loads(pickle.dumps(resumed)).fit_info_.seed == seed


@pytest.mark.parametrize("init", ["auto", "random", "rows"])
def test_seed_that_was_drawn_repeats_online_learning(init):
    batches = rows_of_five_concepts().split(10)
    first = NMF(5, init=init)
    for batch in batches:
        first.partial_fit(batch)
    seed = first.online_info_.seed
    again = NMF(5, init=init, seed=seed)
    for batch in batches:
        again.partial_fit(batch)
    assert torch.equal(first.D, again.D)
    assert f", seed {seed}" in str(again.online_info_)
    # no start, no seed
    assert NMF(5).load_dictionary(first.D).partial_fit(batches[0]).online_info_.seed is None
