"""How the command line is read: a parser that knows what was meant by a name that does not exist,
and how commands end. It imports nothing that takes time."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# exit status
DONE, FAILED, USAGE, DATA, NOT_CONVERGED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143

# what other programs call options and choices
ELSEWHERE = {
    **dict.fromkeys(("--n-components", "--components", "--rank", "--nb-concepts"), "--concepts"),
    **dict.fromkeys(("--iterations", "--epochs", "--n-iter"), "--max-iter"),
    **dict.fromkeys(("--random-state", "--random-seed"), "--seed"),
    **dict.fromkeys(("--overwrite", "--yes"), "--force"),
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    **dict.fromkeys(("--silent", "--no-progress"), "--quiet"),
    **{"--output": "--out", "--time-limit": "--max-seconds", "--alpha-W": "--alpha-Z"},
    **{"--alpha-H": "--alpha-D", "--memory": "--max-memory", "--verbose": "no --quiet"},
}
SAME_CHOICE = {"true": "yes", "false": "no"}


class Refused(Exception):
    """What a command cannot do, with the exit status and a hint for a line of its own."""

    def __init__(self, message: str, status: int = USAGE, hint: str = "") -> None:
        super().__init__(message)
        self.status, self.hint = status, hint


class Terminated(BaseException):
    """SIGTERM, as an exception: what is open is closed, and a fit is saved."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help texts that are the same with every Python: -k, --concepts K, and no colours."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        names = ", ".join(action.option_strings)
        return f"{names} {self._format_args(action, str(action.metavar))}"

    def _set_color(self, *_: Any, **__: Any) -> None:
        """Of Python 3.14 on."""


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest option where one does not exist.

    names: of its options. divided: whether a command that follows has options of its own.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, add_help=False, **options)
        self.names: list[str] = []
        self.divided = False

    def group(self, title: str) -> Callable[..., None]:
        """A function that adds an argument to a new group of the help text."""
        group = self.add_argument_group(title)

        def add(*names: str, **options: Any) -> None:
            self.names += [name for name in names if name.startswith("-")]
            group.add_argument(*names, **options)

        return add

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, extra = self.parse_known_args(args, namespace)
        if extra:
            command = getattr(arguments, "command", None)
            program = f"{self.prog} {command}" if command else self.prog
            hint = f"`{program} --help` shows what there is"
            raise Refused(f"{extra[0]!r} is one argument too many", hint=hint)
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # before what is missing, which may be what was mistyped
        self._refuse_unknown([] if self.divided else args or [])
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        for word in words:
            if word == "--" or word in ("-h", "--help"):
                return
            name = word.partition("=")[0]
            if not word.startswith("-") or word == "-" or " " in name or _is_negative(word):
                continue
            short = not word.startswith("--") and word[:2] in self.names
            if name not in self.names and not short:
                self.error(f"there is no option {name!r}{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        name = name.replace("_", "-")
        same = {option.lower(): option for option in self.names}.get(
            f"--{name.lstrip('-').lower()}"
        )
        meant = same or ELSEWHERE.get(name, "")
        if meant.partition(" ")[0] not in (*self.names, "no"):
            meant = next(iter(difflib.get_close_matches(name, self.names, 1, 0.6)), "")
        return f"; did you mean {meant!r}?" if meant else ""

    def print_help(self, file: Any = None) -> None:
        """Print the help text; unlike argparse's own, it fails if the output is full."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Raise Refused, in words of our own where argparse's are long."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"{self.prog.partition(' ')[2] or 'a command'} needs {missing}"
        elif message.startswith("argument "):
            message = message.removeprefix("argument ")
        raise Refused(message, hint=f"`{self.prog} --help` shows what there is")


def refuse_unknown_command(words: Sequence[str], commands: Iterable[str]) -> None:
    """Raise Refused for a first word that is neither a command nor an option."""
    first, commands = words[0] if words else "", list(commands)
    if not first or first in (*commands, *_GLOBAL, "-h"):
        return
    near = difflib.get_close_matches(first, commands, 1, 0.5)
    if first.startswith("-") and (near := difflib.get_close_matches(first, _GLOBAL, 1, 0.6)):
        raise Refused(f"there is no option {first!r}; did you mean {near[0]!r}?", hint=_ALL)
    if first.startswith("-"):
        meant = "; options of a command come after it: fastnmf COMMAND [options]"
        raise Refused(f"{first!r} is no command{meant}", hint=_ALL)
    meant = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(commands)}"
    raise Refused(f"there is no command {first!r}{meant}", hint=_ALL)


_GLOBAL = ("--help", "--version")
_ALL = "`fastnmf --help` shows what there is"


def _is_negative(word: str) -> bool:
    return re.fullmatch(r"-\d+|-\d*\.\d+", word) is not None


def one_of(*allowed: str, also: dict[str, str] | None = None) -> dict[str, Any]:
    """Options of an argument that is one of these words; also: what others are called elsewhere."""
    elsewhere = SAME_CHOICE | (also or {})

    def chosen(word: str) -> str:
        if word in allowed:
            return word
        near = difflib.get_close_matches(word.lower(), allowed, 1, 0.5)
        meant = elsewhere.get(word.lower(), near[0] if near else "")
        hint = f"; did you mean {meant!r}?" if meant in allowed else ""
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}{hint}")

    return {"type": chosen, "metavar": f"{{{','.join(allowed)}}}"}


def whole(word: str) -> int:
    """The type of an argument that is a whole number."""
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number") from None


def number(word: str) -> float:
    """The type of an argument that is a number."""
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no number") from None


def number_or_same(word: str) -> float | str:
    """The type of an argument that is a number or the word 'same'."""
    try:
        return word if word == "same" else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no number, nor the word same") from None


def number_or_no(word: str) -> float | None:
    """The type of an argument that is a number or the word 'no', which is None."""
    try:
        return None if word == "no" else float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no number, nor the word no") from None


def sizes(word: str) -> tuple[int, ...]:
    """The type of an argument that is sizes, such as 16x16x3."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", word):
        raise argparse.ArgumentTypeError(f"{word!r} is no size; give numbers such as 16x16x3")
    return tuple(map(int, word.split("x")))


def file(word: str) -> Path:
    """The type of an argument that names a file."""
    if not word:
        raise argparse.ArgumentTypeError("the name of a file is empty")
    return Path(word)


def weights(word: str) -> str | Path:
    """The type of --weights: a file, or the word 'stored'."""
    return word if word == "stored" else file(word)


def share_or_file(word: str) -> float | Path:
    """The type of --validation: a share of the rows, or a file."""
    try:
        return float(word)
    except ValueError:
        return file(word)
