"""Fits of data larger than memory: the same iterates from chunks, codes in files, faults."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from fits import nmf
from oracle import relative_difference
from streams import (
    CHUNK_ROWS,
    SOURCES,
    A,
    D,
    K,
    N,
    model,
    save,
    sharded,
    streamed,
    tight,
)

from fastnmf import NMF, InvalidInput
from fastnmf.cli import main as cli
from fastnmf.planning.memory import Needs
from fastnmf.solvers.registry import SOLVERS

pytestmark = pytest.mark.usefixtures("small_budgets")
# all solvers and all starts, each with another in either dtype
SOLVERS_AND_STARTS = [
    ("hals", "nndsvda", torch.float32),
    ("mu", "random", torch.float32),
    ("pgd", "rows", torch.float32),
    ("anls", "spread", torch.float32),
    ("hals", "spread", torch.float64),
    ("mu", "rows", torch.float64),
    ("pgd", "nndsvdar", torch.float64),
    ("hals", "nndsvd", torch.float64),
    ("anls", "random", torch.float64),
]


@pytest.mark.parametrize(("solver", "start", "dtype"), SOLVERS_AND_STARTS)
def test_streamed_fit_equals_resident_fit(solver, start, dtype, tmp_path):
    data, bound = A.to(dtype), 1e-5 if dtype == torch.float32 else 1e-10
    options = {"solver": solver, "init": start}
    expected = model(**options)
    Z, D = expected.fit(data)
    assert expected.fit_info_.chunk_rows is None
    most = tight(start=start, itemsize=dtype.itemsize)
    chunked = model(**options, chunk_rows=CHUNK_ROWS, max_memory=most)
    given = chunked.fit(sharded(tmp_path / "A", data))
    assert chunked.fit_info_.chunk_rows == CHUNK_ROWS
    assert relative_difference(given[1], D) <= bound
    assert relative_difference(given[0], Z) <= bound
    for name in ("relative_error", "r_squared", "mean_l0", "hoyer"):
        mine, theirs = (getattr(fitted.fit_info_, name) for fitted in (chunked, expected))
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("features", "dtype"),
    # no random basis (90: few rows), one, one of which the features are thinned out
    [(90, torch.float32), (200, torch.float64), (900, torch.float32), (900, torch.float64)],
)
def test_start_with_fewer_rows_than_features_is_the_resident_one(features, dtype, tmp_path):
    """From the same random basis of the rows."""
    n = 50 if features == 90 else 120
    # of a flat spectrum, where every basis leads to other vectors
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(n, features, generator=generator, dtype=torch.float64).to(dtype)
    options = {"seed": 0, "init": "nndsvda", "max_iter": 0}
    Z, D = NMF(K, **options).fit(data)
    most = tight("memory", rows=20, data=data, itemsize=data.itemsize)
    chunked = nmf(K, max_memory=most, chunk_rows=20, **options)
    given = chunked.fit(sharded(tmp_path / "A", data, bounds=(0, 7, 30, n)))
    assert chunked.fit_info_.chunk_rows == 20
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    assert relative_difference(given[1], D) <= bound
    assert relative_difference(given[0], Z) <= bound


def test_stream_is_accelerated_only_by_an_error_that_says_so(tmp_path):
    folder = sharded(tmp_path / "A")
    _, _, info = streamed(folder, accelerate="auto", max_iter=2)
    assert not info.accelerated
    with pytest.raises(ValueError, match="more max_memory"):
        streamed(folder, accelerate=True)


def test_streamed_fit_takes_given_start(tmp_path):
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(N, K, generator=generator), torch.rand(K, D, generator=generator)
    _, expected = model(init=start).fit(A)
    _, given, _ = streamed(sharded(tmp_path / "A"), init=start)
    assert relative_difference(given, expected) <= 1e-5


def test_more_concepts_than_features_are_streamed(tmp_path):
    """The start takes rows beside concepts of NNDSVDa, and the half-steps more concepts."""
    wide = 60
    options = {"init": "nndsvda", "seed": 0, "tol": 0, "max_iter": 3, "accelerate": False}
    _, expected = NMF(wide, **options).fit(A)
    most = tight(start="nndsvda", concepts=wide)
    chunked = nmf(wide, max_memory=most, chunk_rows=CHUNK_ROWS, **options)
    _, given = chunked.fit(sharded(tmp_path / "A"))
    assert chunked.fit_info_.chunk_rows is not None
    assert relative_difference(given, expected) <= 1e-5


@pytest.mark.parametrize("fits", [False, True])
def test_codes_on_disk_equal_codes_in_memory(fits, tmp_path):
    folder, target = sharded(tmp_path / "A"), tmp_path / "Z.npy"
    options = {"chunk_rows": CHUNK_ROWS, "max_memory": "1GB" if fits else tight()}
    expected, D = model(**options).fit(folder)
    fitted = model(**options)
    Z, given = fitted.fit(folder, codes=target)
    assert torch.equal(given, D)
    assert torch.equal(Z, expected)
    np.testing.assert_array_equal(np.load(target), expected)
    assert fitted.fit_info_.codes == str(target)
    Z.zero_()
    np.testing.assert_array_equal(np.load(target), expected)


@pytest.mark.parametrize(
    ("solver", "fits"), [*((solver, False) for solver in SOLVERS), ("hals", True)]
)
def test_codes_that_are_not_kept_are_computed_anew(solver, fits, tmp_path):
    folder = sharded(tmp_path / "A")
    kept = model(solver=solver)
    kept.fit(A)
    fitted = model(solver=solver, max_memory="1GB" if fits else tight("none"))
    Z, D = fitted.fit(folder, codes=None)
    assert Z is None
    assert fitted.fit_info_.codes == "not kept"
    assert "of D" in str(fitted.fit_info_)
    # another path to the dictionary, since codes are near their optimum in each pass
    assert fitted.fit_info_.relative_error <= 1.1 * kept.fit_info_.relative_error
    errors = [iteration.relative_error for iteration in fitted.fit_info_.history]
    assert errors == sorted(errors, reverse=True)
    codes = fitted.encode(A, tol=0)
    assert relative_difference(codes @ D, A) <= 1.01 * fitted.fit_info_.relative_error


def test_fit_without_codes_stops_when_the_dictionary_has_converged(tmp_path):
    fitted = model(tol=1e-3, max_iter=300, max_memory=tight("none"))
    fitted.fit(sharded(tmp_path / "A"), codes=None)
    assert fitted.fit_info_.converged
    assert fitted.fit_info_.iterations > 2


def test_given_start_of_codes_that_are_not_kept():
    D0 = torch.rand(K, D)
    with pytest.raises(InvalidInput, match=r"give init=\(None, D0\)"):
        model(init=(torch.rand(N, K), D0)).fit(A, codes=None)
    model(init=(None, D0), max_iter=2).fit(A, codes=None)


@pytest.mark.parametrize("kind", ["folder", "loader", "map"])
def test_encode_streams(kind, tmp_path):
    fitted = model()
    fitted.fit(A)
    expected = fitted.encode(A)
    fitted.max_memory = tight(rows=300)
    assert relative_difference(fitted.encode(SOURCES[kind](tmp_path)), expected) <= 1e-3
    target = tmp_path / "Z.npy"
    on_disk = fitted.encode(tmp_path / "A" if kind == "folder" else A, codes=target)
    np.testing.assert_array_equal(np.load(target), on_disk)
    assert relative_difference(on_disk, expected) <= 1e-3


def test_encode_streams_from_given_codes(tmp_path):
    fitted = model()
    Z, _ = fitted.fit(A)
    folder = sharded(tmp_path / "A")
    fitted.max_memory = tight(rows=300)
    assert torch.equal(fitted.encode(folder, max_iter=0, Z0=Z), Z)


def test_decode_streams(tmp_path):
    fitted = model()
    Z, D = fitted.fit(A, codes=tmp_path / "Z.npy")
    fitted.max_memory = Needs(N, K, D.shape[1], 4).streamed(100)
    expected = Z @ D
    assert relative_difference(fitted.decode(tmp_path / "Z.npy"), expected) <= 1e-6
    fitted.decode(tmp_path / "Z.npy", out=tmp_path / "A_hat.npy")
    assert relative_difference(np.load(tmp_path / "A_hat.npy"), expected) <= 1e-6


@pytest.mark.parametrize("codes", [3, b"Z.npy"])
def test_codes_of_another_type_are_refused(codes):
    with pytest.raises(TypeError, match="codes="):
        model().fit(A, codes=codes)


def test_codes_file_is_refused_before_the_fit(tmp_path):
    for name, message in (
        ("Z.txt", "must end in .npy"),
        ("A.npy", "is to be written, but .*A.npy is read"),
    ):
        save(tmp_path / "A.npy", A)
        with pytest.raises(InvalidInput, match=message):
            model(max_memory=tight()).fit(tmp_path / "A.npy", codes=tmp_path / name)


def test_encode_and_decode_need_a_place():
    fitted = model(max_iter=1)
    fitted.fit(A)
    with pytest.raises(TypeError, match="codes=None"):
        fitted.encode(A, codes=None)


def test_gradient_is_refused_where_there_is_none(tmp_path):
    fitted = model(max_iter=1)
    Z, _ = fitted.fit(A)
    with pytest.raises(InvalidInput, match=r"Z requires a gradient.*Z.detach\(\)"):
        fitted.decode(Z.requires_grad_(), out=tmp_path / "A_hat.npy")
    with pytest.raises(InvalidInput, match="A requires a gradient"):
        fitted.encode(A.clone().requires_grad_(), codes=tmp_path / "Z.npy")
    fitted.max_memory = tight(rows=100)
    wide = A.half().requires_grad_()
    with pytest.raises(InvalidInput, match="A requires a gradient"):
        fitted.encode(wide)
    with torch.no_grad():
        assert len(fitted.encode(wide)) == N


def test_residual_form_is_refused_where_data_are_streamed(tmp_path):
    with pytest.raises(InvalidInput, match=r"form='residual' keeps a residual"):
        model(form="residual", max_memory=tight()).fit(sharded(tmp_path / "A"))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastnmf")]


@pytest.mark.parametrize(("fault", "fits"), [(KeyboardInterrupt, False), (RuntimeError, True)])
def test_interrupted_fit_leaves_all_as_it_was(fault, fits, tmp_path):
    folder, target = sharded(tmp_path / "A"), tmp_path / "Z.npy"

    def interrupt(iteration):
        if iteration.iteration == 2:
            raise fault

    fitted = model(max_memory="1GB" if fits else tight(), max_iter=1)
    fitted.fit(folder, codes=target)
    before, D, info = target.read_bytes(), fitted.D.clone(), fitted.fit_info_
    with pytest.raises(fault):
        fitted.fit(folder, max_iter=5, codes=target, callback=interrupt)
    assert target.read_bytes() == before
    assert torch.equal(fitted.D, D)
    assert fitted.fit_info_ is info
    assert sorted(file.name for file in tmp_path.iterdir()) == ["A", "Z.npy"]
    assert threads() == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_fault_of_the_reader_reaches_the_caller(fault):
    class Faulty:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for number, rows in enumerate(A.split(250)):
                if self.passes == 3 and number == 5:
                    raise fault("the disk is gone")
                yield rows

    with pytest.raises(fault, match="the disk is gone"):
        model(max_memory=tight()).fit(Faulty())
    assert threads() == []


def test_command_line_streams(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sharded(tmp_path / "A")
    limit = str(tight("file", "nndsvda"))
    command = f"fit A --concepts {K} --out m.safetensors --codes Z.npy --max-iter 5 --seed 0"
    assert cli.main([*command.split(), "--max-memory", limit]) == 0
    printed = capsys.readouterr()
    for word in (f"{N:,} × {D}", "rows at a time", "passes", "Z.npy"):
        assert word in printed.out
    # which is no terminal
    assert "pass" not in printed.err
    expected, _ = model(max_iter=5).fit(A)
    assert relative_difference(np.load("Z.npy"), expected) <= 1e-5
    shards = [str(path) for path in sorted((tmp_path / "A").iterdir())]
    assert cli.main(["encode", "m.safetensors", *shards, "--out", "Y.npy"]) == 0
    assert cli.main(["decode", "m.safetensors", "Y.npy", "--out", "A_hat.npy"]) == 0
    assert relative_difference(np.load("A_hat.npy"), A) < 0.2
    overwriting = "fit A --concepts 3 --out m.safetensors --codes A/p.npy"
    assert cli.main(overwriting.split()) == 2
