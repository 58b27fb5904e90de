"""The time of a call, on any device; needs torch alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def least_seconds(call: Callable[[], Any], rounds: int, device: str = "cpu") -> float:
    """The least time of some rounds, after one that compiles and warms up; of that one if 0.

    On a GPU the device is synchronised before and after each round.
    """
    first, _ = seconds_of(call, device)
    if not rounds:
        return first
    return min(seconds_of(call, device)[0] for _ in range(rounds))


def seconds_of(call: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """The time of one call, and what it returned; a GPU is synchronised before and after."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    begun = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - begun, result
