"""The command show: the concepts of a model, printed or as a page. What it needs is imported when
it runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from ..matrices import (
    PIPE,
    Output,
    check_outputs,
    inputs_of,
    reading,
    weights_of,
    whole_matrix,
    with_size,
)
from ..summary import as_json
from ..usage import DATA, DONE, Refused
from .models import model_of

_PLAIN = ("context", "image_shape", "tokens", "top", "details", "map")
_COLUMNS = ("energy", "active", "largest", "mean", "twin", "cosine")


def show(arguments: Namespace) -> int:
    """Run `fastnmf show`."""
    from ...results.concepts.concepts import SUFFIXES

    out = arguments.out
    texts = {name: getattr(arguments, name) for name in ("features", "rows", "texts")}
    given = [path for path in (*texts.values(), arguments.codes, arguments.images) if path]
    if PIPE in (out, *given):
        raise Refused("- is possible as the input A alone; give the name of a file")
    inputs = [arguments.model, *inputs_of(arguments), *given]
    check_outputs([Output(out, SUFFIXES)], inputs, arguments.force)
    nmf = model_of(arguments)
    named: dict[str, Any] = {name: _lines(path) for name, path in texts.items() if path}
    named |= {name: getattr(arguments, name) for name in _PLAIN}
    if arguments.images:
        named["images"] = _images(arguments.images)
    named["weights"] = weights_of(arguments)
    Z = None
    if arguments.codes:
        from ...files import read_matrix

        with reading(arguments.codes):
            Z = read_matrix(arguments.codes, sparse=True)
    concepts = nmf.show_concepts(whole_matrix(arguments), Z, **named)
    if out is not None:
        concepts.save(out)
    if arguments.json:
        listed = {name: getattr(concepts.numbers, name).tolist() for name in _COLUMNS}
        page = None if out is None else str(out)
        print(as_json({"page": page, **listed, "features": concepts.features}))
    elif not arguments.quiet:
        print(concepts if out is None else f"{len(concepts):,} concepts: {with_size(out)}")
    return DONE


def _lines(path: Path) -> list[str]:
    with reading(path):
        try:
            return path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise Refused(f"{path} is no text in UTF-8: {error.reason}", DATA) from error


def _images(path: Path) -> Any:
    import numpy as np

    with reading(path):
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise Refused(f"{path} is no .npy file of images (N, H, W, c)", DATA) from error
