"""The parts of the GPU study, in the order of their importance, with their estimated seconds."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from fastnmf import FastnmfWarning
from support import (
    checkout,
    gpu_checks,
    gpu_compile,
    gpu_extension,
    gpu_nnls,
    gpu_pieces,
    gpu_theirs,
    gpu_times,
)
from support.gpu_runner import Part
from support.gpu_sizes import FULL, SMALL, Sizes

DEVICE = "cuda"
# estimated seconds of a part where kernels are interpreted
INTERPRETED = 30.0
# keeps what is entered until the process ends
_pretending = ExitStack()


def study(place: Path) -> dict[str, Part]:
    """The parts on a GPU. place: where the extension for CUDA is built."""
    compiling = functools.partial(gpu_compile.compiled, FULL)
    return _named(FULL, compiling, functools.partial(gpu_extension.missing, place), "cuda")


def rehearsal() -> dict[str, Part]:
    """The same in small, with interpreted kernels; exact least squares is that of plain torch."""
    compiling = functools.partial(gpu_compile.elsewhere, most=2)
    parts = _named(SMALL, compiling, lambda: None, "torch")
    return {name: replace(part, seconds=INTERPRETED) for name, part in parts.items()}


def rehearse() -> dict[str, Part]:
    """`rehearsal`, on a device that is pretended in this process from now on."""
    sys.path.insert(0, str(checkout.ROOT / "tests"))
    pretend = importlib.import_module("pretend_cuda").pretend
    memory = importlib.import_module("fastnmf.planning.memory")
    # data as small as these are read in passes
    memory._OVERHEAD = memory.WORKSPACE_BYTES = 0
    memory.LEAST_ROWS = 8
    _pretending.enter_context(pretend())
    return rehearsal()


def _named(
    sizes: Sizes,
    compiling: Callable[[], Iterable[dict]],
    missing: Callable[[], str | None],
    exact: str,
) -> dict[str, Part]:
    """compiling: compiles kernels ahead. missing: why the extension is not there, or None; exact:
    the backend of exact least squares."""
    parts = [
        Part("compile", 40, compiling),
        Part("check hals_block", 15, lambda: checks(sizes.first, ("hals_block_",))),
        Part("hals, 10,000 concepts, high", 20, lambda: many("hals", "high", sizes)),
        Part("pieces of hals, high", 15, lambda: pieces("high", sizes)),
        Part("hals, 10,000 concepts, highest", 30, lambda: many("hals", "highest", sizes)),
        Part("pieces of hals, highest", 15, lambda: pieces("highest", sizes)),
        Part("check all kernels", 40, lambda: checks(sizes.checked)),
        Part("check few concepts", 10, lambda: checks(sizes.normal, gpu_checks.IN_FLOAT32)),
        Part("check large operands", 10, lambda: checks(sizes.unpacked, gpu_checks.PACKED, False)),
        Part("check CUDA graphs", 40, lambda: gpu_checks.graph_checks(*sizes.graphs, DEVICE)),
        *(
            Part(f"{solver}, 10,000 concepts, {precision}", 25, _many(solver, precision, sizes))
            for precision in ("high", "highest")
            for solver in ("mu", "pgd")
        ),
        Part("few concepts", 30, lambda: few(sizes)),
        Part("16-bit data", 10, lambda: narrow(sizes)),
        Part("check nnls", 40, lambda: gpu_nnls.checks(sizes.nnls, exact, DEVICE), missing),
        Part("nnls", 30, lambda: gpu_nnls.codes(sizes.nnls_timed, exact, DEVICE), missing),
        Part("exact fits", 15, lambda: gpu_nnls.fits(sizes.exact_fits, exact, DEVICE), missing),
        Part("a million rows", 30, lambda: million(sizes)),
        Part("streamed data", 30, lambda: streamed(sizes)),
        # these may take minutes
        Part("nnls on the CPU", 15, lambda: slow("cpp", "cpu", sizes), _refuses("cpp")),
        Part("nnls in torch", 20, lambda: slow("torch", DEVICE, sizes)),
    ]
    return {part.name: replace(part, run=_cleared(part.run)) for part in parts}


def _cleared(run: Callable[[], Iterable[dict]]) -> Callable[[], Iterator[dict]]:
    """The same with torch as it begins: products in full precision, and no memory kept."""

    def begin() -> Iterator[dict]:
        torch.set_float32_matmul_precision("highest")
        torch.cuda.empty_cache()
        with warnings.catch_warnings():
            # few iterations do not converge
            warnings.simplefilter("ignore", FastnmfWarning)
            yield from run()

    return begin


def checks(
    sizes: tuple, names: tuple[str, ...] | None = None, narrow: bool = True
) -> Iterator[dict]:
    for case in gpu_checks.cases(sizes, names, narrow):
        yield from gpu_checks.checked(case, DEVICE)


def many(solver: str, precision: str, sizes: Sizes) -> Iterator[dict]:
    if solver == "hals" and precision == "high":
        yield from gpu_theirs.note()
    yield from gpu_times.many_concepts(solver, precision, sizes, DEVICE)


def _many(solver: str, precision: str, sizes: Sizes) -> Callable[[], Iterator[dict]]:
    return lambda: many(solver, precision, sizes)


def pieces(precision: str, sizes: Sizes) -> Iterator[dict]:
    return gpu_pieces.pieces(sizes.many, sizes.repeats[0], precision, DEVICE)


def few(sizes: Sizes) -> Iterator[dict]:
    return gpu_times.few_concepts(sizes, DEVICE)


def narrow(sizes: Sizes) -> Iterator[dict]:
    return gpu_times.in_16_bits(sizes, DEVICE)


def million(sizes: Sizes) -> Iterator[dict]:
    return gpu_times.iteration("hals", sizes.million, sizes.repeats, "high", DEVICE)


def streamed(sizes: Sizes) -> Iterator[dict]:
    return gpu_times.streamed(sizes.streamed, sizes.iterations[2], DEVICE)


def slow(backend: str, device: str, sizes: Sizes) -> Iterator[dict]:
    return gpu_nnls.codes(sizes.nnls_timed, backend, device, rows=sizes.rows)


def _refuses(backend: str) -> Callable[[], str | None]:
    return lambda: gpu_nnls.refuses(backend)
