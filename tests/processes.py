"""Processes that share fits and online learning: shared_program.py, run once for all its cases."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROGRAM = Path(__file__).parent / "shared_program.py"


def begin(folder: Path, size: int) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(folder), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(size: int, cases: list[Any], folder: Path) -> None:
    torch.save(cases, folder / "cases.pt")
    processes = begin(folder, size)
    said = processes.communicate(timeout=200)[0].decode()
    assert processes.returncode == 0, said


def by_name(
    once: Callable, files: str, cases: dict[str, Any], names: dict[int, list[str]]
) -> Callable[[int], dict[str, tuple]]:
    """shared(size): the results of the cases named for that size, of each process."""

    @functools.cache
    def shared(size: int) -> dict[str, tuple]:
        wanted = [cases[name] for name in names[size]]
        folder = once(f"{files}-{size}", functools.partial(run, size, wanted))
        found = [torch.load(folder / f"results-{rank}.pt") for rank in range(size)]
        return dict(zip(names[size], zip(*found, strict=True), strict=True))

    return shared
