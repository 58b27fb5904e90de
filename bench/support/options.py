"""What the command lines of the studies share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def parser_of(docstring: str) -> argparse.ArgumentParser:
    """A parser whose --help begins with the docstring of the study."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def count(text: str) -> int:
    """For `type=`: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is given; it must be 1 or more")
    return number


def positive(text: str) -> float:
    """For `type=`: a number above 0."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is given; it must be above 0")
    return number


def write_json(path: str | Path, results: Any) -> None:
    Path(path).write_text(json.dumps(results, indent=1, allow_nan=False))
