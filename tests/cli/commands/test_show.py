"""The command show: what it prints and writes is what show_concepts gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastnmf import NMF
from fastnmf.cli import main as cli

A = np.random.default_rng(0).random((20, 12)).astype(np.float32)
SHOW = ["show", "m.safetensors", "A.npy"]


@pytest.fixture(autouse=True)
def nmf(tmp_path, monkeypatch):
    """A model in m.safetensors, of A.npy, with Z.npy."""
    monkeypatch.chdir(tmp_path)
    model = NMF(3, seed=0, max_iter=5, tol=0)
    Z, _ = model.fit(A)
    model.save("m.safetensors")
    np.save("A.npy", A)
    np.save("Z.npy", Z.numpy())
    Path("names.txt").write_text("\n".join(f"name {j}" for j in range(12)), encoding="utf-8")
    Path("words.txt").write_text("\n".join(f"w{i}" for i in range(20)), encoding="utf-8")
    return model


def test_concepts_are_printed(nmf, capsys):
    assert cli.main([*SHOW, "--features", "names.txt"]) == 0
    features = [f"name {j}" for j in range(12)]
    assert capsys.readouterr().out == f"{nmf.show_concepts(A, features=features)}\n"
    assert cli.main([*SHOW, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["energy"] == nmf.show_concepts(A).numbers.energy.tolist()


def test_page_is_what_the_model_shows(nmf, capsys):
    np.save("images.npy", np.zeros((2, 4, 6, 3), np.uint8))
    cases = {
        "--image-shape 2x2x3": {"image_shape": (2, 2, 3)},
        "--tokens 2x5 --images images.npy": {"tokens": (2, 5), "images": np.load("images.npy")},
        "--texts words.txt --context 1": {"texts": [f"w{i}" for i in range(20)], "context": 1},
        "--top 2 --details 1": {"top": 2, "details": 1},
    }
    for words, options in cases.items():
        assert cli.main([*SHOW, "-o", "c.html", "-f", "--codes", "Z.npy", *words.split()]) == 0
        page = Path("c.html").read_text(encoding="utf-8")
        assert page == nmf.show_concepts(A, np.load("Z.npy"), **options).html()
        assert capsys.readouterr().out.startswith("3 concepts: c.html (")


# what is added, exit status, what is said
REFUSED = {
    "size": (["--image-shape", "2,3"], 2, "'2,3' is no size; give numbers such as 16x16x3"),
    "map": (["--map", "tsne"], 3, "--map tsne is for 5 to 5,000 concepts"),
    "other size": (["--image-shape", "2x3"], 3, "--image-shape (2, 3)"),
    "names": (["--features", "words.txt"], 3, "--features has 20 names, A has 12"),
    "no names": (["--features", "none.txt"], 3, "none.txt does not exist"),
    "images": (["--tokens", "2x5", "--images", "names.txt"], 3, "names.txt is no .npy file of"),
    "output": (["-o", "-"], 2, "- is possible as the input A alone"),
    "suffix": (["-o", "c.txt"], 2, "c.txt must end in .html"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fault_of_the_user_is_one_line(case, capsys):
    words, status, message = REFUSED[case]
    assert cli.main([*SHOW, *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[0]


def test_sparse_codes_and_weights_are_taken(nmf, capsys):
    scipy = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    Z = np.load("Z.npy")
    scipy.save_npz("Z.npz", scipy.csr_array(Z))
    assert cli.main([*SHOW, "--codes", "Z.npz"]) == 0
    assert capsys.readouterr().out == f"{nmf.show_concepts(A, Z)}\n"
    weights = np.random.default_rng(1).random(A.shape) > 0.2
    B = np.where(weights, A, np.nan)
    np.save("A.npy", B)
    np.save("W.npy", weights)
    assert cli.main([*SHOW, "--weights", "W.npy"]) == 0
    assert capsys.readouterr().out == f"{nmf.show_concepts(B, weights=weights)}\n"
    assert cli.main([*SHOW, "--weights", "W.npy", "-o", "W.npy"]) == 2
