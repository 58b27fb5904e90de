"""The commands that fit several times: choose and stability. What one needs is imported when it
runs."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..fit import command_to_go_on, kind_and_options
from ..matrices import PIPE, Output, check_outputs, whole_matrix, with_size, write
from ..summary import as_json, option_errors, shows_progress
from ..usage import DONE, Refused, Terminated

TABLES, PICTURES = (".csv", ".tsv", ".json"), (".png", ".svg", ".pdf")


def choose(arguments: Namespace) -> int:
    """Run `fastnmf choose`."""
    from ... import checks
    from ...selection.choice import choose_concepts

    _check(arguments, [Output(arguments.out, TABLES), Output(arguments.picture, PICTURES)])
    with option_errors():
        for K in arguments.candidates:
            checks.whole("candidates", K, at_least=1)
        checks.whole("folds", arguments.folds, at_least=2, at_most=255)
    if arguments.picture:
        from ...results import plot

        plot.require()
    options = {**_options(arguments), "holdout": arguments.holdout, "folds": arguments.folds}
    A = whole_matrix(arguments)
    with _saying_how_to_go_on(arguments):
        choice = choose_concepts(A, arguments.candidates, **options)
    if arguments.out:
        _write_table(arguments.out, choice)
    if arguments.picture:
        from ...data.paths import replacing

        with replacing(arguments.picture) as part:
            kind = arguments.picture.suffix[1:]
            choice.plot().savefig(part, format=kind, dpi=150)
    _report(arguments, choice, {"out": arguments.out, "picture": arguments.picture})
    return DONE


def stability(arguments: Namespace) -> int:
    """Run `fastnmf stability`."""
    from ... import checks
    from ...files import WRITERS
    from ...models.saved import SUFFIXES
    from ...selection.stability import stability as compare

    _check(arguments, [Output(arguments.out, SUFFIXES), Output(arguments.codes, WRITERS)])
    with option_errors():
        checks.whole("concepts", arguments.concepts, at_least=1)
        checks.whole("runs", arguments.runs, at_least=2)
        if arguments.density_threshold is not None:
            checks.penalty("density_threshold", arguments.density_threshold)
    options = {**_options(arguments), "runs": arguments.runs, "resample": arguments.resample}
    options["density_threshold"] = arguments.density_threshold
    A = whole_matrix(arguments)
    with _saying_how_to_go_on(arguments):
        found = compare(A, arguments.concepts, **options)
    if arguments.out:
        kind, options = kind_and_options(arguments)
        K = len(found.dictionary)
        # the consensus may have fewer concepts than the fits
        fewer = {name: min(options[name], K) for name in ("target_l0", "top_k") if name in options}
        model = kind(K, **options | fewer).load_dictionary(found.dictionary)
        model.save(arguments.out)
    if arguments.codes:
        from ...data.sparse.codes import SUFFIX, compressed, csr_tensor

        is_sparse = arguments.codes.suffix == SUFFIX
        write(
            arguments.codes, csr_tensor(compressed(found.codes)) if is_sparse else found.codes, {}
        )
    _report(arguments, found, {"model": arguments.out, "codes_file": arguments.codes})
    return DONE


def _check(arguments: Namespace, outputs: list[Output]) -> None:
    """Refuse, before the work, what would lose it."""
    from ...selection.runs import SUFFIXES

    if arguments.resume and arguments.checkpoint is None:
        raise Refused("--resume needs --checkpoint FILE, the file to go on from")
    if PIPE in [arguments.checkpoint, *(each.path for each in outputs)]:
        raise Refused("- is possible as the input alone; give the name of a file")
    advice = "--resume goes on from it, --force starts anew"
    saved = Output(arguments.checkpoint, SUFFIXES, arguments.resume, advice)
    check_outputs([*outputs, saved], arguments.A, arguments.force)


def _options(arguments: Namespace) -> dict[str, Any]:
    """What both functions take, with the options of the model."""
    from ...selection.models import Fits

    with option_errors():
        kind, options = kind_and_options(arguments)
        seed = options.pop("seed")
        Fits.of(kind, options)
    names = ("checkpoint", "resume")
    options |= {name: getattr(arguments, name) for name in names}
    return {**options, "model": kind, "seed": seed, "verbose": shows_progress(arguments)}


@contextmanager
def _saying_how_to_go_on(arguments: Namespace) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stopped:
        path = arguments.checkpoint
        if path is None:
            text = "nothing is saved: --checkpoint FILE saves each finished fit"
        elif not path.exists():
            text = "nothing is saved: it was before the end of the first fit"
        else:
            how = " (with the same standard input)" if PIPE in arguments.A else ""
            text = f"finished fits are saved in {path}. This goes on with them{how}:\n"
            text += f"  {command_to_go_on(arguments.argv, path)}"
        raise type(stopped)(text) from stopped


def _write_table(path: Path, choice: Any) -> None:
    """Write what was found for each number of concepts, as JSON or as a text table."""
    from ...data.paths import replacing

    if path.suffix == ".json":
        text = as_json(choice.as_dict())
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        folds = [f"held_out_{fold}" for fold in range(choice.folds)]
        numbers = ("nb_concepts", "mean_held_out", "relative_error", "stability", "mean_l0")
        lines = [[*numbers, "seconds", *folds]]
        for each in choice.candidates:
            values = [getattr(each, name) for name in (*numbers, "seconds")]
            lines.append([repr(value) for value in (*values, *each.held_out)])
        text = "\n".join(mark.join(line) for line in lines)
    with replacing(path) as part:
        part.write_text(f"{text}\n", encoding="utf-8")


def _report(arguments: Namespace, found: Any, files: dict[str, Path | None]) -> None:
    written = {name: None if path is None else str(path) for name, path in files.items()}
    if arguments.json:
        print(as_json({**found.as_dict(), **written}))
    elif not arguments.quiet:
        print(found)
        for name, path in files.items():
            if path is not None:
                print(f"{name.partition('_')[0] + ':':<16}{with_size(path)}")
    sys.stdout.flush()
