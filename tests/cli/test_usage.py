"""How the command line is read (usage, parser): help, choices, and what was meant by a mistype."""

from __future__ import annotations

import sys

import pytest
from cli.help_texts import FOLDER, texts

from fastnmf.backends.registry import BACKENDS
from fastnmf.cli import main as cli
from fastnmf.cli import parser
from fastnmf.cli.arguments import choices
from fastnmf.cli.usage import Refused
from fastnmf.engine.state import STOPPING_RULES
from fastnmf.fit.encode import METHODS
from fastnmf.init.signed import STARTS as SIGNED_STARTS
from fastnmf.init.start import STARTS, starts_of
from fastnmf.planning.plan import forms_of
from fastnmf.results.concepts.maps import MAPS
from fastnmf.solvers.constraints import NON_NEGATIVE
from fastnmf.solvers.registry import SOLVERS

NEEDED = ["-k", "3", "-o", "m.safetensors"]


def said(words, capsys):
    """Exit status, standard output and standard error of a command."""
    status = cli.main(words)
    return status, *capsys.readouterr()


def test_choices_are_what_there_is():
    assert list(SOLVERS) == choices.SOLVERS
    assert list(METHODS) == choices.METHODS
    assert list(MAPS) == choices.MAPS
    assert [*starts_of(NON_NEGATIVE)] == choices.STARTS
    assert [name for name in SIGNED_STARTS if name not in STARTS] == choices.SIGNED_STARTS
    assert list(STOPPING_RULES) == choices.RULES
    assert BACKENDS
    for form in choices.FORMS[1:]:
        assert any(forms_of(solver, form) for solver in SOLVERS.values())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_bare_command_is_help(words, capsys):
    status, out, err = said(words, capsys)
    assert (status, err) == (0, "")
    assert out.startswith("usage: fastnmf COMMAND [options]\n")
    for name, line in parser.COMMANDS.items():
        assert name in out
        assert line[:40] in out
    assert "examples:\n  fastnmf fit A.npy -k 50 -o model.safetensors" in out
    assert "exit status:" in out


@pytest.mark.parametrize("command", parser.COMMANDS)
def test_help_of_a_command_has_groups_and_examples(command, capsys):
    status, out, err = said([command, "--help"], capsys)
    assert (status, err) == (0, "")
    assert f"usage: fastnmf {command} " in out
    assert f"examples:\n  fastnmf {command}" in out
    assert "messages:\n" in out
    assert said(["help", command], capsys) == (0, out, "")
    if command == "fit":
        titles = ["input and output", "model", "stopping", "memory and computing", "messages"]
        places = [out.index(f"\n{title}:\n") for title in titles]
        assert places == sorted(places)
        for shown in (
            "{hals,mu,pgd,anls}",
            "{auto,yes,no}",
            "-k, --concepts K",
            "-o, --out FILE",
        ):
            assert shown in out


def test_version_is_shown(capsys):
    assert said(["--version"], capsys) == (0, f"fastnmf {parser.__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["--version"], [], ["fit", "--help"], ["fti"], ["fit", "--tols"]]
)
def test_help_and_mistypes_need_no_torch(words):
    """They take a fifth of a second with Python's start; torch alone takes two."""
    import subprocess

    code = "import sys; from fastnmf.cli.main import main; main(sys.argv[1:]); "
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr


# what is given, what is said
MISTYPED = {
    "command": (["fti"], "there is no command 'fti'; did you mean 'fit'?"),
    "command of elsewhere": (["train"], "no command 'train'; there are: fit, encode, decode, rep"),
    "a file in its place": (["A.npy"], "there is no command 'A.npy'; there are: fit"),
    "option before the command": (["--quiet", "fit"], "'--quiet' is no command; options of a comm"),
    "its own option": (["--hepl"], "there is no option '--hepl'; did you mean '--help'?"),
    "option": (
        ["fit", "A.npy", "--concpets", "3"],
        "no option '--concpets'; did you mean '--conce",
    ),
    "with a value": (
        ["fit", "A.npy", "--max-itr=3"],
        "no option '--max-itr'; did you mean '--max-it",
    ),
    "underscore": (["fit", "A.npy", "--max_iter", "3"], "'--max_iter'; did you mean '--max-iter'?"),
    "case": (["fit", "A.npy", "--alpha-z", "3"], "'--alpha-z'; did you mean '--alpha-Z'?"),
    "single dash": (
        ["fit", "A.npy", "-solver", "mu"],
        "no option '-solver'; did you mean '--solver'",
    ),
    "scikit-learn": (
        ["fit", "--n_components", "3"],
        "'--n_components'; did you mean '--concepts'?",
    ),
    "its seed": (["fit", "--random-state", "3"], "'--random-state'; did you mean '--seed'?"),
    "other programs": (["fit", "--overwrite"], "'--overwrite'; did you mean '--force'?"),
    "gpu": (["fit", "--gpu"], "no option '--gpu'; did you mean '--device cuda'?"),
    "verbose": (["fit", "--verbose"], "no option '--verbose'; did you mean 'no --quiet'?"),
    "abbreviation": (
        ["fit", "A.npy", "--conc", "3"],
        "no option '--conc'; did you mean '--concepts'",
    ),
    "short abbreviation": (["fit", "A.npy", "--sol", "mu"], "there is no option '--sol'"),
    "of another command": (["report", "m", "--device", "cpu"], "there is no option '--device'"),
    "nothing like it": (["info", "--xyz"], "there is no option '--xyz'"),
    "solver": (
        ["fit", "A.npy", "--solver", "hal"],
        "--solver: 'hal' is none of hals, mu, pgd, anls",
    ),
    "its case": (
        ["fit", "A.npy", "--solver", "HALS"],
        "'HALS' is none of .*; did you mean 'hals'?",
    ),
    "its other name": (
        ["fit", "A.npy", "--solver", "cd"],
        "'cd' is none of .*did you mean 'hals'?",
    ),
    "start": (
        ["fit", "A.npy", "--init", "nnsvda"],
        "'nnsvda' is none of .*did you mean 'nndsvda'?",
    ),
    "its former name": (["fit", "A.npy", "--stop", "codes"], "'codes' is none of .*mean 'change'?"),
    "yes": (
        ["fit", "A.npy", "--accelerate", "true"],
        "'true' is none of auto, yes, no; did you mean",
    ),
    "number": (["fit", "A.npy", "--tol", "1e-x"], "--tol: '1e-x' is no number"),
    "whole number": (["fit", "A.npy", "-k", "3.5"], "-k/--concepts: '3.5' is no whole number"),
    "penalty": (["fit", "A.npy", "--alpha-D", "sane"], "'sane' is no number, nor the word same"),
    "no value": (["fit", "A.npy", "-k"], "-k/--concepts: expected one argument"),
    "an option as value": (
        ["fit", "A.npy", "-k", "--quiet"],
        "-k/--concepts: expected one argument",
    ),
    "no name": (["fit", "A.npy", "-k", "3", "-o", ""], "-o/--out: the name of a file is empty"),
    "nothing": (["fit"], "fit needs A, -o/--out, -k/--concepts"),
    "no model": (["fit", "A.npy", "-k", "3"], "fit needs -o/--out"),
    "no matrix": (["encode", "m.safetensors", "-o", "Z.npy"], "encode needs A"),
    "one too many": (["info", "more"], "'more' is one argument too many"),
}


@pytest.mark.parametrize("case", MISTYPED)
def test_mistype_is_named_with_what_was_meant(case, capsys):
    words, message = MISTYPED[case]
    status, out, err = said(words, capsys)
    assert (status, out) == (2, "")
    first, hint = err.splitlines()
    assert first.startswith("fastnmf: error: ")
    for part in message.split(".*"):
        assert part in first
    known = words[0] in parser.COMMANDS
    shown = f"`fastnmf {words[0]} --help`" if known else "`fastnmf --help`"
    assert hint == f"fastnmf: hint: {shown} shows what there is"


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["-k3"], {"concepts": 3}),
        (["-k", "3", "--seed", "-1"], {"seed": -1}),
        (["--concepts=3", "--tol=1e-3", "-fq"], {"tol": 1e-3, "force": True, "quiet": True}),
        (["-k", "3", "--", "-odd.npy"], {"concepts": 3}),
    ],
)
def test_options_are_read_in_every_form(words, values):
    given = ["fit", "-o", "m.safetensors", *words]
    given += [] if "--" in words else ["A.npy"]
    arguments = vars(parser.parser_of().parse_args(given))
    assert {name: arguments[name] for name in values} == values


def test_no_option_may_be_shortened_within_a_command():
    with pytest.raises(Refused, match="no option '--max'"):
        parser.parser_of().parse_args(["fit", "A.npy", *NEEDED, "--max", "3"])


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.txt")))
def test_help_is_the_stored_text(name, monkeypatch):
    """`python tests/cli/help_texts.py --write` stores a change that is meant."""
    monkeypatch.setenv("COLUMNS", "100")
    assert texts()[name] == (FOLDER / name).read_text(encoding="utf-8")


def test_help_of_every_command_is_stored():
    assert {f"{name}.txt" for name in (*parser.COMMANDS, "fastnmf")} == {
        path.name for path in FOLDER.glob("*.txt")
    }
