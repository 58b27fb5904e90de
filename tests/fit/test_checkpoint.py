"""Checkpoints of fit: the same bits from any iteration on, files whole or absent.

Signals that save are in test_signals.py, checkpoints of several processes in
test_shared_checkpoints.py, those of an older version in tests/same_bits.py.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import broken_checkpoints
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from fits import SOLVERS_AND_FORMS, nmf
from half_steps import strided
from oracle import problem
from streams import CHUNK_ROWS, A, model, save, tight

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.cli import main as cli
from fastnmf.files import read_matrix
from fastnmf.planning.plan import REFRESH
from fastnmf.solvers.registry import SOLVERS

TESTS = Path(__file__).parents[1]


def numbers(n=60, d=20, dtype=torch.float32):
    return torch.tensor(problem(n, d, 5)[0], dtype=dtype)


class Stopped(Exception):
    pass


def stop_in(iteration):
    def stop(info):
        if info.iteration == iteration:
            raise Stopped

    return stop


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.safetensors"


def left_in(iteration, path, A, **options):
    """A checkpoint of a fit that was left in this iteration: of the one before."""
    with pytest.raises(Stopped):
        nmf(25, seed=0, checkpoint_seconds=0, **options).fit(
            A, checkpoint=path, callback=stop_in(iteration)
        )


def resumed_from(path, A, *, callback=None, codes="memory", **options):
    """A model and its factors after a fit that went on from the checkpoint."""
    model = nmf(**{"nb_concepts": 25, "seed": 0, **options})
    return model, model.fit(A, codes=codes, checkpoint=path, resume=True, callback=callback)


def assert_same_fit(model, factors, expected, expected_factors):
    for F, its in zip(factors, expected_factors, strict=True):
        assert torch.equal(F, its)
    errors, its = (
        [(i.iteration, i.relative_change, i.relative_error) for i in m.fit_info_.history]
        for m in (model, expected)
    )
    assert errors == its
    assert model.fit_info_.stopped_by == expected.fit_info_.stopped_by


@functools.cache
def never_left(dtype, **options):
    """A model and its factors after a fit of numbers() with these options."""
    model = nmf(25, seed=0, **options)
    return model, model.fit(numbers(dtype=dtype))


# every solver and form after the first iteration; hals in residual form, which carries it,
# also before it is computed anew, then, and after
LEFT = [(*case, torch.float32, 2) for case in SOLVERS_AND_FORMS]
LEFT += [("hals", "residual", torch.float32, left) for left in (5, REFRESH, REFRESH + 1, 19)]
LEFT += [("hals", "residual", torch.float64, REFRESH + 2), ("hals", "normal", torch.float64, 19)]
LEFT += [("mu", "residual", torch.float64, 5), ("pgd", "normal", torch.float64, 5)]
LEFT += [("anls", "normal", torch.float64, REFRESH)]


@pytest.mark.parametrize(("solver", "form", "dtype", "left"), LEFT)
def test_resumed_fit_gives_the_same_bits(solver, form, dtype, left, path):
    """Also where the residual was carried from iteration to iteration, and is not new."""
    A = numbers(dtype=dtype)
    options = {"solver": solver, "form": form, "max_iter": 20, "tol": 0}
    expected, factors = never_left(dtype, **options)
    left_in(left, path, A, **options)
    seen = []
    model, ends = resumed_from(path, A, callback=seen.append, **options)
    assert_same_fit(model, ends, expected, factors)
    assert [info.iteration for info in seen] == list(range(left, 21))


@pytest.mark.parametrize(("solver", "form"), SOLVERS_AND_FORMS)
def test_accelerated_fit_resumes_to_the_same_bits(solver, form, path):
    A = numbers()
    options = {"solver": solver, "form": form, "accelerate": True, "max_iter": 20, "tol": 0}
    expected, factors = never_left(A.dtype, **options)
    left_in(9, path, A, **options)
    assert_same_fit(*resumed_from(path, A, **options), expected, factors)


@pytest.mark.parametrize(
    ("solver", "n"), [("hals", 1), ("hals", 60), ("mu", 5), ("pgd", 60), ("anls", 5)]
)
def test_fit_of_one_concept_resumes_to_the_same_bits(solver, n, path):
    """A dictionary of one row had other strides at the start than when it was read, and its
    products another order of summation."""
    for seed in range(8):
        A = torch.rand(n, 9, generator=torch.Generator().manual_seed(seed))
        options = {"solver": solver, "max_iter": 12, "tol": 0, "seed": 0}
        path.unlink(missing_ok=True)
        expected = nmf(1, **options)
        factors = expected.fit(A)
        with pytest.raises(Stopped):
            nmf(1, checkpoint_seconds=0, **options).fit(A, checkpoint=path, callback=stop_in(6))
        ends = resumed_from(path, A, nb_concepts=1, **options)
        assert_same_fit(*ends, expected, factors)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_that_is_left_many_times_gives_the_same_bits(solver, path):
    A = strided(numbers())
    options = {"solver": solver, "max_iter": 40, "tol": 0}
    expected = nmf(25, seed=0, **options)
    factors = expected.fit(A)
    for left in (1, 2, 3, 11, 12, 30):
        with pytest.raises(Stopped):
            resumed_from(path, A, callback=stop_in(left), checkpoint_seconds=0, **options)
    assert_same_fit(*resumed_from(path, A, **options), expected, factors)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_that_converged_resumes_to_the_same_end(solver, path):
    A = numbers()
    options = {"solver": solver, "tol": 1e-2, "max_iter": 500, "seed": 0}
    expected = nmf(4, **options)
    factors = expected.fit(A)
    assert expected.fit_info_.stopped_by == "tol"
    nmf(4, checkpoint_seconds=0, **options).fit(A, checkpoint=path)
    assert_same_fit(*resumed_from(path, A, nb_concepts=4, **options), expected, factors)


def test_checkpoint_does_not_change_the_fit(path):
    A = numbers()
    options = {"seed": 0, "max_iter": 20, "tol": 0}
    plain, kept = nmf(25, **options), nmf(25, checkpoint_seconds=0, **options)
    assert_same_fit(kept, kept.fit(A, checkpoint=path), plain, plain.fit(A))


def test_more_iterations_than_before_go_on_from_the_last(path):
    A = numbers()
    nmf(25, max_iter=7, tol=0, seed=0, checkpoint_seconds=0).fit(A, checkpoint=path)
    seen = []
    more, ends = resumed_from(path, A, callback=seen.append, max_iter=20, tol=0)
    expected = nmf(25, max_iter=20, tol=0, seed=0)
    assert_same_fit(more, ends, expected, expected.fit(A))
    assert seen[0].iteration == 8
    assert more.fit_info_.iterations == 20
    seconds = [info.seconds for info in more.fit_info_.history]
    assert seconds == sorted(seconds)
    assert more.fit_info_.seconds > seconds[-1]


def test_resume_without_a_file_starts(path):
    A = numbers()
    options = {"max_iter": 5, "tol": 0}
    expected = nmf(4, seed=0, **options)
    started = resumed_from(path, A, nb_concepts=4, **options)
    assert_same_fit(*started, expected, expected.fit(A))


def test_unseeded_fit_resumes_from_its_own_start(path):
    A = numbers()
    with pytest.raises(Stopped):
        nmf(25, checkpoint_seconds=0).fit(A, checkpoint=path, callback=stop_in(5))
    options = {"seed": None, "max_iter": 20, "tol": 0}
    ends = [resumed_from(path, A, **options)[1] for _ in range(2)]
    assert all(map(torch.equal, *ends))


def test_saves_are_as_far_apart_in_time_as_was_requested(path, monkeypatch):
    saved = []
    save_file = safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda *a, **k: (saved.append(1), save_file(*a, **k))
    )
    for seconds, expected in ((0, 20), (60, 0)):
        saved.clear()
        model = nmf(4, max_iter=20, tol=0, checkpoint_seconds=seconds)
        model.fit(numbers(), checkpoint=path)
        assert len(saved) == expected


def test_new_fit_takes_the_place_of_an_old_checkpoint(path):
    A = numbers()
    left_in(9, path, A, solver="mu")
    left_in(3, path, A, solver="hals")
    with safetensors.safe_open(path, "pt") as file:
        assert len(file.get_tensor("history")) == 2


def never(info):
    pytest.fail("computed")


def model_file(path):
    model = NMF(4, max_iter=1, tol=0)
    model.fit(numbers())
    model.save(path)


BROKEN = {**broken_checkpoints.BROKEN, model_file: "holds D, and is no checkpoint"}


@pytest.mark.parametrize(
    ("breaking", "resume"),
    # what is overwritten is checked by its header, and not read to the end
    [(each, True) for each in BROKEN]
    + [(each, False) for each in (broken_checkpoints.truncated, broken_checkpoints.foreign)],
    ids=lambda value: getattr(value, "__name__", "resume" if value else "new"),
)
def test_file_that_is_no_checkpoint_is_refused_and_left_alone(breaking, resume, path):
    left_in(3, path, numbers())
    breaking(path)
    before = path.read_bytes()
    model = nmf(25, seed=0, checkpoint_seconds=0)
    with pytest.raises(InvalidInput, match=f"fit.safetensors {BROKEN[breaking]}"):
        model.fit(numbers(), checkpoint=path, resume=resume, callback=never)
    assert path.read_bytes() == before
    assert not model.fitted


OTHER = {
    "nb_concepts": {"nb_concepts": 24},
    "solver": {"solver": "mu"},
    "seed": {"seed": 1},
    "form": {"form": "residual"},
    "init": {"init": "rows"},
    "backend": {"backend": "torch"},
    "chunk_rows": {"chunk_rows": 7},
    "block": {"block": 8},
    "revive": {"revive": True},
}


@pytest.mark.parametrize("what", [*OTHER, "n", "d", "dtype", "data"])
def test_checkpoint_of_another_fit_is_refused_and_left_alone(what, path):
    left_in(3, path, numbers())
    before = path.read_bytes()
    A = {
        "n": numbers(59),
        "d": numbers(60, 19),
        "dtype": numbers().double(),
        "data": numbers() * 1.01,
    }.get(what, numbers())
    model = nmf(**{"nb_concepts": 25, "seed": 0, **OTHER.get(what, {})})
    if what == "backend" and model.backend == "torch":
        first = safetensors.safe_open(path, "pt").metadata()["settings"]
        if '"backend": "torch"' in first:
            pytest.skip("there is no other backend here")
    name = "‖A‖²" if what == "data" else what
    with pytest.raises(InvalidInput, match=rf"another fit: {name}=.* there, .* here"):
        model.fit(A, checkpoint=path, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("seconds", "kind"), [(-1, InvalidInput), (float("nan"), InvalidInput), ("60", TypeError)]
)
def test_seconds_that_are_none_are_refused(seconds, kind):
    with pytest.raises(kind, match="checkpoint_seconds"):
        Tuning(checkpoint_seconds=seconds)


def test_place_that_cannot_be_written_is_refused_before_the_fit(tmp_path):
    for place, error in (
        (tmp_path / "no" / "fit.safetensors", FileNotFoundError),
        (tmp_path / "fit.pt", InvalidInput),
        (tmp_path, InvalidInput),
    ):
        with pytest.raises(error):
            NMF(4).fit(numbers(), checkpoint=place, callback=never)
    with pytest.raises(TypeError, match="checkpoint=3"):
        NMF(4).fit(numbers(), checkpoint=3, callback=never)


def test_resume_needs_a_checkpoint():
    with pytest.raises(InvalidInput, match="checkpoint"):
        NMF(4).fit(numbers(), resume=True)


def test_save_that_fails_leaves_the_checkpoint_before(path, monkeypatch):
    left_in(4, path, numbers())
    before = path.read_bytes()

    def full(_, part, **__):
        part.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        resumed_from(path, numbers(), checkpoint_seconds=0)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not here")
@pytest.mark.parametrize(
    "cases",
    [
        [("hals", "residual"), ("anls", "shared-streamed")],
        pytest.param([("mu", "streamed"), ("pgd", "normal")], marks=pytest.mark.thorough),
    ],
    ids=["hals and anls", "mu and pgd"],
)
def test_fits_that_are_killed_at_random_moments_end_with_the_same_bits(cases):
    """Each solver once, each way to read and share the data; `python tests/killed_fits.py 100`
    does all."""
    command = [sys.executable, TESTS / "killed_fits.py", str(len(cases)), *sum(cases, ())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    for solver, form in cases:
        assert f"{solver} {form}: 1 kills" in ran.stdout


def saved_iterations(path):
    with safetensors.safe_open(path, "pt") as file:
        return len(file.get_tensor("history"))


def test_command_line_saves_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", numbers().numpy())
    command = "fit A.npy --concepts 25 --out m.safetensors --codes Z.npy --seed 0 --tol 0 --quiet"
    keeping = "--checkpoint c.safetensors --checkpoint-seconds 0"
    assert cli.main([*command.split(), *keeping.split(), "--max-iter", "5"]) == 0
    assert saved_iterations("c.safetensors") == 5
    # the model and the codes of the first 5 iterations are there
    command += " --force"
    assert cli.main([*command.split(), *keeping.split(), "--max-iter", "12", "--resume"]) == 0
    assert saved_iterations("c.safetensors") == 12
    Z, D = NMF(25, seed=0, max_iter=12, tol=0).fit(numbers())
    np.testing.assert_array_equal(read_matrix("Z.npy"), Z.numpy())
    assert torch.equal(NMF.load("m.safetensors").D, D)
    assert cli.main([*command.split(), "--resume"]) == 2
    assert "checkpoint" in capsys.readouterr().err
    assert cli.main([*command.split(), "--checkpoint", "m.safetensors"]) == 2
    assert "m.safetensors is named twice" in capsys.readouterr().err


@pytest.fixture
def streamed(tmp_path, small_budgets):
    """A file, and models that read it in passes."""
    A = problem(3000, 40, 6)[0].astype(np.float32)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "A.npy", A)

    def model(**options):
        options = {"max_iter": 12, "tol": 0, "seed": 0, "max_memory": "600kB", **options}
        return nmf(6, **options)

    model.A = tmp_path / "data" / "A.npy"
    return model


def leave_in(iteration, model, A, path, codes, *, resume=False):
    with pytest.raises(Stopped):
        model.fit(A, codes=codes, checkpoint=path, resume=resume, callback=stop_in(iteration))


@pytest.mark.parametrize(
    ("solver", "codes"),
    [
        ("hals", "memory"),
        ("hals", "file"),
        ("hals", None),
        ("mu", None),
        ("pgd", "memory"),
        ("anls", "file"),
    ],
)
def test_streamed_fit_resumes_to_the_same_bits(solver, codes, path, streamed, tmp_path):
    options = {"solver": solver, "max_iter": 5 if codes is None else 12, "chunk_rows": 430}
    expected = streamed(**options)
    place = tmp_path / "expected.npy" if codes == "file" else codes
    Z, D = expected.fit(streamed.A, codes=place)
    assert expected.fit_info_.chunk_rows == 430
    place = tmp_path / "Z.npy" if codes == "file" else codes
    for left in (1, 2, 4) if codes is None else (1, 2, 4, 10):
        model = streamed(checkpoint_seconds=0, **options)
        leave_in(left, model, streamed.A, path, place, resume=True)
    resumed = streamed(**options)
    ends = resumed.fit(streamed.A, codes=place, checkpoint=path, resume=True)
    assert (ends[0] is None) == (codes is None)
    pairs = (ends, (Z, D)) if codes else (ends[1:], (D,))
    assert_same_fit(resumed, pairs[0], expected, pairs[1])
    # the codes of the last save, and no others
    beside = sorted(file.name for file in tmp_path.glob("fit.codes-*"))
    assert len(beside) == (0 if codes is None else 1)


def test_streamed_fit_resumes_in_the_chunks_it_had(path, streamed, tmp_path):
    expected = streamed()
    factors = expected.fit(streamed.A, codes=tmp_path / "expected.npy")
    leave_in(5, streamed(checkpoint_seconds=0), streamed.A, path, tmp_path / "Z.npy")
    run = {"codes": tmp_path / "Z.npy", "checkpoint": path, "resume": True}
    resumed = streamed(max_memory="800kB")
    ends = resumed.fit(streamed.A, **run)
    assert resumed.fit_info_.chunk_rows == expected.fit_info_.chunk_rows
    assert_same_fit(resumed, ends, expected, factors)
    with pytest.raises(InvalidInput, match="give as much max_memory as then"):
        streamed(max_memory="500kB").fit(streamed.A, **run)


@pytest.mark.parametrize("harm", ["cut off", "gone", "foreign"])
def test_streamed_fit_whose_saved_codes_are_damaged_is_refused(harm, path, streamed, tmp_path):
    leave_in(5, streamed(checkpoint_seconds=0), streamed.A, path, tmp_path / "Z.npy")
    (codes,) = tmp_path.glob("fit.codes-*.npy")
    if harm == "cut off":
        codes.write_bytes(codes.read_bytes()[:-8])
    elif harm == "gone":
        codes.unlink()
    else:
        codes.write_text("something else")
    before = path.read_bytes()
    run = {"codes": tmp_path / "Z.npy", "checkpoint": path, "resume": True}
    with pytest.raises(InvalidInput, match=f"{codes.name}, which cannot be read"):
        streamed().fit(streamed.A, **run)
    assert path.read_bytes() == before
    assert not (tmp_path / "Z.npy").exists()


def test_checkpoint_of_a_fit_in_memory_is_not_that_of_a_stream(path, streamed, tmp_path):
    A = np.load(streamed.A)
    streamed(max_memory=None, checkpoint_seconds=0).fit(A, checkpoint=path)
    with pytest.raises(InvalidInput, match="data='in memory' there, 'read in passes' here"):
        streamed().fit(streamed.A, codes=tmp_path / "Z.npy", checkpoint=path, resume=True)


def test_checkpoint_is_no_shard_of_the_data(streamed):
    place = streamed.A.parent / "fit.safetensors"
    with pytest.raises(InvalidInput, match=r"is to be written, but .* is read"):
        streamed().fit(streamed.A.parent, checkpoint=place)


@pytest.mark.usefixtures("small_budgets")
def test_files_of_the_user_that_look_like_codes_stay(tmp_path):
    (tmp_path / "fit.codes-a.npy").write_bytes(b"mine")
    (tmp_path / "fit.codes-c.npy").write_bytes(b"mine")
    save(tmp_path / "A.npy", A)
    path, options = tmp_path / "fit.safetensors", {"checkpoint_seconds": 0, "max_iter": 5}
    fitted = model(chunk_rows=CHUNK_ROWS, max_memory=tight("memory"), **options)
    fitted.fit(tmp_path / "A.npy", checkpoint=path)
    # five saves, of two names in turn
    own = {"A.npy", "fit.safetensors", "fit.codes-b.npy"}
    assert {*os.listdir(tmp_path)} == own | {"fit.codes-a.npy", "fit.codes-c.npy"}
    for turn in "ac":
        assert (tmp_path / f"fit.codes-{turn}.npy").read_bytes() == b"mine"


@pytest.mark.usefixtures("small_budgets")
def test_save_that_fails_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path / "A.npy", A)
    path, written = tmp_path / "fit.safetensors", []
    options = {"checkpoint_seconds": 0, "max_iter": 5, "max_memory": tight("memory")}
    expected = model(chunk_rows=CHUNK_ROWS, **options).fit(tmp_path / "A.npy")
    save_file = safetensors.torch.save_file

    def fails_at_the_third(*given, **named):
        written.append(given)
        if len(written) == 3:
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(*given, **named)

    monkeypatch.setattr(safetensors.torch, "save_file", fails_at_the_third)
    with pytest.raises(OSError, match=r"No space left on device: '.*fit\.safetensors'"):
        model(chunk_rows=CHUNK_ROWS, **options).fit(tmp_path / "A.npy", checkpoint=path)
    assert {*os.listdir(tmp_path)} == {"A.npy", "fit.safetensors", "fit.codes-b.npy"}
    assert saved_iterations(path) == 2
    fitted = model(chunk_rows=CHUNK_ROWS, **options)
    ends = fitted.fit(tmp_path / "A.npy", checkpoint=path, resume=True)
    for F, its in zip(ends, expected, strict=True):
        assert torch.equal(F, its)
