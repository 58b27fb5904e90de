"""The progress bar of `verbose` and the user's callback, as one function for the loop to call."""

from __future__ import annotations

from collections.abc import Callable

from .. import checks
from ..engine.state import Iteration

Each = Callable[[Iteration], bool | None]


# no percentage and no time left: most fits end long before max_iter
_FORMAT = "{desc}: {n_fmt}/{total_fmt} |{bar}| [{elapsed}, {rate_fmt}{postfix}]"


class Progress:
    """A context whose value is the function to call after every iteration, or None if there is
    neither a bar nor a callback.

    label: what the bar is about. begins: what it is about before the first iteration. streamed:
    whether an iteration is a pass through data that are read. A context that is left by an
    exception takes its bar away.
    """

    def __init__(
        self,
        verbose: bool,
        max_iter: int,
        callback: Each | None,
        streamed: bool = False,
        *,
        label: str = "fit",
        begins: str | None = None,
    ) -> None:
        self._callback, self._label, self._chunk = callback, label, 1
        # of the last iteration that was measured on other rows
        self._held_out: str | None = None
        unit, about = "pass" if streamed else "it", begins or label
        self._bar = None
        if verbose:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=max_iter, unit=unit, desc=about, bar_format=_FORMAT)

    def note(self, text: str) -> None:
        """Show what is running before the first iteration."""
        if self._bar is not None:
            self._bar.set_description_str(text)

    def __enter__(self) -> Each | None:
        return self._each if self._bar is not None or self._callback is not None else None

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.leave = kind is None
            self._bar.close()

    def _each(self, info: Iteration) -> bool | None:
        if self._bar is not None:
            if info.iteration <= self._bar.n:
                # of the next chunk of rows
                self._bar.n, self._chunk = 0, self._chunk + 1
            chunk = f", chunk {self._chunk}" if self._chunk > 1 else ""
            self._bar.set_description_str(f"{self._label}{chunk}", refresh=False)
            shown = {}
            if info.relative_change == info.relative_change:
                shown["change"] = f"{info.relative_change:.2e}"
            if info.relative_error == info.relative_error:
                shown["error"] = f"{info.relative_error:.5f}"
            if info.validation_error is not None:
                self._held_out = f"{info.validation_error:.5f}"
            if self._held_out is not None:
                shown["validation"] = self._held_out
            self._bar.set_postfix(shown, refresh=False)
            # a fit that continues from a checkpoint begins with a later iteration
            self._bar.update(info.iteration - self._bar.n)
        return checks.truth("callback", self._callback(info)) if self._callback else None
