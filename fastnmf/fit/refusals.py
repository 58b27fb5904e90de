"""What fits and encodings refuse once their data and files are known; options by themselves are
checked in options.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import Data
from ..data.shards import Shards, paths_of
from ..errors import InvalidInput
from .options import Options


def refuse_overwriting(A: Any, *files: Path | str | None) -> None:
    """Raise InvalidInput where a file that is to be written is one that is read."""
    read = A.paths if isinstance(A, Shards) else paths_of(A) or ()
    for file in files:
        for path in map(Path, read if isinstance(file, Path) else ()):
            # a new file in a folder would be one of its shards the next time
            if path.resolve() in (file, file.parent):
                raise InvalidInput(f"{file} is to be written, but {path} is read; give another")


def refuse_unsuited(options: Options, data: Data) -> None:
    """Refuse acceleration with penalties, and whatever needs the codes of all rows where there are
    none."""
    if options.penalties and options.accelerate is True:
        raise InvalidInput(
            "accelerate=True does not go with alpha_Z or alpha_D, nor with unit_norm: it scales "
            "concepts, which they count; give accelerate='auto' or False"
        )
    if options.accelerate is True and not data.resident:
        raise InvalidInput(
            "accelerate=True keeps two copies of the codes in memory, and the data are read in "
            "passes here; give accelerate='auto' or False, or more max_memory"
        )
    if options.revive and options.codes is None:
        raise InvalidInput(
            "revive=True gives concepts other codes, and codes=None keeps none; give revive=False, "
            "or codes='memory' or a file"
        )


def refuse_extremes(data: Data) -> None:
    """Refuse data whose squares, or their sum, overflow or vanish: then every error is zero."""
    largest, limits = data.largest, torch.finfo(data.dtype)
    square = largest * largest
    usable = limits.tiny <= square <= limits.max and math.isfinite(square * data.n * data.d)
    if largest and not usable:
        name = str(data.dtype).removeprefix("torch.")
        raise ArithmeticError(
            f"the largest entry of A is {largest:.3g}, too {'small' if square < 1 else 'large'} to "
            f"be squared in {name}; scale A (A / A.max())"
            + (" or pass it as float64" if data.dtype == torch.float32 else "")
        )
