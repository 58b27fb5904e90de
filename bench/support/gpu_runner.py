"""The loop over the parts of the GPU study: which part runs, for how long, and what becomes of its
results. What the parts do is in the other gpu_*.py; processes are in gpu_worker.py."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

# a part is ended after so many times its estimate, and not before LEAST_SECONDS
PATIENCE, LEAST_SECONDS = 3, 20.0


@dataclass(frozen=True)
class Part:
    """A part of the study.

    seconds: estimated on an H200, not measured. run: yields results, each a dict: of a check
    ("check", "passed"), of a time ("what", "contender", "seconds", and "predicted" of the plan),
    or any other, for the file. needs: why it cannot run here, or None; asked just before it runs.
    """

    name: str
    seconds: float
    run: Callable[[], Iterable[dict]]
    needs: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Event:
    """What is reported of a part: a result, or how it ended: done, failed, overran or left out.

    text: why it did not end well.
    """

    kind: str
    result: dict = field(default_factory=dict)
    text: str = ""


class Executor(Protocol):
    """Runs parts."""

    def do(self, part: Part, limit: float) -> Iterator[Event]:
        """Results as they come, then how the part ended, after `limit` seconds at the latest."""


class Report:
    """The results of a study: written as JSON lines and printed as they come.

    results: all of them, with the part that each is of. ended: part → the Event of its end.
    """

    def __init__(self, path: str | Path | None, show: Callable[[str], None] = print) -> None:
        self._file = None if path is None else Path(path).open("w", encoding="utf-8")
        self._show = show
        self.results: list[dict] = []
        self.ended: dict[str, Event] = {}

    def take(self, part: str, event: Event, after: float) -> None:
        """Keep an event of a part, `after` seconds since the study began."""
        if event.kind == "result":
            self._write({"part": part, "after": round(after, 1), **event.result})
            return
        self.ended[part] = event
        end = {"part": part, "after": round(after, 1), "ended": event.kind}
        self._write(end | ({"why": event.text} if event.text else {}))

    def _write(self, result: dict) -> None:
        self.results.append(result)
        line = json.dumps(_finite(result), allow_nan=False, ensure_ascii=False)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        self._show(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def checks(self) -> list[dict]:
        return [result for result in self.results if "check" in result]

    @property
    def failed(self) -> list[dict]:
        """Checks that failed."""
        return [check for check in self.checks if not check["passed"]]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and no part did."""
        bad = [end for end in self.ended.values() if end.kind in ("failed", "overran")]
        return not self.failed and not bad


def run(
    parts: Iterable[Part],
    executor: Executor,
    report: Report,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the parts in order, within `seconds` in all.

    A part that is estimated to take longer than what is left is left out. One that overruns is
    ended. After one that fails the next follows.
    """
    begun = clock()
    for part in parts:
        left = seconds - (clock() - begun)
        if part.seconds > left:
            why = f"it takes about {part.seconds:.0f} s, and {max(left, 0):.0f} s are left"
            report.take(part.name, Event("left out", text=why), clock() - begun)
            continue
        limit = min(left, max(PATIENCE * part.seconds, LEAST_SECONDS))
        for event in executor.do(part, limit):
            report.take(part.name, event, clock() - begun)


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
