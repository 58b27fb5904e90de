"""Tensors that say they are on `cuda:0` and hold memory of the CPU, and what an operation of torch
does with them: it raises where torch would for tensors on different devices, reports to the device
what memory it uses, and computes on the CPU."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from tape import tensors, written
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from . import waits

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


class MixedDevices(RuntimeError):
    """An operation was given tensors on different devices."""


class OnCuda(Tensor):
    """A tensor on the pretended device. inner: its numbers, on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCuda:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def record_stream(self, stream):
        self.inner.untyped_storage().block.shared.add(stream.of.number)

    def tolist(self):
        return self.to(CPU).tolist()

    def numpy(self, **_):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    __array__ = numpy

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), self.detach().clone())

    def __reduce_ex__(self, protocol):
        return on_cuda, (copy.copy(self.inner),)

    def __repr__(self, **_):
        return f"OnCuda({self.inner!r})"


class Mode(TorchDispatchMode):
    """Operations that make tensors on the pretended device, and those of the host on pinned
    memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def on_cuda(X: Tensor) -> OnCuda:
    """A copy of X on the pretended device, which no stream has to wait for."""
    with _disable_current_modes():
        made = OnCuda(X.detach().clone())
    _register(made.inner)
    return made


def on_host(X: Any) -> Any:
    """The numbers of a tensor wherever it is, or of all in a list, tuple or dictionary, for a test:
    not counted as a wait."""
    if isinstance(X, OnCuda):
        return X.inner
    if type(X) in (list, tuple):
        return type(X)(on_host(one) for one in X)
    return {name: on_host(one) for name, one in X.items()} if type(X) is dict else X


def _device():
    from .device import current

    return current()


def _register(inner: Tensor) -> None:
    device = _device()
    device.order.block(inner.untyped_storage(), device.stream, on_device=True)


@functools.cache
def _made_of_others(func) -> bool:
    return func._can_decompose()


@functools.cache
def _drawing(func):
    """The overload of an operation that draws numbers which takes a generator, or None."""
    if "generator" in {argument.name for argument in func._schema.arguments}:
        return func
    packet = func.overloadpacket
    draws = torch.Tag.nondeterministic_seeded in func.tags
    return packet.generator if draws and "generator" in packet.overloads() else None


def run(func, args, kwargs):
    """Do an operation of torch, on the host or on the pretended device."""
    if _made_of_others(func):
        # as in inference mode
        with Mode():
            return func.decompose(*args, **kwargs)
    name, given = func.overloadpacket.__name__, tensors(args, kwargs)
    on_device = [X for X in given if isinstance(X, OnCuda)]
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked)
    if not on_device and (target is None or target.type != "cuda"):
        return _on_host(func, name, args, kwargs)
    if target is not None and target.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    if name == "is_pinned":
        return False
    targets = written(func, args, kwargs)
    _check_devices(func, name, args, given, targets)
    crossing = waits.Crossing.of(name, args, kwargs, target)
    waits.note(_device(), func, name, args, crossing)
    inner_args, inner_kwargs = on_host(args), on_host(kwargs)
    if target is not None:
        inner_kwargs["device"] = CPU
    pinned = bool(inner_kwargs.pop("pin_memory", False))
    if crossing is not None:
        inner_kwargs.pop("non_blocking", None)
    func, inner_kwargs = _seeded(func, inner_kwargs)
    with _disable_current_modes():
        out = _device().do(func, inner_args, inner_kwargs)
        if name.startswith("empty") or name.startswith("new_empty"):
            _spoil_(out)
    at_end = target or (targets or on_device)[0].device
    wraps = at_end.type == "cuda"
    _device().used(func, name, given, targets, tensors(out), wraps, crossing, pinned)
    return _wrapped(out, given, wraps)


def _on_host(func, name, args, kwargs):
    pinned = kwargs.get("pin_memory") or name in ("_pin_memory", "pin_memory")
    if name in ("is_pinned",):
        block = getattr(args[0].untyped_storage(), "block", None)
        return block is not None and block.pinned
    device = _device()
    if name in ("_pin_memory", "pin_memory"):
        out = args[0].clone(memory_format=torch.contiguous_format)
    else:
        if not func.is_view:
            device.on_host(func, args, kwargs)
        out = func(*args, **{k: v for k, v in kwargs.items() if k != "pin_memory"})
    if pinned:
        device.pin(out)
    return out


def _check_devices(func, name, args, given, targets) -> None:
    """Raise MixedDevices where torch would."""
    if name in ("_to_copy", "copy_", "set_") or all(isinstance(X, OnCuda) for X in given):
        return
    lists = [x for x in args if isinstance(x, list | tuple) and tensors(x)]
    if name.startswith("_foreach") and len(lists) > 1:
        # the tensors of a place are on one device
        groups = [tensors(place) for place in zip(*lists, strict=True)]
    else:
        groups = [given]
    # a CUDA tensor may be indexed by tensors of the CPU; numbers may come from there
    free = tensors(args[1]) if name.startswith(("index", "_index_put")) and len(args) > 1 else []
    free = free if isinstance(args[0], OnCuda) else []
    many = name in ("stack", "cat", "_stack", "_cat")
    for group in groups:
        if not any(isinstance(X, OnCuda) for X in group):
            continue
        for X in group:
            if isinstance(X, OnCuda) or any(X is one for one in free):
                continue
            if X.dim() > 0 or many or any(X is one for one in targets):
                raise MixedDevices(
                    "Expected all tensors to be on the same device, but found at least two devices,"
                    f" cuda:0 and cpu! ({func} at {waits.here()})"
                )


def _seeded(func, kwargs):
    """The operation with the generator of the pretended device, if it draws numbers."""
    drawing, device = _drawing(func), _device()
    if drawing is None:
        return func, kwargs
    given = kwargs.get("generator")
    if given is not None and given._cdata not in device.generators:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    return drawing, {**kwargs, "generator": given or device.generator}


def _spoil_(out: Tensor) -> None:
    """Memory that is not written yet holds anything."""
    if out.is_floating_point():
        out.fill_(torch.nan)


def _wrapped(out, given, wraps):
    """The results on the pretended device; an argument that was written is returned itself."""
    if isinstance(out, list | tuple):
        return type(out)(_wrapped(one, given, wraps) for one in out)
    if not isinstance(out, Tensor):
        return out
    for mine in given:
        if isinstance(mine, OnCuda) and mine.inner is out:
            if mine.shape != out.shape or mine.stride() != out.stride():
                raise NotImplementedError("an operation that changes the shape of its argument")
            return mine
    return OnCuda(out) if wraps else out


__all__ = ["CPU", "CUDA", "MixedDevices", "Mode", "OnCuda", "on_cuda", "on_host", "run"]
