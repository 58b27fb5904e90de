"""Codes in compressed rows from fit, encode and nnls: the same as dense ones, and never dense as a
whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import relative_difference

from fastnmf import NMF, ConvexNMF, InvalidInput, SemiNMF, Tuning, nnls
from fastnmf.backends.products import add_gram_
from fastnmf.backends.torch import REFERENCE
from fastnmf.cli import main as cli
from fastnmf.data import storage
from fastnmf.data.dataset import Data
from fastnmf.data.sparse import stored
from fastnmf.data.storage import Compressed
from fastnmf.distributed import ALONE
from fastnmf.engine import statistics
from fastnmf.engine.sparsity import restricted
from fastnmf.files import read_matrix, write_matrix
from fastnmf.init import drawn

pytest.importorskip("scipy.sparse")
import scipy.sparse

PENALTY = {"alpha_Z": 1e-2, "l1_ratio": 1.0, "unit_norm": True}


def data(n=120, d=12, signed=False):
    generator = torch.Generator().manual_seed(1)
    A = torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < 0.4)
    return A - 0.2 if signed else A


def model(kind=NMF, K=30, **options):
    D = torch.rand(K, 12, generator=torch.Generator().manual_seed(2))
    options = {"seed": 0, **PENALTY, **options}
    return kind(K, **options).load_dictionary(D / D.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    "options", [{}, {"method": "exact"}, {"method": "sweeps"}, {"top_k": 2}], ids=str
)
@pytest.mark.parametrize("kind", [NMF, SemiNMF])
# three chunks, the last one smaller
def test_encode_finds_the_same_codes(kind, options, tmp_path):
    A, nmf = data(signed=kind is SemiNMF), model(kind, tuning=Tuning(chunk_rows=50))
    Z = nmf.encode(A, **options)
    found = nmf.encode(A, **options, codes="sparse")
    assert found.layout == torch.sparse_csr
    assert torch.equal(found.to_dense(), Z)
    path = tmp_path / "Z.npz"
    kept = nmf.encode(A, **options, codes=path)
    assert torch.equal(kept.to_dense(), Z)
    np.testing.assert_array_equal(scipy.sparse.load_npz(path).toarray(), Z.numpy())


def test_nnls_finds_the_same_codes(tmp_path):
    A, D = data(), model().D
    Z, info = nnls(A, D, l1=0.1, return_info=True)
    found, same = nnls(A, D, l1=0.1, return_info=True, codes="sparse")
    assert torch.equal(found.to_dense(), Z)
    assert torch.equal(info.support, same.support)
    nnls(A, D, l1=0.1, codes=tmp_path / "Z.npz")
    np.testing.assert_array_equal(read_matrix(tmp_path / "Z.npz"), Z.numpy())
    for start in (found, scipy.sparse.csr_array(Z.numpy())):
        assert torch.equal(nnls(A, D, start, l1=0.1), nnls(A, D, Z, l1=0.1))


def test_decode_and_z0_take_sparse_codes(tmp_path):
    A, nmf = data(), model()
    Z = nmf.encode(A)
    write_matrix(tmp_path / "Z.npz", Z.to_sparse_csr())
    forms = [Z.to_sparse_csr(), Z.to_sparse(), scipy.sparse.csc_array(Z.numpy())]
    for form in [*forms, tmp_path / "Z.npz"]:
        torch.testing.assert_close(nmf.decode(form), nmf.decode(Z))
    out = nmf.decode(forms[0], out=tmp_path / "A.npy")
    torch.testing.assert_close(out, nmf.decode(Z))
    assert nmf.decode(forms[0].to(torch.float64)).dtype == torch.float64
    for form in forms:
        for codes in ("memory", "sparse"):
            found = nmf.encode(A, 3, Z0=form, method="sweeps", codes=codes)
            expected = nmf.encode(A, 3, Z0=Z, method="sweeps")
            assert torch.equal(found.to_dense(), expected)
    with pytest.raises(InvalidInput, match="Z0 has 3 rows, A has 120"):
        nmf.encode(A, Z0=Z[:3].to_sparse_csr())
    with pytest.raises(InvalidInput, match="Z has 29 concepts"):
        nmf.decode(Z[:, :29].to_sparse_csr())


@pytest.mark.parametrize(
    ("kind", "solver"),
    [(NMF, "hals"), (NMF, "pgd"), (NMF, "anls"), (SemiNMF, "hals"), (SemiNMF, "pgd")],
)
def test_fit_reaches_the_objective_of_one_with_dense_codes(kind, solver, tmp_path):
    A = data(signed=kind is SemiNMF)
    options = {**PENALTY, "seed": 0, "max_iter": 60, "tol": 0.0, "solver": solver}
    # several chunks
    options["tuning"] = Tuning(chunk_rows=50)
    dense, sparse, filed = (kind(20, **options) for _ in range(3))
    dense.fit(A)
    Z, D = sparse.fit(A, codes="sparse")
    assert Z.layout == torch.sparse_csr
    assert sparse.fit_info_.codes == "sparse"
    assert sparse.fit_info_.mean_l0 == len(Z.values()) / len(A)
    ends = [each.fit_info_.history[-1].relative_objective for each in (sparse, dense)]
    assert ends[0] < 1.02 * ends[1]
    error = float((A - Z.to_dense() @ D).norm() / A.norm())
    assert error == pytest.approx(sparse.fit_info_.relative_error, rel=1e-4)
    path = tmp_path / "Z.npz"
    assert torch.equal(filed.fit(A, codes=path)[0].to_dense(), Z.to_dense())
    np.testing.assert_array_equal(scipy.sparse.load_npz(path).toarray(), Z.to_dense().numpy())
    assert filed.fit_info_.codes == str(path)


# what a fit of data in memory may ask for, with more concepts than features; by half-steps of all
# concepts in both forms, and restricted ones
@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("few", [True, False], ids=["restricted", "whole"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NMF, {}),
        (NMF, PENALTY),
        (NMF, {"target_l0": 3}),
        (SemiNMF, {"target_l0": 3}),
        (SemiNMF, {"target_l0": 3, "init": "rows"}),
        (NMF, {"target_l0": 3, "init": "spread", "revive": True}),
        (NMF, {"top_k": 2}),
        (NMF, {**PENALTY, "n_init": 3}),
        (NMF, {"target_l0": 3, "init": (None, model().D.double())}),
    ],
    ids=str,
)
def test_fit_has_the_factors_of_one_with_dense_codes(kind, options, few, form, monkeypatch):
    monkeypatch.setattr(restricted, "restricting_may_pay", lambda *given: few)
    monkeypatch.setattr(restricted, "restricting_pays", lambda *given: given[-1] < 5)
    A = data(signed=kind is SemiNMF).double()
    # rows of zeros, and tiles that are no multiple of the numbers that are drawn at a time
    A[[3, 70]] = 0
    tuning = Tuning(form=None if "top_k" in options else form, chunk_rows=50)
    options = {"seed": 0, "max_iter": 25, "tol": 0.0, "tuning": tuning, **options}
    dense, sparse = kind(30, accelerate=False, **options), kind(30, **options)
    Z, D = dense.fit(A)
    found, same = sparse.fit(A, codes="sparse")
    assert relative_difference(same, D) < 1e-8
    assert relative_difference(found.to_dense(), Z) < 1e-8
    assert sparse.fit_info_.form == dense.fit_info_.form
    assert sparse.fit_info_.chunk_rows is None
    assert [one.relative_error for one in sparse.fit_info_.history] == pytest.approx(
        [one.relative_error for one in dense.fit_info_.history], rel=1e-8
    )


def test_fit_without_iterations_returns_the_start():
    A = data()
    Z, D = NMF(30, seed=0, target_l0=3, max_iter=0).fit(A)
    found, same = NMF(30, seed=0, target_l0=3, max_iter=0).fit(A, codes="sparse")
    assert torch.equal(found.to_dense(), Z)
    assert torch.equal(same, D)


@pytest.mark.parametrize("codes", ["sparse", "file"])
def test_restricted_iterations_have_no_dense_codes(codes, tmp_path, monkeypatch, small_budgets):
    """Of data in memory and of data that are read in passes."""
    monkeypatch.setattr(restricted, "restricting_may_pay", lambda *given: True)
    monkeypatch.setattr(restricted, "restricting_pays", lambda *given: True)
    A = data(6000)
    np.save(tmp_path / "A.npy", A.numpy())
    load, loaded = Compressed.load, []
    monkeypatch.setattr(Compressed, "load", lambda *_: (loaded.append(1), load(*_))[1])
    counts = []

    def count(info):
        counts.append(len(loaded))

    given = A if codes == "sparse" else tmp_path / "A.npy"
    memory = None if codes == "sparse" else "1MB"
    nmf = NMF(30, seed=0, max_iter=6, tol=0, target_l0=3, max_memory=memory)
    nmf.fit(given, codes="sparse", callback=count)
    assert len({*counts[1:]}) == 1
    assert (nmf.fit_info_.chunk_rows is None) == (codes == "sparse")


PEAK = """
import re, torch
from fastnmf import NMF

def read(key):
    with open("/proc/self/status") as status:
        return int(re.search(key + r":\\s+(\\d+) kB", status.read())[1]) / 1024

n, d, K = 40000, 32, 1500
numbers = torch.Generator().manual_seed(0)
A = torch.relu(torch.randn(n, 40, generator=numbers) - 1) @ torch.rand(40, d, generator=numbers)
# threads, their buffers and what is imported at first use
NMF(600, max_iter=2, tol=0, target_l0=8).fit(A[:700], codes="sparse")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = read("VmRSS")
model = NMF(K, max_iter=4, tol=0, seed=0, target_l0=8)
model.fit(A, codes="sparse")
print(read("VmHWM") - before, n * K * 4 / 2**20)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
def test_fit_takes_less_memory_than_dense_codes():
    """229 MiB, with the dictionary, a start, exact codes at the end, and the summary."""
    asked = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command, environment = [sys.executable, "-c", PEAK], {**os.environ, **asked}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown, of_codes = map(float, ran.stdout.split())
    assert grown < 0.6 * of_codes


def test_fit_starts_from_sparse_codes():
    A, nmf = data(), model()
    Z, D = nmf.encode(A), nmf.D
    options = {**PENALTY, "max_iter": 1, "tol": 0.0}
    given = [Z, Z.to_sparse_csr(), scipy.sparse.csr_array(Z.numpy())]
    found = [NMF(30, init=(Z0, D), **options).fit(A, codes="sparse") for Z0 in given]
    for other in found[1:]:
        assert torch.equal(other[0].to_dense(), found[0][0].to_dense())
        assert torch.equal(other[1], found[0][1])
    # in memory too
    found = [NMF(30, init=(Z0, D), **options).fit(A)[0] for Z0 in given]
    assert all(torch.equal(other, found[0]) for other in found[1:])
    with pytest.raises(InvalidInput, match=r"Z0 has shape \(3, 30\); expected \(120, 30\)"):
        NMF(30, init=(Z[:3].to_sparse_csr(), D)).fit(A)


def test_fit_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    A, path = data(), tmp_path / "fit.safetensors"
    tuning = Tuning(chunk_rows=50, checkpoint_seconds=0)
    nmf = NMF(20, seed=0, tol=0.0, max_iter=12, tuning=tuning, **PENALTY)
    whole, D = nmf.fit(A, codes="sparse")
    nmf.fit(A, 7, codes="sparse", checkpoint=path)
    assert sorted(os.listdir(tmp_path)) == ["fit.codes-a.npz", "fit.safetensors"]
    Z, resumed = nmf.fit(A, codes="sparse", checkpoint=path, resume=True)
    assert torch.equal(Z.to_dense(), whole.to_dense())
    assert torch.equal(resumed, D)
    with pytest.raises(InvalidInput, match="codes='sparse' there, 'kept' here"):
        nmf.fit(A, checkpoint=path, resume=True)
    codes = next(tmp_path.glob("fit.codes-*.npz"))
    codes.write_bytes(codes.read_bytes()[:-30])
    with pytest.raises(InvalidInput, match="cannot be read"):
        nmf.fit(A, codes="sparse", checkpoint=path, resume=True)


def test_no_dense_codes_of_all_rows_exist(monkeypatch):
    """Every dense matrix of codes that fits and encodings store is a chunk of them."""
    A, sizes = data(600), []
    save, load = Compressed.save, Compressed.load
    monkeypatch.setattr(
        Compressed, "save", lambda self, part, Z: (sizes.append(len(Z)), save(self, part, Z))[1]
    )
    monkeypatch.setattr(
        Compressed, "load", lambda self, part: (sizes.append(len(Z := load(self, part))), Z)[1]
    )
    empty, tuning = torch.empty, Tuning(chunk_rows=100)

    def watched(*shape, **options):
        made = empty(*shape, **options)
        assert tuple(made.shape) != (600, 30)
        return made

    monkeypatch.setattr(torch, "empty", watched)
    # those of a start, too
    for module, size in (
        (storage, "_PART_BYTES"),
        (stored, "_PART_BYTES"),
        (drawn, "_DRAWN_BYTES"),
    ):
        monkeypatch.setattr(module, size, 100 * 30 * 4)
    NMF(30, seed=0, max_iter=3, tuning=tuning, **PENALTY).fit(A, codes="sparse")
    assert sizes
    assert max(sizes) == 100
    model(tuning=tuning).encode(A, codes="sparse")


def test_data_without_a_source_save_what_changes():
    A = data(20)
    codes = Compressed(20, 3, A)
    for _, _, Z in Data(A).chunks(codes):
        Z += 1
    assert torch.equal(codes.matrix().to_dense(), torch.ones(20, 3))
    for _, _, Z in Data(A).chunks(codes, save=False):
        Z += 1
    assert torch.equal(codes.matrix().to_dense(), torch.ones(20, 3))


def test_returned_codes_take_two_percent_of_dense_ones():
    generator = torch.Generator().manual_seed(0)
    D = torch.rand(10_000, 64, generator=generator)
    Z = nnls(torch.rand(40, 64, generator=generator), D, top_k=32, codes="sparse")
    parts = (Z.crow_indices(), Z.col_indices(), Z.values())
    assert sum(part.nbytes for part in parts) <= 0.02 * 40 * 10_000 * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda nmf, A: nmf.encode(A[None], codes="sparse"), r"give A.reshape\(-1, 12\)"),
        (lambda nmf, A: nnls(A[None], nmf.D, codes="sparse"), r"give A.reshape\(-1, 12\)"),
        (lambda nmf, A: nmf.encode(A.requires_grad_(), codes="sparse"), "requires a gradient"),
        (lambda nmf, A: nmf.encode(A, codes="Z.txt"), "must end in .npy, .npz"),
        (lambda nmf, A: nmf.decode(nmf.encode(A), out="sparse"), "must end in .npy"),
        (lambda nmf, A: nmf.decode(nmf.encode(A), out="A.npz"), "must end in .npy"),
        (lambda nmf, A: NMF(3, solver="mu").fit(A, codes="sparse"), "keeps every code above zero"),
        (lambda nmf, A: SemiNMF(3, solver="mu").fit(A, codes="sparse"), "keeps every code above"),
        (lambda nmf, A: ConvexNMF(3, solver="mu").fit(A, codes="sparse"), "keeps every code above"),
        (lambda nmf, A: write_matrix("Z.npy", nmf.encode(A, codes="sparse")), "an .npz file"),
    ],
)
def test_what_sparse_codes_cannot_be_is_refused(call, message):
    with pytest.raises(InvalidInput, match=message):
        call(model(), data())


def test_no_rows_have_sparse_codes_without_entries(tmp_path):
    none = data()[:0]
    for codes in ("sparse", tmp_path / "Z.npz"):
        for found in (model().encode(none, codes=codes), nnls(none, model().D, codes=codes)):
            assert found.layout == torch.sparse_csr
            assert found.shape == (0, 30)
    assert scipy.sparse.load_npz(tmp_path / "Z.npz").shape == (0, 30)


def test_commands_write_and_read_sparse_codes(tmp_path, capsys):
    A, name = tmp_path / "A.npy", tmp_path / "model.safetensors"
    np.save(A, data().numpy())
    written, encoded = tmp_path / "Z.npz", tmp_path / "Y.npz"
    fit = ["fit", str(A), "-k", "20", "--alpha-Z", "0.01", "--l1-ratio", "1", "--unit-norm"]
    fit += ["--seed", "0", "--max-iter", "20", "-o", str(name), "--codes", str(written)]
    assert cli.main(fit) == 0
    assert scipy.sparse.load_npz(written).shape == (120, 20)
    assert cli.main(["encode", str(name), str(A), "-o", str(encoded)]) == 0
    nmf = NMF.load(name)
    Z = nmf.encode(data())
    np.testing.assert_array_equal(scipy.sparse.load_npz(encoded).toarray(), Z.numpy())
    assert f"mean L0 {float((Z > 0).sum() / 120):.4g}" in capsys.readouterr().out
    rebuilt = tmp_path / "B.npy"
    assert cli.main(["decode", str(name), str(encoded), "-o", str(rebuilt)]) == 0
    np.testing.assert_allclose(np.load(rebuilt), nmf.decode(Z).numpy(), rtol=1e-5, atol=1e-6)


# of 40 concepts few are active; of 4 so many that dense products are faster
@pytest.mark.parametrize(("K", "few"), [(40, True), (4, False)])
def test_sums_of_sparse_codes_are_those_of_dense_ones(K, few, monkeypatch):
    monkeypatch.setattr(statistics, "_PAIR", 20)
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(60, 12, generator=generator)
    Z = torch.rand(60, K, generator=generator)
    # two a row
    Z *= Z >= Z.topk(2).values[:, -1:]
    asked = torch.empty(K, 12, device="cpu"), torch.tensor(1.0, device="cpu"), ALONE
    found = [statistics.Statistics(*asked, ops=REFERENCE) for _ in range(2)]
    made = []
    monkeypatch.setattr(statistics, "add_gram_", lambda *_: made.append(add_gram_(*_)))
    for part in range(0, 60, 20):
        for each, sparse in zip(found, (True, False), strict=True):
            each.add_(X[part : part + 20], Z[part : part + 20], sparse=sparse)
    assert len(made) == (3 if few else 0)
    for name in ("cross", "gram"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name))
