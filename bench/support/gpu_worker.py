"""The process that runs the parts of the GPU study, so that one that hangs or breaks the device
ends alone: the next part then has a new process."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from support.gpu_runner import Event, Part

# until a process has imported torch and answers
START_SECONDS = 120.0


class Worker:
    """An Executor: one process for all parts, until one of them fails, overruns or kills it.

    load: called in the process, returns the parts by name; it must be importable there.
    """

    def __init__(self, load: Callable[[], dict[str, Part]]) -> None:
        self._load, self._process = load, None

    def do(self, part: Part, limit: float) -> Iterator[Event]:
        if self._process is None and not self._start():
            yield Event("failed", text=f"its process did not start within {START_SECONDS:.0f} s")
            return
        ends = time.monotonic() + limit
        self._pipe.send(part.name)
        while True:
            try:
                answered = self._pipe.poll(max(0.0, ends - time.monotonic()))
                event = self._pipe.recv() if answered else None
            except (EOFError, ConnectionError):
                code = self._stop()
                yield Event("failed", text=f"its process ended with status {code}")
                return
            if event is None:
                self._stop()
                yield Event("overran", text=f"ended after {limit:.0f} s")
                return
            if event.kind == "failed":
                # an error of the device stays in the process
                self._stop()
            yield event
            if event.kind != "result":
                return

    def close(self) -> None:
        if self._process is not None:
            self._stop()

    def _start(self) -> bool:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._load), daemon=False)
        self._process.start()
        theirs.close()
        try:
            if self._pipe.poll(START_SECONDS) and self._pipe.recv() == "ready":
                return True
        except (EOFError, ConnectionError):
            pass
        self._stop()
        return False

    def _stop(self) -> int | None:
        """End the process; its exit status."""
        process, self._process = self._process, None
        process.join(0.5)
        process.kill()
        process.join()
        self._pipe.close()
        return process.exitcode


def _serve(pipe: Connection, load: Callable[[], dict[str, Part]]) -> None:
    """Run the parts that are named through the pipe, until it is closed."""
    parts = load()
    pipe.send("ready")
    while True:
        try:
            part = parts[pipe.recv()]
        except EOFError:
            return
        for event in events(part):
            pipe.send(event)


def events(part: Part) -> Iterator[Event]:
    """The results of a part in this process, and how it ended."""
    try:
        if reason := part.needs():
            yield Event("left out", text=reason)
            return
        for result in part.run():
            yield Event("result", result)
    # whatever goes wrong in one part, the others are to run: this is the one place that knows
    except BaseException as error:
        yield Event("failed", text=in_a_line(error))
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
    else:
        yield Event("done")


def in_a_line(error: BaseException) -> str:
    """Its type, the first line of its message, and where it was raised."""
    lines = str(error).splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].name})"
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where if frames else ''}"
