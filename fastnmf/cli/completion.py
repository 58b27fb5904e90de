"""Scripts that complete commands, options and their words in a shell, made from the parser. No
library is needed: shtab has no fish, and does not know words that are checked by a function."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from .arguments.texts import COMMANDS
from .usage import Parser, file


class _Option(NamedTuple):
    """An option or an input of a command. words: that it takes; is_file: it names a file."""

    names: list[str]
    help: str
    words: list[str]
    is_file: bool
    has_value: bool


def script(shell: str, parser: Parser) -> str:
    """The script for this shell, one of bash, zsh and fish."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parser)


def subcommands(parser: Parser) -> dict[str, argparse.ArgumentParser]:
    """Command → its parser."""
    listed = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(next(listed).choices)


def _commands(parser: Parser) -> Iterator[tuple[str, str, list[_Option]]]:
    """Name, line of help and options of each command."""
    for name, command in subcommands(parser).items():
        yield name, COMMANDS[name], [_option(each) for each in command._actions]


def _option(action: argparse.Action) -> _Option:
    shown = action.metavar if isinstance(action.metavar, str) else ""
    words = shown[1:-1].split(",") if shown.startswith("{") else []
    help = (action.help or "").partition(";")[0]
    is_file, has_value = action.type is file, action.nargs != 0
    return _Option(list(action.option_strings), help, words, is_file, has_value)


def _bash(parser: Parser) -> str:
    cases, of_words = [], []
    commands = list(_commands(parser))
    for name, _, options in commands:
        names = [each for option in options for each in option.names]
        words = [word for option in options if not option.names for word in option.words]
        cases.append(f'    {name}) words="{" ".join([*words, *names])}" ;;')
        for option in options:
            if not (option.names and option.has_value and not option.is_file):
                continue
            pattern = "|".join(f"{name}:{each}" for each in option.names)
            of_words.append(f'    {pattern}) COMPREPLY=($(compgen -W "{" ".join(option.words)}" '
                            '-- "$current")); return ;;')  # fmt: skip
    names = " ".join([*(name for name, _, _ in commands), "--help", "--version"])
    return f"""\
# completion of fastnmf in bash
_fastnmf() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  COMPREPLY=()
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "{names}" -- "$current")); return
  fi
  case "${{COMP_WORDS[1]}}:$before" in
{chr(10).join(of_words)}
  esac
  case "${{COMP_WORDS[1]}}" in
{chr(10).join(cases)}
  esac
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current")); return
  fi
  COMPREPLY=($(compgen -f -- "$current"))
  [[ $words == -* ]] || COMPREPLY+=($(compgen -W "${{words%% -*}}" -- "$current"))
}}
complete -o filenames -F _fastnmf fastnmf
"""


def _zsh(parser: Parser) -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash(parser)}".replace(" in bash", "")


def _fish(parser: Parser) -> str:
    lines = ["# completion of fastnmf in fish"]
    start = "complete -c fastnmf"
    for name, line, options in _commands(parser):
        lines.append(f"{start} -n __fish_use_subcommand -f -a {name} -d {_quoted(line)}")
        given = f"{start} -n '__fish_seen_subcommand_from {name}'"
        for option in options:
            if not option.names:
                if option.words:
                    lines.append(f"{given} -f -a {_quoted(' '.join(option.words))}")
                continue
            of = "".join(
                f" -l {each[2:]}" if each.startswith("--") else f" -s {each[1:]}"
                for each in option.names
            )
            takes = " -r" if option.has_value else ""
            takes += "" if option.is_file or not option.has_value else " -f"
            takes += f" -a {_quoted(' '.join(option.words))}" if option.words else ""
            lines.append(f"{given}{of}{takes} -d {_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
