"""Completion in shells: the script of bash is run by bash, that of fish is read."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fastnmf.cli import main as cli
from fastnmf.cli.completion import script
from fastnmf.cli.parser import parser_of

TYPED = [
    ("fastnmf st", "stability"),
    ("fastnmf --v", "--version"),
    ("fastnmf fit --solver m", "mu"),
    ("fastnmf encode --m", "--method --max-iter --max-memory"),
    ("fastnmf completion b", "bash"),
    ("fastnmf fit dat", "data.npy"),
    ("fastnmf fit -o mod", "model.safetensors"),
    ("fastnmf choose --holdout e", "entries"),
    ("fastnmf fit --seed 1", ""),
]


@pytest.mark.parametrize(("typed", "completed"), TYPED)
def test_bash_completes(typed, completed, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    for name in ("data.npy", "model.safetensors"):
        (tmp_path / name).touch()
    words = typed.split()
    code = f"""{script("bash", parser_of())}
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _fastnmf; echo "${{COMPREPLY[@]}}"
"""
    ran = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == (completed, "")


def test_fish_and_zsh_know_every_option(capsys):
    assert cli.main(["completion", "fish"]) == 0
    fish = capsys.readouterr().out
    assert "-a fit -d 'learn the dictionary of A'" in fish
    solvers = "'__fish_seen_subcommand_from fit' -l solver -r -f -a 'hals mu pgd anls'"
    assert solvers in fish
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n")


def test_unknown_shell_is_refused(capsys):
    assert cli.main(["completion", "csh"]) == 2
    assert "'csh' is none of bash, zsh, fish" in capsys.readouterr().err
