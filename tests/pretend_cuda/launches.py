"""Kernels of Triton on a pretended device: Triton's interpreter runs them on the memory of the CPU
that its tensors hold."""

from __future__ import annotations

from tape import tensors
from torch.utils._python_dispatch import _disable_current_modes

from .tensors import OnCuda, on_host
from .waits import here


def install(patch, device) -> None:
    """Put this in the place of the interpreter's launch."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return
    interpret = GridExecutor.__call__

    def launch(executor, *given, **options):
        found = tensors(given, options)
        on_device = [X for X in found if isinstance(X, OnCuda)]
        if not on_device:
            # such as the probe of the backend
            with _disable_current_modes():
                return interpret(executor, *given, **options)
        name = executor.fn.__name__
        if len(on_device) < len(found):
            raise ValueError(
                f"Pointer argument cannot be accessed from Triton (cpu tensor?): {name}, {here()}"
            )
        device.launch(name, on_device)
        given, options = on_host(given), on_host(options)
        if device.capture is not None:
            device.capture.launch(interpret, (executor, *given), options)
            return None
        with _disable_current_modes():
            return interpret(executor, *given, **options)

    patch.setattr(GridExecutor, "__call__", launch)
