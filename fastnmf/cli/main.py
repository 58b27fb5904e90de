"""The command `fastnmf`: it parses its arguments, runs a command, and says in one line why it
failed. Errors, warnings and log go to the standard error, summaries to the standard output."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from .language import of_the_command_line
from .parser import COMMANDS, parser_of
from .usage import (
    DATA,
    DONE,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    USAGE,
    Refused,
    Terminated,
    refuse_unknown_command,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, which docs/command_line.md lists."""
    for stream in (sys.stdout, sys.stderr):
        # an encoding without × must not end a fit that went well
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = _run([*sys.argv[1:]] if argv is None else [*argv])
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except SystemExit as leaving:
        # of --help and --version
        return _flushed(int(leaving.code or DONE))
    except (KeyboardInterrupt, Terminated) as stopped:
        killed = isinstance(stopped, Terminated)
        why = f": {stopped}" if str(stopped) else ""
        if not killed and sys.stderr is not None and sys.stderr.isatty():
            # which shows ^C
            _say("")
        _say(f"fastnmf: {'terminated' if killed else 'interrupted'}{why}")
        return TERMINATED if killed else INTERRUPTED
    except BrokenPipeError:
        # the reader, as `head` does, has gone
        _leave_the_output()
        return FAILED
    except Refused as refused:
        return _refuse(str(refused), refused.status, refused.hint)
    except Exception as error:
        found = _explained(error)
        if found is None:
            raise
        return _refuse(*found)


def _run(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    refuse_unknown_command(words, COMMANDS)
    parser = parser_of()
    arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.print_help()
        return DONE
    arguments.argv = words
    with _reporting():
        from .commands.registry import RUNS
        from .fit import by_torchrun

        if arguments.command != "fit" and by_torchrun():
            raise Refused("of all commands only fit is shared by the processes of torchrun")
        return RUNS[arguments.command](arguments)


def _explained(error: Exception) -> tuple[str, int] | None:
    """What to say of an error that a user can cause, and the exit status; None for a bug, which
    keeps its traceback."""
    import torch

    from ..errors import BackendUnavailable, InvalidInput, NotFitted
    from .matrices import said

    if isinstance(error, BackendUnavailable):
        return str(error), USAGE
    if isinstance(error, OSError):
        if _is_of_output(error):
            _leave_the_output()
        return said(error), FAILED
    full = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or full:
        advice = "give fewer --concepts, --max-memory SIZE, or .npy files, which are read in passes"
        return f"not enough memory ({str(error) or 'of the system'}); {advice}", FAILED
    if isinstance(error, ModuleNotFoundError | Warning):
        return str(error), FAILED
    if isinstance(error, InvalidInput | NotFitted | ArithmeticError):
        return str(error), DATA
    return None


def _refuse(message: str, status: int, hint: str = "") -> int:
    _say(f"fastnmf: error: {_shown(message)}")
    if hint:
        _say(f"fastnmf: hint: {hint}")
    return status


def _shown(message: str) -> str:
    """A message in the language of the command line, with files by their names from here."""
    with suppress(OSError):
        here = os.path.join(os.getcwd(), "")
        message = message.replace(here, "") if len(here) > 1 else message
    return of_the_command_line(message)


def _say(line: str) -> None:
    """Write a line to the standard error, above a bar that is shown there."""
    if sys.stderr is None:
        return
    with suppress(OSError):
        if "tqdm.auto" in sys.modules:
            sys.modules["tqdm.auto"].tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")


@contextmanager
def _reporting() -> Iterator[None]:
    """A context in which warnings and the log are lines of their own, and SIGTERM is an
    exception."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _say(f"fastnmf: warning: {_shown(str(message))}")

    handler, log = _Lines(logging.WARNING), logging.getLogger("fastnmf")
    main_thread = threading.current_thread() is threading.main_thread()
    takes = main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with warnings.catch_warnings():
        warnings.showwarning = show
        propagated, log.propagate = log.propagate, False
        log.addHandler(handler)
        if takes:
            signal.signal(signal.SIGTERM, _terminate)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.propagate = propagated
            if takes:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Lines(logging.Handler):
    """The log as lines on the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(f"fastnmf: {_shown(record.getMessage())}")


def _terminate(*_: object) -> None:
    raise Terminated


def _flushed(status: int) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _leave_the_output()
        return FAILED
    return status


def _is_of_output(error: OSError) -> bool:
    """Whether the standard output is what cannot be written to."""
    try:
        sys.stdout.flush()
    except OSError:
        return error.filename is None
    return False


def _leave_the_output() -> None:
    """Let the interpreter not flush at its end what cannot be written."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
