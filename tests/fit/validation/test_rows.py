"""A fraction of the rows of A for validation: which are drawn, what the fit returns for them, and
what a fraction does not go with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnmf import NMF, ConvexNMF, InvalidInput
from fastnmf.fit.options import Options
from fastnmf.fit.validation.rows import check_validation, split_of


def data(n=60, d=8):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(0))


def test_rows_are_drawn_once_and_are_the_same_again():
    A = data()
    split = split_of(A, Options(3, seed=1, validation=0.25))
    assert len(split.drawn) == 15
    assert sorted([*split.kept.tolist(), *split.drawn.tolist()]) == list(range(60))
    assert torch.equal(split.held_out, A[split.drawn])
    assert torch.equal(split.training, A[split.kept])
    again = split_of(A.numpy(), Options(3, seed=1, validation=0.25))
    assert torch.equal(again.drawn, split.drawn)
    assert not torch.equal(split_of(A, Options(3, seed=2, validation=0.25)).drawn, split.drawn)
    assert split_of(A, Options(3, validation=A)) is None
    assert torch.equal(split.joined(split.training, split.held_out), A)


@pytest.mark.parametrize("kind", ["tensor", "array", "sparse"])
def test_codes_of_rows_that_are_left_out_are_exact_and_in_their_places(kind):
    A = data()
    given = A if kind == "tensor" else A.numpy()
    if kind == "sparse":
        given = pytest.importorskip("scipy.sparse").csr_array(given)
    model = NMF(3, seed=0, max_iter=20, tol=0)
    Z, D = model.fit(given, validation=0.2)
    held = split_of(A, Options(3, seed=0, validation=0.2))
    assert Z.shape == (60, 3)
    torch.testing.assert_close(Z[held.drawn], model.encode(held.held_out), rtol=1e-3, atol=1e-4)
    alone = NMF(3, seed=0, max_iter=20, tol=0)
    codes, expected = alone.fit(held.training)
    torch.testing.assert_close(D, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(Z[held.kept], codes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("codes", ["sparse", None])
def test_a_fraction_needs_codes_in_memory(codes):
    with pytest.raises(InvalidInput, match=r"validation=0.2 and codes=.* do not go together; give"):
        NMF(3, top_k=2).fit(data(), validation=0.2, codes=codes)


def test_a_fraction_needs_rows_that_can_be_taken(tmp_path):
    np.save(tmp_path / "A.npy", data().numpy())
    with pytest.raises(InvalidInput, match=r"draws rows of A, which must be a tensor, an array"):
        NMF(3).fit(tmp_path / "A.npy", validation=0.2)
    with pytest.raises(InvalidInput, match=r"and a pair \(Z0, D0\) do not go together"):
        NMF(3, init=(torch.rand(60, 3), torch.rand(3, 8))).fit(data(), validation=0.2)
    with pytest.raises(InvalidInput, match="and ConvexNMF, whose concepts are mixtures"):
        ConvexNMF(3).fit(data(), validation=0.2)
    with pytest.raises(InvalidInput, match="leaves none to learn from"):
        NMF(3).fit(data(1), validation=0.5)


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, float("nan")])
def test_a_fraction_is_between_0_and_1(value):
    with pytest.raises(InvalidInput, match=r"must be between 0 and 1"):
        NMF(3).fit(data(), validation=value)


def test_other_than_rows_is_a_type_error():
    assert check_validation(None) is None
    for value in (True, ""):
        with pytest.raises(TypeError, match="must be rows, a file of rows, a fraction"):
            NMF(3).fit(data(), validation=value)


def test_the_command_line_takes_a_file_of_rows(tmp_path, capsys):
    from fastnmf.cli import main as cli

    np.save(tmp_path / "A.npy", data().numpy())
    np.save(tmp_path / "V.npy", data(20).numpy())
    names = [str(tmp_path / name) for name in ("A.npy", "V.npy", "model.safetensors")]
    command = ["fit", names[0], "-k", "3", "-o", names[2], "--validation", names[1]]
    command += ["--stop", "validation", "--top-k", "2", "--seed", "0", "--max-iter", "40"]
    assert cli.main(command) == 0
    assert "validation:     error" in capsys.readouterr().out
    model = NMF.load(names[2])
    assert model.top_k == 2
    assert model.fit_info_.validation_l0 <= 2


def test_a_fraction_may_be_a_number_of_numpy():
    options = {"seed": 0, "max_iter": 5, "tol": 0}
    models = [NMF(3, **options) for _ in range(2)]
    for model, share in zip(models, (0.25, np.float32(0.25)), strict=True):
        model.fit(data(), validation=share)
    assert models[0].fit_info_.validation_error == models[1].fit_info_.validation_error
    with pytest.raises(InvalidInput, match="must be between 0 and 1"):
        NMF(3).fit(data(), validation=np.float32(1.5))
