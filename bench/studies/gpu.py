"""Check every kernel on a GPU, then time iterations and fits beside their predicted times and
Overcomplete's.

Needs a CUDA GPU and Triton. The extension for CUDA is built beside the first parts, where there is
nvcc; else exact least squares is left out. Overcomplete is optional: without it the same iterations
are timed in plain torch.

The parts come in the order of their importance, and end within the minutes: each has an estimate,
and one that does not fit is left out. What fails does not end the others. Each result is written as
it comes. The exit status is 1 if a check or a part failed. Never run on a GPU so far.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import checkout
from support.gpu_runner import Event, Report, run
from support.gpu_worker import Worker
from support.options import count, parser_of, positive

# also in the processes that compile kernels, which import this file
checkout.use()

REHEARSED = (
    "REHEARSAL on a pretended device at small sizes: times mean nothing, predictions neither"
)


def parsed(arguments: list[str] | None = None):
    parser = parser_of(__doc__)
    option = parser.add_argument
    option("--minutes", type=positive, default=8, help="in all (default 8)")
    option("--only", metavar="PART", action="append", help="may be repeated; see --list")
    option("--list", action="store_true", help="print the parts and their estimated seconds")
    path = "gpu_results.jsonl"
    option("--json", metavar="PATH", default=path, help=f"results as JSON lines (default {path})")
    option("--rehearse", action="store_true", help="all in small, on a pretended device, no GPU")
    every = "compile the kernels for sm_90, no GPU; CALLS: of the first so many calls"
    option("--compile", metavar="CALLS", type=count, nargs="?", const=10**6, help=every)
    return parser.parse_args(arguments)


def environment() -> dict:
    """The card and the versions, or an exit where there is no GPU."""
    import torch

    try:
        import triton
    except ImportError as error:
        sys.exit(f"this study needs Triton: {error}")
    if not torch.cuda.is_available():
        sys.exit("this study needs a GPU, and torch finds none here (--rehearse needs none)")
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        card, driver = said[0].rsplit(", ", 1)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        card, driver = "unknown", "unknown"
    return {"card": card, "driver": driver, "torch": torch.__version__,
            "cuda": torch.version.cuda, "triton": triton.__version__}  # fmt: skip


def main() -> None:
    begun, given = time.monotonic(), parsed()
    if given.rehearse:
        # before Triton is imported, here and in the process of the parts
        os.environ["TRITON_INTERPRET"] = "1"
    from support import gpu_compile, gpu_extension, gpu_parts

    if given.compile:
        for result in gpu_compile.for_sm_90(given.compile):
            _print(", ".join(f"{name}: {value}" for name, value in result.items()))
        return
    place = gpu_extension.folder()
    load = functools.partial(gpu_parts.study, place)
    parts = gpu_parts.rehearsal() if given.rehearse else load()
    if given.list:
        _print("\n".join(f"{part.seconds:4.0f} s  {part.name}" for part in parts.values()))
        return
    if unknown := set(given.only or ()) - parts.keys():
        sys.exit(f"no such part: {', '.join(unknown)}; known are: {', '.join(parts)}")
    chosen = [part for name, part in parts.items() if not given.only or name in given.only]
    facts = {"note": REHEARSED} if given.rehearse else environment()
    with contextlib.ExitStack() as stack:
        try:
            report = stack.enter_context(contextlib.closing(Report(given.json, _print)))
        except OSError as error:
            sys.exit(f"results cannot be written ({error}); name another file by --json")
        if not given.rehearse:
            build = stack.enter_context(contextlib.closing(gpu_extension.Build(place)))
            facts["extension"] = build.state
        report.take("environment", Event("result", facts), 0.0)
        worker = Worker(gpu_parts.rehearse if given.rehearse else load)
        stack.enter_context(contextlib.closing(worker))
        # what was found is summed up also where the study is interrupted
        stack.callback(_sum_up, report, given.rehearse)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        run(chosen, worker, report, 60 * given.minutes - (time.monotonic() - begun))
    sys.exit(0 if report.passed else 1)


def _sum_up(report: Report, rehearsed: bool) -> None:
    from support.gpu_summary import summary

    _print(summary(report))
    if rehearsed:
        _print(REHEARSED)


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
