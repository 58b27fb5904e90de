"""What commands share besides files: options that the model checks, progress, summaries as JSON,
and how an iteration ended."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .usage import DONE, NOT_CONVERGED, Refused


@contextmanager
def option_errors() -> Iterator[None]:
    """A context in which the model checks options: what it refuses is a fault of the command
    line."""
    from ..errors import InvalidInput

    try:
        yield
    except (InvalidInput, TypeError, OverflowError) as error:
        raise Refused(str(error)) from error


def usable_device(name: str) -> str:
    """The name of a device that is here. Raises Refused for another."""
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise Refused(f"--device {name} is unknown; give cpu, cuda, cuda:1 …") from error
    if kind == "meta":
        raise Refused("--device meta holds no numbers; give cpu, cuda, cuda:1 …")
    try:
        torch.empty(0, device=name)
    # torch built without CUDA asserts
    except (RuntimeError, AssertionError) as error:
        # torch goes on with all that there is
        why = str(error).strip().splitlines()[0].partition(". ")[0]
        raise Refused(f"--device {name} is not usable: {why}") from error
    return name


def shows_progress(arguments: Namespace) -> bool:
    """Whether to show a bar: where someone sees it."""
    return not arguments.quiet and sys.stderr is not None and sys.stderr.isatty()


def as_json(summary: dict[str, Any]) -> str:
    """A summary in one line; numbers that JSON does not have are null."""
    return json.dumps(_plain(summary), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def ended(strict: bool, converged: bool, but: str) -> int:
    """The exit status of an iteration, with a line about it where it is not that of success."""
    if converged or not strict:
        return DONE
    sys.stderr.write(f"fastnmf: error: not converged, as --strict requires; {but}\n")
    return NOT_CONVERGED
