"""The help texts of all commands, as they are stored in tests/cli/help.

python tests/cli/help_texts.py --write replaces them after a change that is meant.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "help"


def texts() -> dict[str, str]:
    """File name → help text, in lines of 100 columns."""
    from fastnmf.cli.completion import subcommands
    from fastnmf.cli.parser import parser_of

    parser = parser_of()
    found = {"fastnmf.txt": parser.format_help()}
    for name, command in subcommands(parser).items():
        found[f"{name}.txt"] = command.format_help()
    return found


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
