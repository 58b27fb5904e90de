"""The command `fastnmf`: fit, encode, decode, info, demo. The only module that prints.

What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from ._version import __version__

PACKAGES = ("torch", "triton", "numpy", "safetensors", "scikit-learn", "overcomplete")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 2 for a user's error, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("fastnmf: interrupted; no file was changed\n")
        return 130
    except _user_errors() as error:
        sys.stderr.write(f"fastnmf: error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _user_errors() -> tuple[type[BaseException], ...]:
    """What is answered with one line; anything else is a bug and keeps its traceback."""
    import torch

    from .errors import BackendUnavailable, InvalidInput, NotFitted

    memory = (MemoryError, torch.cuda.OutOfMemoryError)
    own = (InvalidInput, NotFitted, BackendUnavailable)
    return (*own, *memory, ArithmeticError, ModuleNotFoundError, OSError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastnmf",
        description="Non-negative matrix factorization A ≈ Z D: codes Z and a dictionary D of "
        "concepts. Matrices are .npy, .npz, .pt or .safetensors files.",
    )
    parser.add_argument("--version", action="version", version=f"fastnmf {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    _add_fit(commands.add_parser("fit", help="learn a dictionary from A"))

    encode = commands.add_parser("encode", help="codes Z of A with the dictionary of a model")
    encode.add_argument("model", type=Path, help="a model written by fit")
    encode.add_argument("A", type=Path, help="file of A (n × d) ≥ 0")
    encode.add_argument("--out", type=Path, required=True, help="file for Z (n × K)")
    encode.add_argument("--max-iter", type=int, default=300, help="default: 300")
    encode.add_argument("--tol", type=float, help="default: the model's")
    _add_common(encode)
    encode.set_defaults(run=_encode)

    decode = commands.add_parser("decode", help="the matrix Z D that codes Z stand for")
    decode.add_argument("model", type=Path, help="a model written by fit")
    decode.add_argument("Z", type=Path, help="file of Z (n × K)")
    decode.add_argument("--out", type=Path, required=True, help="file for Z D (n × d)")
    _add_common(decode)
    decode.set_defaults(run=_decode)

    info = commands.add_parser("info", help="what is usable here, and all a bug report needs")
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="learn the concepts of a photograph, and draw them")
    demo.add_argument("--concepts", type=int, default=1000, help="default: 1000")
    demo.add_argument(
        "--out", type=Path, default=Path("concepts.png"), help="default: concepts.png"
    )
    demo.add_argument("--patches", type=int, default=20_000, help="default: 20000")
    demo.add_argument("--seed", type=int, default=0, help="default: 0")
    demo.add_argument("--solver", default="hals", help="default: hals")
    _add_common(demo)
    demo.set_defaults(run=_demo)
    return parser


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("A", type=Path, help="file of A (n × d) ≥ 0")
    fit.add_argument("--concepts", type=int, required=True, metavar="K", help="how many to learn")
    fit.add_argument("--out", type=Path, required=True, help="file for the model: .safetensors")
    fit.add_argument("--codes", type=Path, help="file for the codes Z (n × K)")
    fit.add_argument("--solver", default="hals", help="hals, mu, pgd or anls; default: hals")
    fit.add_argument("--max-iter", type=int, help="iterations at most; default: 500")
    fit.add_argument("--tol", type=float, default=1e-4, help="relative change of Z to stop at")
    fit.add_argument("--seed", type=int, help="of the random start")
    fit.add_argument("--init", default="auto", help="auto, random or nndsvda; default: auto")
    fit.add_argument("--backend", default="auto", help="see `fastnmf info`; default: auto")
    fit.add_argument("--form", default="auto", help="auto, normal or residual; default: auto")
    fit.add_argument("--chunk-rows", type=int, help="rows in hand at once; default: as fits")
    _add_common(fit)
    fit.set_defaults(run=_fit)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …; default: cpu")
    command.add_argument("--quiet", action="store_true", help="no progress, no account")


def _fit(arguments: argparse.Namespace) -> None:
    from . import NMF
    from .files import MODEL_SUFFIXES, WRITERS, read_matrix, save_model, write_matrix

    # before the work, so that none is lost
    _check_outputs({arguments.out: MODEL_SUFFIXES, arguments.codes: WRITERS}, [arguments.A])
    nmf = NMF(
        arguments.concepts,
        device=_device(arguments.device),
        solver=arguments.solver,
        tol=arguments.tol,
        verbose=not arguments.quiet,
        max_iter=arguments.max_iter,
        init=arguments.init,
        seed=arguments.seed,
        backend=arguments.backend,
        form=arguments.form,
        chunk_rows=arguments.chunk_rows,
    )
    Z, _ = nmf.fit(read_matrix(arguments.A))
    save_model(arguments.out, nmf)
    written = f"{'model:':<16}{arguments.out}"
    if arguments.codes is not None:
        write_matrix(arguments.codes, Z)
        written += f"\n{'codes:':<16}{arguments.codes}"
    if not arguments.quiet:
        print(f"{nmf.fit_info_}\n{written}")


def _encode(arguments: argparse.Namespace) -> None:
    from .files import WRITERS, load_model, read_matrix, write_matrix

    _check_outputs({arguments.out: WRITERS}, [arguments.model, arguments.A])
    nmf = load_model(arguments.model, _device(arguments.device))
    nmf.verbose = not arguments.quiet
    Z = nmf.encode(read_matrix(arguments.A), max_iter=arguments.max_iter, tol=arguments.tol)
    write_matrix(arguments.out, Z)
    if not arguments.quiet:
        n, K = Z.shape
        print(f"{arguments.out}: codes, {n:,} × {K:,}, mean L0 {int(Z.count_nonzero()) / n:.4g}")


def _decode(arguments: argparse.Namespace) -> None:
    from .files import WRITERS, load_model, read_matrix, write_matrix

    _check_outputs({arguments.out: WRITERS}, [arguments.model, arguments.Z])
    A_hat = load_model(arguments.model, _device(arguments.device)).decode(read_matrix(arguments.Z))
    write_matrix(arguments.out, A_hat)
    if not arguments.quiet:
        n, d = A_hat.shape
        print(f"{arguments.out}: Z D, {n:,} × {d:,}")


def _info(arguments: argparse.Namespace) -> None:
    import torch

    from . import backends

    print(f"{backends()}\n")
    cuda = torch.version.cuda or "not in this torch"
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        cuda += f", {', '.join(names)}"
    elif torch.version.cuda:
        cuda += ", no device"
    extension = importlib.util.find_spec("fastnmf._C")
    lines = {
        "fastnmf": f"{__version__} in {Path(__file__).parent}",
        "python": f"{platform.python_version()} in {sys.prefix}",
        "platform": platform.platform(),
        "cpu": f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        **{name: _version(name) for name in PACKAGES},
        "cuda": cuda,
        "matmul": f"float32 precision {torch.get_float32_matmul_precision()}",
        "extension": "not built" if extension is None else str(extension.origin),
        "FASTNMF_BACKEND": os.environ.get("FASTNMF_BACKEND", "not set"),
    }
    print("\n".join(f"{name + ':':<17}{value}" for name, value in lines.items()))


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import learn_photograph
    from .files import check_output

    account = learn_photograph(
        check_output(arguments.out, (".png",)),
        concepts=arguments.concepts,
        patches=arguments.patches,
        seed=arguments.seed,
        solver=arguments.solver,
        device=_device(arguments.device),
        verbose=not arguments.quiet,
    )
    if not arguments.quiet:
        print(f"{account}\n{'picture:':<16}{arguments.out}")


def _check_outputs(outputs: dict[Path | None, Sequence[str]], inputs: list[Path]) -> None:
    """Refuse an output that cannot be written, or that is an input or another output."""
    from .errors import InvalidInput
    from .files import check_output

    taken = [os.path.realpath(path) for path in inputs]
    for path, suffixes in outputs.items():
        if path is None:
            continue
        target = os.fspath(check_output(path, suffixes))
        if target in taken:
            raise InvalidInput(f"{path} is named twice; give every output a file of its own")
        taken.append(target)


def _device(name: str) -> str:
    import torch

    from .errors import InvalidInput

    try:
        torch.empty(0, device=name)
    # torch built without CUDA asserts
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0]
        raise InvalidInput(f"device {name!r} is not usable: {why}") from error
    return name


def _cpu() -> str:
    """The model of the CPU; platform.processor() does not know it on Linux."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
