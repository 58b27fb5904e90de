"""The progress bar of `verbose` and the user's callback, as one function for the loop to call."""

from __future__ import annotations

from collections.abc import Callable

from tqdm.auto import tqdm

from ..engine.state import Iteration

Each = Callable[[Iteration], bool | None]


class Progress:
    """A context whose value is the function to call after every iteration, or None if there is
    neither a bar nor a callback."""

    def __init__(
        self, verbose: bool, max_iter: int, callback: Each | None, streamed: bool = False
    ) -> None:
        self._callback = callback
        # where data are streamed, an iteration is a pass through them
        unit = "pass" if streamed else "it"
        self._bar = tqdm(total=max_iter, unit=unit) if verbose else None

    def __enter__(self) -> Each | None:
        return self._each if self._bar is not None or self._callback is not None else None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _each(self, info: Iteration) -> bool | None:
        if self._bar is not None:
            shown = {"change": f"{info.relative_change:.2e}"}
            if info.relative_error == info.relative_error:
                shown["error"] = f"{info.relative_error:.5f}"
            self._bar.set_postfix(shown, refresh=False)
            # a fit that continues from a checkpoint begins with a later iteration
            self._bar.update(max(1, info.iteration - self._bar.n))
        return self._callback(info) if self._callback is not None else None
