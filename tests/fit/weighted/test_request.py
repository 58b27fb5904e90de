"""Weights of rows and features in fits, codes and online learning."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fastnmf import NMF, ConvexNMF, SemiNMF, Tuning, nnls
from fastnmf.errors import FastnmfWarning, InvalidInput

DRAWN = torch.Generator().manual_seed(0)
A = torch.rand(30, 12, generator=DRAWN, dtype=torch.float64)
COUNTS = torch.arange(30) % 3 + 1
TIMES = torch.repeat_interleave(torch.arange(30), COUNTS)
Z0, D0 = (torch.rand(*s, generator=DRAWN, dtype=torch.float64) for s in ((30, 4), (4, 12)))
FEATURES = torch.rand(1, 12, generator=DRAWN, dtype=torch.float64) + 0.1
HOW = {"max_iter": 40, "tol": 0.0}


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd", "anls"])
def test_whole_weights_of_rows_equal_repeated_rows(solver):
    weighted = NMF(4, init=(Z0, D0), solver=solver, **HOW)
    Z, D = weighted.fit(A, weights=COUNTS[:, None])
    repeated = NMF(4, init=(Z0[TIMES], D0), solver=solver, **HOW)
    Y, E = repeated.fit(A[TIMES])
    assert torch.allclose(D, E, atol=1e-6)
    assert torch.allclose(Z[TIMES], Y, atol=1e-6)
    for name in ("relative_error", "r_squared", "objective"):
        one, other = (getattr(m.fit_info_, name) for m in (weighted, repeated))
        assert one == pytest.approx(other, rel=1e-6), name
    assert weighted.fit_info_.weights == "rows"
    assert "weights:        of rows" in str(weighted.fit_info_)


def test_codes_that_are_not_kept_are_those_of_weighted_rows(tmp_path):
    np.save(tmp_path / "A.npy", A.numpy())
    how = {"revive": False, **HOW}
    kept, streamed = NMF(4, init=(Z0, D0), **how), NMF(4, init=(None, D0), **how)
    kept.fit(tmp_path / "A.npy", weights=COUNTS[:, None])
    Z, D = streamed.fit(tmp_path / "A.npy", weights=COUNTS[:, None], codes=None)
    assert Z is None
    Y = streamed.encode(A, method="exact")
    error = ((A - Y @ D).square() * COUNTS[:, None]).sum() / (A.square() * COUNTS[:, None]).sum()
    assert error.sqrt() < 1.2 * kept.fit_info_.relative_error


def test_weights_of_one_are_the_fit_without():
    plain = NMF(4, init=(Z0, D0), **HOW).fit(A)
    for shape in ((30, 1), (1, 12)):
        found = NMF(4, init=(Z0, D0), **HOW).fit(A, weights=torch.ones(shape, dtype=torch.bool))
        assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def test_weights_of_features_weigh_their_errors():
    nmf = NMF(4, init=(Z0, D0), **HOW)
    Z, D = nmf.fit(A, weights=FEATURES)
    error = (FEATURES * (A - Z @ D).square()).sum() / (FEATURES * A.square()).sum()
    assert nmf.fit_info_.relative_error == pytest.approx(float(error.sqrt()), rel=1e-9)
    mean = A.mean(0)
    spread = (FEATURES * (A - mean).square()).sum()
    left = (FEATURES * (A - Z @ D).square()).sum()
    assert nmf.fit_info_.r_squared == pytest.approx(1 - float(left / spread), rel=1e-9)


def test_what_has_no_weight_may_be_missing():
    weights = FEATURES.clone()
    weights[0, 3] = 0
    X = A.clone()
    X[:, 3] = torch.nan
    with pytest.warns(FastnmfWarning, match="1 feature of A"):
        _, D = NMF(4, init=(Z0, D0), **HOW).fit(X, weights=weights)
    assert torch.equal(D[:, 3], D0[:, 3])
    codes = NMF(4).load_dictionary(D0).encode(X, weights=weights)
    seen = [j for j in range(12) if j != 3]
    expected = nnls(A[:, seen] * weights[:, seen].sqrt(), D0[:, seen] * weights[0, seen].sqrt())
    assert torch.allclose(codes, expected)
    assert torch.allclose(nnls(X, D0, weights=weights), expected)


def test_nan_without_weights_names_them():
    X = A.clone()
    X[0, 0] = torch.nan
    for call in (NMF(2).fit, NMF(2).partial_fit, lambda X: nnls(X, D0)):
        with pytest.raises(InvalidInput, match="weights="):
            call(X)


def test_codes_have_a_gradient():
    X = A.clone().requires_grad_()
    nmf = NMF(4).load_dictionary(D0)
    (gradient,) = torch.autograd.grad(nmf.encode(X, weights=FEATURES).sum(), X)
    step = 1e-6
    other = A.clone()
    other[2, 5] += step
    slope = (
        nmf.encode(other, weights=FEATURES).sum() - nmf.encode(A, weights=FEATURES).sum()
    ) / step
    assert float(gradient[2, 5]) == pytest.approx(float(slope), abs=1e-5)


def test_batches_of_weighted_rows_equal_batches_of_repeated_ones():
    weighted, repeated = (NMF(4, init=(Z0[:10], D0)) for _ in range(2))
    repeated.init = (Z0[TIMES[TIMES < 10]], D0)
    weighted.partial_fit(A[:10], weights=COUNTS[:10, None], half_life=float("inf"))
    repeated.partial_fit(A[TIMES[TIMES < 10]], half_life=float("inf"))
    assert torch.allclose(weighted.D, repeated.D, atol=1e-6)


def test_a_batch_with_weights_of_features_is_scaled_and_returned():
    nmf = NMF(4, init=(Z0, D0)).partial_fit(A, weights=FEATURES, half_life=100)
    root = FEATURES.sqrt()
    scaled = NMF(4, init=(Z0, D0 * root)).partial_fit(A * root, half_life=100)
    assert torch.allclose(nmf.D, scaled.D / root)
    nmf.partial_fit(A, weights=FEATURES, half_life=100)
    scaled.partial_fit(A * root, half_life=100)
    assert torch.allclose(nmf.D, scaled.D / root)


def test_any_signs_are_weighted():
    X = A - 0.5
    weighted = SemiNMF(4, init=(Z0, D0), **HOW)
    repeated = SemiNMF(4, init=(Z0[TIMES], D0), **HOW)
    D = weighted.fit(X, weights=COUNTS[:, None])[1]
    assert torch.allclose(D, repeated.fit(X[TIMES])[1], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (ConvexNMF(3), COUNTS[:, None], "mixtures of rows"),
        (SemiNMF(3, offset=True), COUNTS[:, None], "offset"),
        (NMF(3, target_l0=2), A, "target_l0"),
        (NMF(3, revive=True), A, "revive"),
        (NMF(3, solver="mu"), A, "solver='mu'"),
        (NMF(3), A[:, :7], r"weights have shape \(30, 7\), A has \(30, 12\)"),
        (NMF(3), COUNTS, r"reshape\(30, 1\)"),
        (NMF(3), COUNTS[:7, None], "30 rows"),
    ],
)
def test_what_weights_do_not_go_with_is_refused(model, weights, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidInput, match=message):
        model.fit(A, weights=weights)
    assert model.state_dict().keys() == before.keys()


def test_a_fit_resumes_with_the_same_weights_only(tmp_path):
    how = {"init": (Z0, D0), "tol": 0.0}
    whole = NMF(4, **how).fit(A, 6, weights=COUNTS[:, None])
    file = tmp_path / "fit.safetensors"
    from fastnmf import Tuning

    saving = {"checkpoint": file, "resume": True}
    tuning = Tuning(checkpoint_seconds=0)
    NMF(4, tuning=tuning, **how).fit(A, 3, weights=COUNTS[:, None], **saving)
    with pytest.raises(InvalidInput, match="weights="):
        NMF(4, tuning=tuning, **how).fit(A, 6, **saving)
    found = NMF(4, tuning=tuning, **how).fit(A, 6, weights=COUNTS[:, None], **saving)
    assert torch.equal(whole[1], found[1])


@pytest.mark.parametrize("map_", [False, True])
def test_a_file_of_weights_is_not_overwritten(map_, tmp_path):
    path = tmp_path / "W.npy"
    np.save(path, np.ones((30, 12)))
    weights, before = np.load(path, mmap_mode="r") if map_ else path, path.read_bytes()
    model = NMF(4, init=(Z0, D0), **HOW)
    model.load_dictionary(D0)
    for call in (
        lambda: model.fit(A, weights=weights, codes=path),
        lambda: model.encode(A, weights=weights, codes=path),
        lambda: nnls(A, D0, weights=weights, codes=path),
    ):
        with pytest.raises(InvalidInput, match=r"is to be written, but .* is read"):
            call()
        assert path.read_bytes() == before


def test_the_command_line_takes_weights(tmp_path, capsys):
    """Of a fit and of codes, for a file with missing values."""
    from fastnmf.cli import main as cli

    known = torch.rand(A.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    missing = torch.where(known, A, torch.nan).float()
    names = [str(tmp_path / name) for name in ("A.npy", "W.npy", "model.safetensors", "Z.npy")]
    for name, X in zip(names, (missing, known), strict=False):
        np.save(name, X.numpy())
    fit = ["fit", names[0], "-k", "4", "-o", names[2], "--seed", "0", "--max-iter", "30"]
    assert cli.main(fit) == 3
    assert "weights" in capsys.readouterr().err
    assert cli.main([*fit, "--weights", names[1]]) == 0
    assert "of entries" in capsys.readouterr().out
    encode = ["encode", names[2], names[0], "-o", names[3], "--weights", names[1], "-q"]
    assert cli.main(encode) == 0
    model = NMF.load(names[2])
    expected = model.encode(missing, weights=known)
    assert torch.allclose(torch.from_numpy(np.load(names[3])), expected)


def test_a_block_is_refused_where_concepts_are_swept_one_by_one():
    """It was ignored."""
    model = NMF(4, tuning=Tuning(block=2), **HOW)
    with pytest.raises(InvalidInput, match="block=2: concepts are swept one by one"):
        model.fit(A, weights=A > 0.2)
    model.fit(A, weights=COUNTS[:, None])
    assert model.fit_info_.block == 2
