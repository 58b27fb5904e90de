"""The commands that read a model: encode, decode and report. What one needs is imported when it
runs."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..matrices import (
    OF_CODES,
    PIPE,
    Output,
    check_outputs,
    inputs_of,
    matrix_of,
    reading,
    refuse_no_model,
    refuse_terminal,
    streamed_into,
    weights_of,
    write,
)
from ..summary import as_json, ended, option_errors, shows_progress, usable_device
from ..usage import DONE, Refused

# rows that are looked at together, of codes in a file
_ROWS = 1 << 16
_OF_ENCODE = ("max_iter", "tol", "method", "top_k", "refit")


def encode(arguments: Namespace) -> int:
    """Run `fastnmf encode`."""
    from ... import checks

    _check(arguments, inputs_of(arguments))
    nmf = model_of(arguments)
    nmf.verbose = shows_progress(arguments)
    options = {name: getattr(arguments, name) for name in _OF_ENCODE}
    A = matrix_of(arguments, arguments.A)
    options["weights"] = weights_of(arguments)
    with option_errors():
        checks.whole("max_iter", arguments.max_iter, at_least=0)
        checks.tolerance(0.0 if arguments.tol is None else arguments.tol)
    place = streamed_into("codes", arguments.out, OF_CODES)
    Z, info = nmf.encode(A, **options, **place, return_info=True)
    write(arguments.out, Z, place)
    mean_l0 = _active(Z) / len(Z)
    summary = {"out": str(arguments.out), "shape": list(Z.shape), "mean_l0": mean_l0}
    names = ("method", "iterations", "converged", "relative_error", "alpha_Z")
    summary |= {name: getattr(info, name) for name in names}
    summary["largest_kkt"] = float(info.kkt.max())
    text = f"{arguments.out}: codes {tuple(Z.shape)}, mean L0 {mean_l0:.4g}\n{info}"
    _report(arguments, summary, text)
    return ended(arguments.strict, info.converged, f"{arguments.out} is written all the same")


def decode(arguments: Namespace) -> int:
    """Run `fastnmf decode`."""
    import numpy as np

    _check(arguments, arguments.Z)
    nmf = model_of(arguments)
    # as an array a tensor is checked, too
    Z = matrix_of(arguments, arguments.Z)
    Z = np.asarray(Z.float()) if hasattr(Z, "float") else Z
    place = streamed_into("out", arguments.out)
    A_hat = nmf.decode(Z, **place)
    write(arguments.out, A_hat, place)
    summary = {"out": str(arguments.out), "shape": list(A_hat.shape)}
    _report(arguments, summary, f"{arguments.out}: Z D {tuple(A_hat.shape)}")
    return DONE


def report(arguments: Namespace) -> int:
    """Run `fastnmf report`."""
    from ...errors import InvalidInput
    from ...models.saved import read
    from ...results.report import SUFFIXES, Origin, compose, write_report

    out = arguments.out
    check_outputs([Output(out, SUFFIXES)], [arguments.model], arguments.force)
    if arguments.json and out == PIPE:
        raise Refused("--json and -o - both write to the standard output; give one of them")
    refuse_no_model(arguments.model)
    with reading(arguments.model):
        saved = read(arguments.model)
    if saved.info is None:
        raise InvalidInput(
            f"{arguments.model} holds no summary of a fit: its dictionary was loaded or learned by "
            "partial_fit, or another version of fastnmf wrote it; make one by fit"
        )
    if out is not None:
        from ...results.concepts.gather import of_dictionary

        origin = Origin(arguments.model.name, saved.version, saved.options, saved.made)
        given = saved.D.float(), saved.info.energy, f"Concepts of {saved.model}"
        concepts = of_dictionary(*given, arguments.image_shape)
        if out == PIPE:
            print(compose(saved.info, origin, concepts), end="")
            return DONE
        write_report(out, saved.info, origin, concepts)
    text = str(saved.info) if out is None else f"{out}: page about the fit of {arguments.model}"
    summary = {**saved.info.as_dict(), "class": saved.info.model, "model": str(arguments.model)}
    _report(arguments, summary, text)
    return DONE


def _active(Z: Any) -> int:
    """How many codes (n, K) are not zero."""
    if Z.is_sparse_csr:
        return len(Z.values())
    return sum(int(rows.count_nonzero()) for rows in Z.split(_ROWS))


def _check(arguments: Namespace, inputs: list[Path]) -> None:
    from ...files import WRITERS

    if arguments.json and arguments.out == PIPE:
        raise Refused("--json and -o - both write to the standard output; give one of them")
    refuse_terminal(arguments.out)
    outputs = [Output(arguments.out, WRITERS)]
    check_outputs(outputs, [arguments.model, *inputs], arguments.force)


def model_of(arguments: Namespace) -> Any:
    """The model that a command reads, on its device."""
    from ...models.convex_nmf import ConvexNMF
    from ...models.nmf import NMF
    from ...models.saved import read
    from ...models.semi_nmf import SemiNMF
    from ...planning.memory import bytes_of

    with option_errors():
        bytes_of(arguments.max_memory)
    device = usable_device(arguments.device)
    refuse_no_model(arguments.model)
    with reading(arguments.model):
        kinds = {kind.__name__: kind for kind in (NMF, SemiNMF, ConvexNMF)}
        nmf = kinds[read(arguments.model).model].load(arguments.model, device)
    nmf.max_memory = arguments.max_memory
    return nmf


def _report(arguments: Namespace, summary: dict[str, Any], text: str) -> None:
    """Print the summary, where the output is not already there."""
    if arguments.json:
        print(as_json(summary))
    elif not arguments.quiet:
        print(text, file=sys.stderr if arguments.out == PIPE else sys.stdout)
