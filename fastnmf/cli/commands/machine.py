"""The commands that need no file: info, demo and completion. What one needs is imported when it
runs."""

from __future__ import annotations

from argparse import Namespace

from ..matrices import Output, check_outputs
from ..summary import as_json, option_errors, shows_progress, usable_device
from ..usage import DONE


def info(arguments: Namespace) -> int:
    """Run `fastnmf info`."""
    from ...backends.registry import available_backends
    from ..environment import facts

    backends = available_backends()
    if arguments.json:
        listed = [
            {"name": each.name, "usable": each.reason is None, "reason": each.reason}
            for each in backends
        ]
        print(as_json({**facts(), "backends": listed}))
    else:
        print(f"{backends}\n")
        print("\n".join(f"{name + ':':<17}{value}" for name, value in facts().items()))
    return DONE


def demo(arguments: Namespace) -> int:
    """Run `fastnmf demo`."""
    check_outputs([Output(arguments.out, (".png",))], [], arguments.force)
    from ..demo import learn_photograph

    with option_errors():
        summary = learn_photograph(
            arguments.out,
            concepts=arguments.concepts,
            patches=arguments.patches,
            seed=arguments.seed,
            solver=arguments.solver,
            device=usable_device(arguments.device),
            verbose=shows_progress(arguments),
        )
    if arguments.json:
        files = {"picture": str(arguments.out), "photograph_error": summary.photograph_error}
        print(as_json({**files, **summary.fit.as_dict()}))
    elif not arguments.quiet:
        print(f"{summary}\n{'picture:':<16}{arguments.out}")
    return DONE


def completion(arguments: Namespace) -> int:
    """Run `fastnmf completion`."""
    from ..completion import script
    from ..parser import parser_of

    print(script(arguments.shell, parser_of()), end="")
    return DONE
