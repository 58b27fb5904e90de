"""A recorder for the CPU in place of a CUDA graph: a list of operations of torch with the tensors
and numbers they were given, repeated in place."""

from __future__ import annotations

import contextlib
import gc

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# operations that a graph cannot record: the host waits for their results, whose sizes may depend on
# the data, or they depend on a generator
_REFUSED = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


def tensors(*given):
    """All tensors in arguments of an operation, lists and dictionaries of these."""
    found = []
    for thing in given:
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        elif isinstance(thing, list | tuple):
            found += tensors(*thing)
        elif isinstance(thing, dict):
            found += tensors(*thing.values())
    return found


def storage(tensor):
    return tensor.untyped_storage()._cdata


def written(func, args, kwargs):
    """The tensors that an operation writes to."""
    arguments = func._schema.arguments
    if not func._schema.is_mutable:
        return []
    named = zip(arguments, args, strict=False)
    given = [*named, *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    return tensors([v for a, v in given if a.alias_info is not None and a.alias_info.is_write])


class Refusing(TorchDispatchMode):
    """Raises, as a CUDA device that is recording does, where the host would wait for a result."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if _REFUSED & set(func.tags):
            raise RuntimeError(f"{func} cannot be recorded")
        return self.do(func, args, kwargs or {})

    def do(self, func, args, kwargs):
        return func(*args, **kwargs)


class _Census(Refusing):
    """Records all memory that is allocated."""

    def __init__(self):
        super().__init__()
        self.made = []

    def do(self, func, args, kwargs):
        had = {storage(tensor) for tensor in tensors(args, kwargs)}
        out = func(*args, **kwargs)
        self.made += [
            (str(func), StorageWeakRef(tensor.untyped_storage()))
            for tensor in tensors(out)
            if storage(tensor) not in had
        ]
        return out

    def left(self):
        gc.collect()
        return {name for name, made in self.made if not made.expired()}


class Tape(Refusing):
    """An engine.cuda_graph.Recorder. Recording leaves all memory as it was, as on a CUDA device;
    memory that a step allocates is NaN when the step is repeated.

    left: the operations that allocated memory which outlived the step before. recordings, repeats:
    how many there were. now: the tape that is recording.
    """

    now: Tape | None = None
    # recordings that any of them made
    of_all = 0

    def __init__(self, *_, **__):
        super().__init__()
        self.left, self.recordings, self.repeats, self.released = None, 0, 0, False

    def warm(self, step):
        with _Census() as census:
            step()
        self.left = census.left()

    def record(self, step):
        self.begin()
        try:
            with self:
                step()
        finally:
            Tape.now = None
        self.end()
        return True

    def begin(self):
        self._entries, self._made, self._before = [], {}, {}
        Tape.now = self

    def end(self):
        Tape.now = None
        for tensor, values in self._before.values():
            tensor.copy_(values)
        self.recordings += 1
        Tape.of_all += 1

    def do(self, func, args, kwargs):
        targets = written(func, args, kwargs)
        self.save(targets)
        had = {storage(tensor) for tensor in tensors(args, kwargs)}
        out = func(*args, **kwargs)
        results = tensors(out)
        self._made |= {storage(made): made for made in results if storage(made) not in had}
        views = not targets and all(storage(result) in had for result in results)
        # memory that is only made, or seen otherwise, takes no launch
        if not views and "empty" not in func.name():
            self._entries.append((func, args, kwargs, [] if targets else results))
        return out

    def save(self, targets):
        """Keep the contents of memory that was there before the step."""
        for tensor in targets:
            if storage(tensor) not in self._made and storage(tensor) not in self._before:
                whole = tensor.new_empty(0).set_(tensor.untyped_storage())
                self._before[storage(tensor)] = whole, whole.clone()

    def launch(self, kernel, given, kwargs):
        """Record a kernel of Triton, which torch sees as the operations of its interpreter."""
        with _disable_current_modes():
            self.save(tensors(given, kwargs))
            kernel(*given, **kwargs)
        self._entries.append((kernel, given, kwargs, []))

    def replay(self):
        for made in self._made.values():
            whole = made.new_empty(0).set_(made.untyped_storage())
            if whole.is_floating_point():
                whole.fill_(torch.nan)
        for func, args, kwargs, results in self._entries:
            out = func(*args, **kwargs)
            for result, new in zip(results, tensors(out) if results else (), strict=True):
                result.copy_(new)
        self.repeats += 1

    def release(self):
        self.released = True


class Broken(Tape):
    """Cannot record."""

    def record(self, step):
        with contextlib.suppress(RuntimeError):
            super().record(step)
        return False
