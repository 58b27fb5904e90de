"""A CUDA device that is only pretended: its tensors say that they are on `cuda:0` and hold memory
of the CPU. It finds what mixes devices, where the host waits, what crosses to it, what is read
before a copy or another stream has ended, and how much memory is in use at once. It shows no
timing.

    with pretend() as device:
        model = NMF(5, device="cuda", backend="triton", seed=0)
        Z, D = model.fit(on_cuda(A))
    print(device.waits, device.crossed, device.memory.peak)

Kernels of Triton run on it in Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported).
"""

from .device import Card, Device, pretend
from .memory import OutOfMemory
from .order import Unordered
from .tensors import MixedDevices, OnCuda, on_cuda, on_host

__all__ = [
    "Card",
    "Device",
    "MixedDevices",
    "OnCuda",
    "OutOfMemory",
    "Unordered",
    "on_cuda",
    "on_host",
    "pretend",
]
