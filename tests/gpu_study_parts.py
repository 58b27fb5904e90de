"""Parts of a GPU study for tests, loaded by the process that runs them."""

from __future__ import annotations

import os
import threading

from support.gpu_runner import Part


def results(*values):
    def run():
        for value in values:
            yield {"value": value}

    return run


def fails():
    yield {"value": 1}
    raise RuntimeError("CUDA error: an illegal memory access\nand more")


def hangs():
    yield {"value": 1}
    threading.Event().wait()


def dies():
    yield {"value": 1}
    os._exit(7)


def process():
    yield {"process": os.getpid()}


def load():
    runs = {"fails": fails, "hangs": hangs, "dies": dies, "first": process, "second": process}
    parts = [Part(name, 1, run) for name, run in runs.items()]
    parts.append(Part("needs more", 1, fails, lambda: "there is no nvcc"))
    return {part.name: part for part in parts}
