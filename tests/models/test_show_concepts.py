"""show_concepts: what is printed, what the page holds, and input that does not fit."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
import torch

import fastnmf
from fastnmf import NMF, ConvexNMF, InvalidInput, NotFitted, SemiNMF

A = np.random.default_rng(0).random((30, 12)).astype(np.float32)
WORDS = [f"word{i}" for i in range(30)]


@pytest.fixture(scope="module")
def nmf():
    model = NMF(4, seed=0, max_iter=20, tol=0)
    model.Z = model.fit(A)[0]
    return model


def data_of(concepts):
    """What the script of the page reads."""
    found = re.search(r'id="data">(.*?)</script>', concepts.html(), re.DOTALL)
    return json.loads(found[1])


@pytest.mark.parametrize("kind", [NMF, SemiNMF, ConvexNMF])
def test_every_model_shows_its_concepts(kind):
    model = kind(3, seed=0, max_iter=5, tol=0)
    model.fit(A)
    concepts = model.show_concepts(A)
    assert len(concepts) == 3
    assert len(str(concepts).splitlines()) == 4
    assert f"Concepts of {kind.__name__}" in concepts.html()


def test_codes_are_those_of_encode_or_those_given(nmf):
    given, computed = nmf.show_concepts(A, nmf.Z), nmf.show_concepts(A)
    energies = nmf.fit_info_.energy
    torch.testing.assert_close(
        given.numbers.energy, torch.tensor(energies, dtype=torch.float64), rtol=1e-6, atol=0
    )
    expected = nmf.encode(A).amax(0).double()
    assert torch.equal(computed.numbers.largest, expected)


def test_top_features_and_rows_are_those_of_the_factors(nmf):
    features = [f"f{j}" for j in range(12)]
    concepts = nmf.show_concepts(A, nmf.Z, features=features, texts=WORDS, context=2, top=3)
    k = int(np.argmax(nmf.fit_info_.energy))
    order = nmf.D[k].argsort(descending=True)
    assert concepts.features[k] == [features[j] for j in order[:5]]
    details = data_of(concepts)["details"][str(k)]
    assert [name for name, _ in details["features"]] == [
        features[j] for j in order[:10] if nmf.D[k, j] > 0
    ]
    rows = nmf.Z[:, k].argsort(descending=True)[:3].tolist()
    assert [row["row"] for row in details["rows"]] == rows
    for row, i in zip(details["rows"], rows, strict=True):
        assert row["word"] == WORDS[i]
        assert row["before"] == " ".join(WORDS[max(0, i - 2) : i])
        assert row["after"] == " ".join(WORDS[i + 1 : i + 3])
    assert sum(details["histogram"]) == int((nmf.Z[:, k] > 0).sum())
    assert f"{k:>8}" in str(concepts).splitlines()[1]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_images_and_heat_maps_have_pictures_with_texts(nmf):
    concepts = nmf.show_concepts(A, nmf.Z, image_shape=(2, 2, 3))
    for details in data_of(concepts)["details"].values():
        assert details["picture"].startswith("data:image/png;base64,")
        assert "the mean of its 8 top rows" in details["alt"]
    images = np.random.default_rng(0).random((5, 4, 6, 3))
    heat = nmf.show_concepts(A.reshape(5, 2, 3, 12), tokens=(2, 3), images=images)
    assert all("over images" in each["alt"] for each in data_of(heat)["details"].values())
    sparse = nmf.Z.to_sparse_csr()
    again = nmf.show_concepts(A, sparse, tokens=(2, 3), images=images)
    dense = nmf.show_concepts(A, nmf.Z, tokens=(2, 3), images=images)
    assert data_of(again)["details"] == data_of(dense)["details"]


def test_sparse_data_and_codes_alone_will_do(nmf):
    scipy = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    sparse = nmf.show_concepts(scipy.csr_array(A), nmf.Z, image_shape=(2, 6))
    dense = nmf.show_concepts(A, nmf.Z, image_shape=(2, 6))
    assert data_of(sparse) == data_of(dense)
    assert data_of(nmf.show_concepts(Z=nmf.Z))["energy"] == data_of(dense)["energy"]


def test_page_is_one_file_and_texts_are_texts(nmf, tmp_path):
    texts = ["</script><script>alert(1)</script>", *WORDS[1:]]
    concepts = nmf.show_concepts(A, nmf.Z, texts=texts, context=30)
    page = concepts.html()
    assert "alert(1)</script>" not in page
    shown = data_of(concepts)["details"].values()
    assert any(texts[0] in row["before"] for each in shown for row in each["rows"])
    assert "://" not in page
    assert not re.search(r"<(link|iframe)|src=|@import|url\(", page)
    concepts.save(tmp_path / "concepts.html")
    assert (tmp_path / "concepts.html").read_text(encoding="utf-8") == page
    with pytest.raises(InvalidInput, match="must end in"):
        concepts.save(tmp_path / "concepts.txt")


def test_notebook_gets_a_frame_with_the_page(nmf):
    concepts = nmf.show_concepts(A, nmf.Z)
    frame = concepts._repr_html_()
    content = re.fullmatch(r'<iframe title="[^"]*" style="[^"]*" srcdoc="([^"]*)"></iframe>', frame)
    assert html.unescape(content[1]) == concepts.html()
    assert repr(concepts) == (
        "<Concepts of NMF: 4 concepts; print() or save('concepts.html') shows them>"
    )


def test_page_of_ten_thousand_concepts_stays_small():
    drawn = torch.Generator().manual_seed(0)
    D = torch.rand(10_000, 48, generator=drawn)
    Z = (torch.rand(40, 10_000, generator=drawn) - 0.9).clamp(min=0)
    model = NMF(10_000).load_dictionary(D)
    concepts = model.show_concepts(torch.rand(40, 48), Z, image_shape=(4, 4, 3), top=2)
    assert len(concepts.html().encode()) < 5_000_000
    assert len(data_of(concepts)["details"]) == 200
    assert "9,980 more" in str(concepts)


def test_dead_concepts_and_data_of_one_row_are_shown():
    model = NMF(3).load_dictionary([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0]])
    concepts = model.show_concepts([[0.0, 2.0, 0.0]])
    assert data_of(concepts)["energy"] == [0, 1, 0]
    assert list(concepts.details) == [1]
    assert concepts.features == [["0"], ["1"], []]


WRONG = {
    "nothing": ({}, "needs the data A, or their codes Z"),
    "width": ({"A": A[:, :5]}, "A has 5 features"),
    "codes": ({"A": A, "Z": np.ones((30, 3))}, "Z"),
    "rows": ({"A": A, "Z": np.ones((29, 4))}, r"Z has shape \(29, 4\)"),
    "names": ({"A": A, "features": ["a"]}, "features= has 1 names, A has 12 features"),
    "a text": ({"A": A, "texts": "words"}, "texts= must be a list of 30 names"),
    "top": ({"A": A, "top": 0}, "top=0 must be at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case, nmf):
    given, message = WRONG[case]
    with pytest.raises(InvalidInput, match=message):
        nmf.show_concepts(**given)


def test_model_without_a_dictionary_has_nothing_to_show():
    with pytest.raises(NotFitted):
        fastnmf.NMF(3).show_concepts(A)


class OfCells:
    """What an AnnData has, as fastnmf knows it."""

    obs = var = layers = None
    shape = A.shape
    var_names = tuple(f"gene {j}" for j in range(12))

    def __init__(self, X):
        self.X = X


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_codes_of_any_kind_are_those_of_dense_ones(nmf):
    scipy = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    Z = torch.where(nmf.Z > nmf.Z.median(), nmf.Z, 0)
    expected = data_of(nmf.show_concepts(A, Z))
    for given in (
        *(Z.to_sparse_csr(), Z.to_sparse_coo()),
        *(scipy.csr_array(Z.numpy()), scipy.coo_matrix(Z.numpy())),
    ):
        assert data_of(nmf.show_concepts(A, given)) == expected
    for wrong, message in ((-Z, "negative"), (Z * torch.nan, "nan"), (Z[:, :3], "3 concepts")):
        with pytest.raises(InvalidInput, match=message):
            nmf.show_concepts(A, wrong.to_sparse_csr())


def test_names_of_columns_are_those_of_the_features(nmf):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    names = [f"c{j}" for j in range(12)]
    expected = nmf.show_concepts(A, nmf.Z, features=names).features
    frame = pandas.DataFrame(A, columns=names)
    assert nmf.show_concepts(frame, nmf.Z).features == expected
    assert nmf.show_concepts(frame, nmf.Z, features=OfCells.var_names).features != expected
    plain = nmf.show_concepts(A, nmf.Z).features
    assert nmf.show_concepts(pandas.DataFrame(A), nmf.Z).features == plain


def test_cells_are_shown_with_the_names_of_their_variables(nmf):
    expected = nmf.show_concepts(A, features=OfCells.var_names)
    found = nmf.show_concepts(OfCells(A))
    assert found.features == expected.features
    assert data_of(found) == data_of(expected)


WEIGHTS = np.random.default_rng(1).random(A.shape) > 0.2


@pytest.mark.parametrize("shape", ["entries", "rows", "features"])
def test_codes_are_those_with_the_weights_and_what_has_none_may_be_nan(shape, nmf):
    weights = {"entries": WEIGHTS, "rows": WEIGHTS[:, :1], "features": WEIGHTS[:1]}[shape]
    B = np.where(weights, A, np.nan)
    expected = nmf.encode(B, weights=weights)
    found = nmf.show_concepts(B, weights=weights, image_shape=(2, 6))
    torch.testing.assert_close(found.numbers.largest, expected.amax(0).double())
    assert all(each["picture"] for each in data_of(found)["details"].values())
    with pytest.raises(InvalidInput, match="nan or inf"):
        nmf.show_concepts(B)
    again = nmf.show_concepts(B.reshape(5, 6, 12), weights=np.broadcast_to(weights, A.shape))
    torch.testing.assert_close(again.numbers.largest, found.numbers.largest)


@pytest.mark.filterwarnings("ignore:1 row of A:fastnmf.FastnmfWarning")
def test_of_sparse_data_zeros_that_are_stored_are_observed(nmf):
    scipy = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    B = scipy.csr_array(np.where(WEIGHTS, A, 0))
    B.data[::5] = 0
    expected = nmf.encode(B, weights="stored")
    found = nmf.show_concepts(B, weights="stored")
    torch.testing.assert_close(found.numbers.largest, expected.amax(0).double())


def test_half_of_a_character_is_replaced(nmf, tmp_path):
    """Tokens that were decoded with surrogateescape have such; the page was not written."""
    nmf.show_concepts(A, nmf.Z, texts=["a\udc80"] * 30).save(tmp_path / "c.html")
    assert "a?" in (tmp_path / "c.html").read_text(encoding="utf-8")
