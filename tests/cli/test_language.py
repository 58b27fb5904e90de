"""Messages of the package as the command line says them."""

from __future__ import annotations

import pytest

from fastnmf.cli.language import of_the_command_line

SAID = [
    ("nb_concepts=0 must be at least 1", "--concepts 0 must be at least 1"),
    ("backend='magic' is unknown", "--backend magic is unknown"),
    ("solver='x y' is unknown", "--solver x y is unknown"),
    ("limit max_memory of 1kB is", "limit --max-memory of 1kB is"),
    ("raise max_iter or tol (tol=0 runs all)", "raise --max-iter or --tol (--tol 0 runs all)"),
    ("with tol=0.0001 and stop='codes'; raise", "with --tol 0.0001 and --stop codes; raise"),
    ("give at least one (header=False?)", "give at least one (--header no?)"),
    ("(codes='Z.npy' writes them to a file)", "(--codes Z.npy writes them to a file)"),
    ("accelerate=True does not go with alpha_Z", "--accelerate yes does not go with --alpha-Z"),
    ("give accelerate='auto' or False", "give --accelerate auto or no"),
    (
        "max_seconds=0.0 must be more than 0; None is no limit",
        "--max-seconds 0.0 must be more than 0",
    ),
    ("unit_norm=True bounds it", "--unit-norm bounds it"),
    ("revive=True and give revive=False", "--revive and give no --revive"),
    ("codes=None keeps none", "no --codes keeps none"),
    ("Try tuning=fastnmf.Tuning(chunk_rows=5).", "Try --chunk-rows 5."),
    ("write NMF(tuning=fastnmf.Tuning(form=…))", "write --form …"),
    (
        "resume=True needs a file to resume from: fit(A, checkpoint=…)",
        "--resume needs --checkpoint FILE",
    ),
    ("or fit without resume to start anew", "or fit without --resume to start anew"),
    ("NMF needs A ≥ 0 (clip with A.clip(min=0)?)", "NMF needs A ≥ 0"),
    (
        "≥ 0 (clip with A.clamp(min=0)?), or fastnmf.SemiNMF, which takes any signs",
        "≥ 0, or fit with --model semi, which takes any signs",
    ),
    ("NMF needs finite numbers (np.nan_to_num(A)?)", "NMF needs finite numbers"),
    ("its first line; header=False reads it", "its first line; --header no reads it"),
    ("give checkpoint= another name", "give --checkpoint another name"),
    ("larger max_iter, solver='anls', which is exact, or a", "larger --max-iter, or a"),
    ("two\n  lines", "two lines"),
]


@pytest.mark.parametrize(("python", "ours"), SAID)
def test_options_are_named_as_they_are_written(python, ours):
    assert of_the_command_line(python) == ours


@pytest.mark.parametrize(
    "message",
    [
        "/data/max_iter/tol.npy does not exist",
        "max_iter.npy does not exist",
        "A has 7 features, the dictionary has 6; give A with 6 columns",
        "model.safetensors holds no summary of a fit: make one by fit",
        "[Errno 28] No space left on device",
    ],
)
def test_what_is_no_option_stays(message):
    assert of_the_command_line(message) == message
