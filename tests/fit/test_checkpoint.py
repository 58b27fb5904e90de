"""Checkpoints of fit: the same bits from any iteration on, files whole or absent, signals."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import broken_checkpoints
import numpy as np
import pytest
import safetensors.torch
import torch
from broken_checkpoints import without_settings
from half_steps import DTYPES, strided
from killed_fits import CASES, SHARED_CASES
from oracle import problem

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.cli import main as cli
from fastnmf.files import load_model, read_matrix, save_model
from fastnmf.planning.plan import REFRESH
from fastnmf.solvers.registry import SOLVERS

FORMS = [(name, form) for name, solver in SOLVERS.items() for form in solver.forms]
HERE = Path(__file__).parent


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
    options = {"checkpoint": path, "checkpoint_seconds": 0, **options}
    with pytest.raises(Stopped):
        NMF(25, seed=0, **options).fit(A, callback=stop_in(iteration))


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
    model = NMF(25, seed=0, **options)
    return model, model.fit(numbers(dtype=dtype))


@pytest.mark.parametrize(("solver", "form"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("left", [2, 5, REFRESH, REFRESH + 1, REFRESH + 2, 19])
def test_resumed_fit_gives_the_same_bits(solver, form, dtype, left, path):
    """Also where the residual was carried from iteration to iteration, and is not new."""
    A = numbers(dtype=dtype)
    options = {"solver": solver, "form": form, "max_iter": 20, "tol": 0}
    expected, factors = never_left(dtype, **options)
    left_in(left, path, A, **options)
    resumed = NMF(25, seed=0, checkpoint=path, **options)
    seen = []
    resumed.callback = seen.append
    assert_same_fit(resumed, resumed.fit(A, resume=True), expected, factors)
    assert [info.iteration for info in seen] == list(range(left, 21))


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("left", [2, 9])
def test_accelerated_fit_resumes_to_the_same_bits(left, solver, form, path):
    A = numbers()
    options = {"solver": solver, "form": form, "accelerate": True, "max_iter": 20, "tol": 0}
    expected, factors = never_left(A.dtype, **options)
    left_in(left, path, A, **options)
    resumed = NMF(25, seed=0, checkpoint=path, **options)
    assert_same_fit(resumed, resumed.fit(A, resume=True), expected, factors)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [1, 5, 60])
def test_fit_of_one_concept_resumes_to_the_same_bits(n, solver, path):
    """A dictionary of one row had other strides at the start than when it was read, and its
    products another order of summation."""
    for seed in range(8):
        A = torch.rand(n, 9, generator=torch.Generator().manual_seed(seed))
        options = {"solver": solver, "max_iter": 12, "tol": 0, "seed": 0, "checkpoint": path}
        path.unlink(missing_ok=True)
        expected = NMF(1, **options)
        factors = expected.fit(A)
        with pytest.raises(Stopped):
            NMF(1, tuning=Tuning(checkpoint_seconds=0), **options).fit(A, callback=stop_in(6))
        resumed = NMF(1, **options)
        assert_same_fit(resumed, resumed.fit(A, resume=True), expected, factors)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_that_is_left_many_times_gives_the_same_bits(solver, path):
    A = strided(numbers())
    options = {"solver": solver, "max_iter": 40, "tol": 0}
    expected = NMF(25, seed=0, **options)
    factors = expected.fit(A)
    for left in (1, 2, 3, 11, 12, 30):
        with pytest.raises(Stopped):
            NMF(25, seed=0, tuning=Tuning(checkpoint_seconds=0), **options).fit(
                A, resume=True, checkpoint=path, callback=stop_in(left)
            )
    resumed = NMF(25, seed=0, checkpoint=path, **options)
    assert_same_fit(resumed, resumed.fit(A, resume=True), expected, factors)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_that_converged_resumes_to_the_same_end(solver, path):
    A = numbers()
    options = {"solver": solver, "tol": 1e-2, "max_iter": 500}
    expected = NMF(4, seed=0, **options)
    factors = expected.fit(A)
    assert expected.fit_info_.stopped_by == "tol"
    NMF(4, seed=0, tuning=Tuning(checkpoint_seconds=0), **options).fit(A, checkpoint=path)
    resumed = NMF(4, seed=0, checkpoint=path, **options)
    assert_same_fit(resumed, resumed.fit(A, resume=True), expected, factors)


def test_checkpoint_does_not_change_the_fit(path):
    A = numbers()
    plain, kept = NMF(25, seed=0, max_iter=20, tol=0), NMF(25, seed=0, max_iter=20, tol=0)
    kept.checkpoint, kept.checkpoint_seconds = path, 0
    assert_same_fit(kept, kept.fit(A), plain, plain.fit(A))


def test_more_iterations_than_before_go_on_from_the_last(path):
    A = numbers()
    options = {"checkpoint": path, "checkpoint_seconds": 0, "tol": 0, "seed": 0}
    NMF(25, max_iter=7, **options).fit(A)
    seen = []
    more = NMF(25, max_iter=20, callback=seen.append, **options)
    expected = NMF(25, max_iter=20, tol=0, seed=0)
    assert_same_fit(more, more.fit(A, resume=True), expected, expected.fit(A))
    assert seen[0].iteration == 8
    assert more.fit_info_.iterations == 20
    seconds = [info.seconds for info in more.fit_info_.history]
    assert seconds == sorted(seconds)
    assert more.fit_info_.seconds > seconds[-1]


def test_resume_without_a_file_starts(path):
    A = numbers()
    options = {"max_iter": 5, "tol": 0, "seed": 0}
    model, expected = NMF(4, checkpoint=path, **options), NMF(4, **options)
    assert_same_fit(model, model.fit(A, resume=True), expected, expected.fit(A))


def test_unseeded_fit_resumes_from_its_own_start(path):
    A = numbers()
    with pytest.raises(Stopped):
        NMF(25, tuning=Tuning(checkpoint_seconds=0)).fit(A, checkpoint=path, callback=stop_in(5))
    ends = [NMF(25, max_iter=20, tol=0).fit(A, resume=True, checkpoint=path) for _ in range(2)]
    assert all(map(torch.equal, *ends))


def test_saves_are_as_far_apart_as_was_asked(path, monkeypatch):
    saved = []
    save_file = safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda *a, **k: (saved.append(1), save_file(*a, **k))
    )
    for seconds, expected in ((0, 20), (60, 0)):
        saved.clear()
        options = {"checkpoint": path, "checkpoint_seconds": seconds}
        NMF(4, max_iter=20, tol=0, **options).fit(numbers())
        assert len(saved) == expected


def test_new_fit_takes_the_place_of_an_old_checkpoint(path):
    A = numbers()
    left_in(9, path, A, solver="mu")
    left_in(3, path, A, solver="hals")
    with safetensors.safe_open(path, "pt") as file:
        assert len(file.get_tensor("history")) == 2


def model_file(path):
    model = NMF(4, max_iter=1, tol=0)
    model.fit(numbers())
    save_model(path, model)


BROKEN = {**broken_checkpoints.BROKEN, model_file: "holds D, and is no checkpoint"}


@pytest.mark.parametrize(
    ("breaking", "resume"),
    # what is written over is not read to the end
    [(each, resume) for each in BROKEN for resume in (True, False) if each is not without_settings]
    + [(without_settings, True)],
    ids=lambda value: getattr(value, "__name__", "resume" if value else "new"),
)
def test_file_that_is_no_checkpoint_is_refused_and_left_alone(breaking, resume, path):
    left_in(3, path, numbers())
    breaking(path)
    before = path.read_bytes()
    model = NMF(
        25,
        seed=0,
        checkpoint=path,
        callback=lambda info: pytest.fail("computed"),
        tuning=Tuning(checkpoint_seconds=0),
    )
    with pytest.raises(InvalidInput, match=f"fit.safetensors {BROKEN[breaking]}"):
        model.fit(numbers(), resume=resume)
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
    options = {"nb_concepts": 25, "seed": 0, "checkpoint": path, **OTHER.get(what, {})}
    model = NMF(**options)
    if what == "backend" and model.backend == "torch":
        first = safetensors.safe_open(path, "pt").metadata()["settings"]
        if '"backend": "torch"' in first:
            pytest.skip("there is no other backend here")
    name = "‖A‖²" if what == "data" else what
    with pytest.raises(InvalidInput, match=rf"another fit: {name}=.* there, .* here"):
        model.fit(A, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"checkpoint": 3}, TypeError),
        ({"checkpoint_seconds": -1}, InvalidInput),
        ({"checkpoint_seconds": float("nan")}, InvalidInput),
        ({"checkpoint_seconds": "60"}, TypeError),
    ],
    ids=str,
)
def test_bad_option_is_refused_by_the_constructor(options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        NMF(4, **options)


def test_place_that_cannot_be_written_is_refused_before_the_fit(tmp_path):
    for place, error in (
        (tmp_path / "no" / "fit.safetensors", FileNotFoundError),
        (tmp_path / "fit.pt", InvalidInput),
        (tmp_path, InvalidInput),
    ):
        with pytest.raises(error):
            NMF(4).fit(numbers(), checkpoint=place, callback=lambda _: pytest.fail("computed"))


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
        NMF(25, seed=0, tuning=Tuning(checkpoint_seconds=0)).fit(
            numbers(), resume=True, checkpoint=path
        )
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.fixture
def handlers():
    """What is to be there after a fit: two handlers that note the signals they are given."""
    noted = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: noted.append(number))
    yield noted
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where whoever runs the tests has told them to ignore
    it, as in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def told_in(iteration, number, times=1):
    def tell(info):
        for _ in range(times if info.iteration == iteration else 0):
            signal.raise_signal(number)

    return tell


def saved_iterations(path):
    with safetensors.safe_open(path, "pt") as file:
        return len(file.get_tensor("history"))


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_saves_the_iteration_and_then_interrupts(path):
    before = signal.getsignal(signal.SIGINT)
    model = NMF(25, seed=0, max_iter=20, tol=0, checkpoint=path)
    model.callback = told_in(5, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        model.fit(numbers())
    assert saved_iterations(path) == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert not model.fitted
    expected = NMF(25, seed=0, max_iter=20, tol=0)
    model.callback = None
    assert_same_fit(model, model.fit(numbers(), resume=True), expected, expected.fit(numbers()))


@pytest.mark.usefixtures("interrupts")
def test_second_ctrl_c_interrupts_at_once(path):
    model = NMF(25, checkpoint=path, callback=told_in(5, signal.SIGINT, times=2))
    with pytest.raises(KeyboardInterrupt):
        model.fit(numbers())
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handler_that_was_there_is_called_after_the_save_and_stays(number, path, handlers):
    mine = signal.getsignal(number)
    model = NMF(25, seed=0, max_iter=20, tol=0, checkpoint=path)
    model.callback = told_in(5, number)
    model.fit(numbers())
    assert handlers == [number]
    assert saved_iterations(path) == 5
    assert signal.getsignal(number) is mine
    assert model.fit_info_.iterations == 20


def test_signals_are_left_alone_without_a_checkpoint_and_in_other_threads(path, handlers):
    seen = []

    def look(_):
        seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    expected = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    NMF(4, max_iter=2, tol=0).fit(numbers(), callback=look)
    model = NMF(4, max_iter=2, tol=0, callback=look, checkpoint=path)
    thread = threading.Thread(target=model.fit, args=(numbers(),))
    thread.start()
    thread.join()
    assert seen == [expected] * 4
    assert model.fitted


def test_handlers_are_back_after_a_fit_that_failed(path, handlers):
    expected = signal.getsignal(signal.SIGTERM)
    left_in(3, path, numbers())
    assert signal.getsignal(signal.SIGTERM) is expected


def in_a_process(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE,
    )


LONG_FIT = """
import signal, sys, torch
# whoever runs the tests in the background may have told them to ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, ".")
from test_checkpoint import NMF, numbers
def tell(info):
    if info.iteration == 3:
        print("running", flush=True)
NMF(25, seed=0, max_iter=10**9, tol=0, checkpoint=sys.argv[1], callback=tell).fit(numbers())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_that_is_told_to_leave_saves_and_leaves_as_it_would_have(number, path):
    fit = in_a_process(LONG_FIT, path)
    assert fit.stdout.readline() == "running\n"
    fit.send_signal(number)
    try:
        _, said = fit.communicate(timeout=60)
    finally:
        fit.kill()
    # Python, too, ends an interrupt that nobody caught by the signal itself
    assert fit.returncode == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    saved = saved_iterations(path)
    assert saved >= 3
    expected, resumed = (NMF(25, seed=0, max_iter=saved + 5, tol=0) for _ in range(2))
    resumed.checkpoint = path
    factors = [F.clone() for F in expected.fit(numbers())]
    assert_same_fit(resumed, resumed.fit(numbers(), resume=True), expected, factors)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not here")
def test_fits_that_are_killed_at_random_moments_end_with_the_same_bits():
    """Of every solver in every form and streamed, and two that are shared; `python
    tests/killed_fits.py 100` does more."""
    cases = [*CASES, SHARED_CASES[0], SHARED_CASES[-1]]
    command = [sys.executable, HERE / "killed_fits.py", str(len(cases)), *sum(cases, ())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    for solver, form in cases:
        assert f"{solver} {form}: 1 kills" in ran.stdout


def test_command_line_saves_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("A.npy", numbers().numpy())
    command = "fit A.npy --concepts 25 --out m.safetensors --codes Z.npy --seed 0 --tol 0 --quiet"
    keeping = "--checkpoint c.safetensors --checkpoint-seconds 0"
    assert cli.main([*command.split(), *keeping.split(), "--max-iter", "5"]) == 0
    assert saved_iterations("c.safetensors") == 5
    assert cli.main([*command.split(), *keeping.split(), "--max-iter", "12", "--resume"]) == 0
    assert saved_iterations("c.safetensors") == 12
    Z, D = NMF(25, seed=0, max_iter=12, tol=0).fit(numbers())
    np.testing.assert_array_equal(read_matrix("Z.npy"), Z.numpy())
    assert torch.equal(load_model("m.safetensors").D, D)
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
        return NMF(6, **options)

    model.A = tmp_path / "data" / "A.npy"
    return model


CODES = ["memory", "file", None]


def kept_in(codes, tmp_path, name="Z.npy"):
    return tmp_path / name if codes == "file" else codes


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("codes", CODES)
def test_streamed_fit_resumes_to_the_same_bits(codes, solver, path, streamed, tmp_path):
    options = {"solver": solver, "max_iter": 5 if codes is None else 12, "chunk_rows": 430}
    expected = streamed(**options)
    Z, D = expected.fit(streamed.A, codes=kept_in(codes, tmp_path, "expected.npy"))
    assert expected.fit_info_.chunk_rows == 430
    at = kept_in(codes, tmp_path)
    for left in (1, 2, 4) if codes is None else (1, 2, 4, 10):
        model = streamed(checkpoint=path, checkpoint_seconds=0, callback=stop_in(left), **options)
        with pytest.raises(Stopped):
            model.fit(streamed.A, codes=at, resume=True)
    resumed = streamed(checkpoint=path, **options)
    ends = resumed.fit(streamed.A, codes=at, resume=True)
    assert (ends[0] is None) == (codes is None)
    pairs = (ends, (Z, D)) if codes else (ends[1:], (D,))
    assert_same_fit(resumed, pairs[0], expected, pairs[1])
    # the codes of the last save, and no others
    beside = sorted(file.name for file in tmp_path.glob("fit.codes-*"))
    assert len(beside) == (0 if codes is None else 1)


def test_streamed_fit_resumes_in_the_chunks_it_had(path, streamed, tmp_path):
    expected = streamed()
    factors = expected.fit(streamed.A, codes=tmp_path / "expected.npy")
    model = streamed(checkpoint=path, checkpoint_seconds=0, callback=stop_in(5))
    with pytest.raises(Stopped):
        model.fit(streamed.A, codes=tmp_path / "Z.npy")
    resumed = streamed(checkpoint=path, max_memory="800kB")
    ends = resumed.fit(streamed.A, codes=tmp_path / "Z.npy", resume=True)
    assert resumed.fit_info_.chunk_rows == expected.fit_info_.chunk_rows
    assert_same_fit(resumed, ends, expected, factors)
    with pytest.raises(InvalidInput, match="give as much max_memory as then"):
        streamed(checkpoint=path, max_memory="500kB").fit(
            streamed.A, codes=tmp_path / "Z.npy", resume=True
        )


@pytest.mark.parametrize("harm", ["cut off", "gone", "foreign"])
def test_streamed_fit_whose_saved_codes_are_damaged_is_refused(harm, path, streamed, tmp_path):
    model = streamed(checkpoint=path, checkpoint_seconds=0, callback=stop_in(5))
    with pytest.raises(Stopped):
        model.fit(streamed.A, codes=tmp_path / "Z.npy")
    (codes,) = tmp_path.glob("fit.codes-*.npy")
    if harm == "cut off":
        codes.write_bytes(codes.read_bytes()[:-8])
    elif harm == "gone":
        codes.unlink()
    else:
        codes.write_text("something else")
    before = path.read_bytes()
    model = streamed(checkpoint=path)
    with pytest.raises(InvalidInput, match=f"{codes.name}, which cannot be read"):
        model.fit(streamed.A, codes=tmp_path / "Z.npy", resume=True)
    assert path.read_bytes() == before
    assert not (tmp_path / "Z.npy").exists()


def test_checkpoint_of_a_fit_in_memory_is_not_that_of_a_stream(path, streamed, tmp_path):
    A = np.load(streamed.A)
    options = {"checkpoint": path, "checkpoint_seconds": 0, "accelerate": "auto"}
    streamed(max_memory=None, **options).fit(A)
    with pytest.raises(InvalidInput, match="data='in memory' there, 'read in passes' here"):
        streamed(**options).fit(streamed.A, codes=tmp_path / "Z.npy", resume=True)


def test_checkpoint_is_no_shard_of_the_data(streamed):
    model = streamed(checkpoint=streamed.A.parent / "fit.safetensors")
    with pytest.raises(InvalidInput, match=r"is to be written, but .* is read"):
        model.fit(streamed.A.parent)
