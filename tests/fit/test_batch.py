"""A whole fit: where its codes go, what it refuses, and what its options are for.

fit/batch.py and fit/refusals.py. Checks of options are in tests/models/test_nmf.py, fits that read
in passes in test_streamed.py, the types between fit and the operations in tests/test_structure.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import nmf, rows_of_five_concepts

from fastnmf import NMF, InvalidInput
from fastnmf.fit.options import Options


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


def test_file_that_is_read_is_not_written(tmp_path):
    np.save(tmp_path / "A.npy", rows_of_five_concepts().numpy())
    before = (tmp_path / "A.npy").read_bytes()
    # a new file in the folder would be a shard of it
    for data, codes in (("A.npy", "A.npy"), (".", "Z.npy")):
        with pytest.raises(InvalidInput, match=r"is to be written, but .* is read"):
            NMF(5).fit(tmp_path / data, codes=tmp_path / codes)
    assert (tmp_path / "A.npy").read_bytes() == before
    assert not (tmp_path / "Z.npy").exists()


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
    options = Options(3, seed=1)
    first, again, other = (options.generator(sequence).initial_seed() for sequence in (0, 0, 1))
    assert first == again != other
    assert Options(3).generator() is None
