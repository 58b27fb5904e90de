"""The option --weights of fit and encode."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from fastnmf import NMF
from fastnmf.cli import main as cli

DRAWN = np.random.default_rng(0)
A = DRAWN.random((40, 6)).astype(np.float32)
W = (DRAWN.random((40, 6)) > 0.3).astype(np.float32)
HIDDEN = np.where(W > 0, A, np.nan)
FIT = ["-k", "2", "--seed", "0", "--max-iter", "5", "--tol", "0", "-q"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", HIDDEN)
    np.save("W.npy", W)
    np.savetxt("W.csv", W, delimiter=",")
    scipy.sparse.save_npz("X.npz", scipy.sparse.csr_array(A * W))
    return tmp_path


@pytest.mark.parametrize("weights", ["W.npy", "W.csv"])
def test_fit_and_encode_take_files_of_any_kind(weights, folder):
    nmf = NMF(2, seed=0, max_iter=5, tol=0)
    nmf.fit(HIDDEN, weights=W)
    given = ["--weights", weights]
    assert cli.main(["fit", "A.npy", *FIT, *given, "-o", "model.safetensors"]) == 0
    assert NMF.load("model.safetensors").D.equal(nmf.D)
    Z = nmf.encode(HIDDEN, weights=W)
    for out in ("Z.npy", "Z.npz", "Z.csv"):
        assert cli.main(["encode", "model.safetensors", "A.npy", *given, "-o", out, "-q"]) == 0
    assert np.array_equal(np.load("Z.npy"), Z)
    assert np.allclose(scipy.sparse.load_npz("Z.npz").toarray(), Z)


def test_what_a_sparse_file_stores_is_observed(folder):
    nmf = NMF(2, seed=0, max_iter=5, tol=0)
    nmf.fit(scipy.sparse.csr_array(A * W), weights="stored")
    given = ["--weights", "stored"]
    assert cli.main(["fit", "X.npz", *FIT, *given, "-o", "model.safetensors"]) == 0
    assert NMF.load("model.safetensors").D.equal(nmf.D)
    assert cli.main(["encode", "model.safetensors", "X.npz", *given, "-o", "Z.npy", "-q"]) == 0
    Z = nmf.encode(scipy.sparse.csr_array(A * W), weights="stored")
    assert np.array_equal(np.load("Z.npy"), Z)


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["A.npy", "--weights", "none.npy"], 3, "none.npy does not exist"),
        (["A.npy", "--weights", "-"], 2, "--weights - is not possible"),
        (["A.npy", "--weights", "stored"], 3, "A is dense; give a file of a mask (n, d)"),
        (["A.npy"], 3, "what is missing: --weights W of fit, encode and show, 0 there, ignore it"),
        (["A.npy", "--weights", "W.npy", "--codes", "W.npy", "-f"], 2, "W.npy is named twice"),
    ],
)
def test_what_cannot_be_is_said_in_the_words_of_the_command_line(
    given, status, message, folder, capsys
):
    assert cli.main(["fit", *given, *FIT, "-o", "model.safetensors"]) == status
    assert message in capsys.readouterr().err
