"""The memory of a pretended device: which storages live, and how many bytes at once."""

from __future__ import annotations

import threading

import torch

OutOfMemory = torch.cuda.OutOfMemoryError


class Memory:
    """Bytes of the storages that live on a device. Views share the storage of their base."""

    def __init__(self, total: int) -> None:
        self.total, self.live, self.peak = total, 0, 0
        # storages may be freed by the garbage collector, in any thread
        self._lock = threading.RLock()

    def add(self, bytes_: int) -> None:
        """Raises torch.cuda.OutOfMemoryError where a device of this size would."""
        with self._lock:
            if self.live + bytes_ > self.total:
                raise OutOfMemory(
                    f"CUDA out of memory. Tried to allocate {bytes_} bytes of {self.total}, of "
                    f"which {self.live} are in use (pretended)"
                )
            self.live += bytes_
            self.peak = max(self.peak, self.live)

    def remove(self, bytes_: int) -> None:
        with self._lock:
            self.live -= bytes_

    def reset_peak(self) -> None:
        self.peak = self.live
