"""Random sequences of calls of the public methods, and what must hold after each of them:
python tests/stateful.py --minutes 20.

Models are made, fitted, copied, saved, interrupted and given wrong input. What must hold is
computed by stateful_expected.py from the inputs, and by models that are made anew: nothing may
depend on what was called before. A failed call leaves models, files and the process as they were. A
sequence that breaks a rule is printed in its shortest form, which takes up to five minutes more;
exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import logging
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from stateful_expected import (
    ROUNDING,
    STORED,
    assert_close_error,
    assert_codes,
    assert_factor,
    assert_summary,
    assert_warnings,
    bits,
    computed_in,
    environment,
    errors_of,
    files_in,
    least_errors,
    open_files,
    state_of,
    without_times,
)
from stateful_inputs import (
    CONTAINERS,
    IN_MEMORY,
    OPTIONAL,
    REFUSED,
    Rows,
    options,
    rows,
)
from torch import Tensor

import fastnmf
from fastnmf import NMF, InvalidInput, NotFitted
from fastnmf.planning import memory

# iterations and tolerance of an encode: few, many, until they do not change, the default
EFFORTS = ((300, None), (1, None), (5, 0), (40, 1e-2), (0, None))
# what a call may raise for input that it cannot use
REFUSALS = (ValueError, TypeError, ArithmeticError, OSError)
NAMES = ("nb_concepts", "device", "solver", "max_iter", "tol", "backend", "tuning", *OPTIONAL)


class Stopped(Exception):
    """Raised by a callback, or by batches."""


@dataclass(eq=False)
class Tracked:
    """A model, the options of one that is made anew, and its state after the last call that was to
    change it."""

    nmf: NMF
    options: dict[str, Any]
    state: dict[str, Any]

    def __repr__(self) -> str:
        return f"<{self.nmf!r}>"

    @property
    def K(self) -> int:
        return self.options["nb_concepts"]

    @property
    def dtype(self) -> torch.dtype:
        return self.nmf.get_dictionary().dtype

    @property
    def penalised(self) -> bool:
        return any(self.options.get(name) for name in ("alpha_Z", "alpha_D", "unit_norm")) and (
            self.options.get("alpha_D") != "same"
            or bool(self.options.get("alpha_Z"))
            or bool(self.options.get("unit_norm"))
        )

    @property
    def seeded(self) -> bool:
        return self.options.get("seed") is not None

    def again(self, **changes: Any) -> NMF:
        """A model with the same options that no one has used."""
        return NMF(**{**self.options, **changes})

    def unlimited(self) -> NMF:
        """A model with the same options and dictionary, whose data are in memory."""
        return self.again(max_memory=None).load_dictionary(self.nmf.get_dictionary())

    def changed(self) -> None:
        """Take the state as it is now."""
        self.state = state_of(self.nmf, NAMES)


class Interrupting:
    """A callback that ends the fit in one of its iterations, in one of several ways."""

    def __init__(self, how: str | None, iteration: int) -> None:
        self.how, self.iteration, self.acted = how, iteration, False

    def __call__(self, info: Any) -> bool | None:
        if self.how is None or info.iteration != self.iteration:
            return None
        self.acted = True
        if self.how == "error":
            raise Stopped
        if self.how == "Ctrl-C":
            signal.raise_signal(signal.SIGINT)
        if self.how == "KeyboardInterrupt":
            raise KeyboardInterrupt
        return self.how == "stop"


class Failing:
    """Batches of which the second raises an error."""

    def __init__(self, A: Tensor, error: type[BaseException]) -> None:
        self.A, self.error = A, error

    def __iter__(self) -> Iterator[Tensor]:
        yield self.A
        raise self.error


# sequences of one seed
ROUND = 20
HOW = (None, "error", "Ctrl-C", "KeyboardInterrupt", "stop")


class Models(RuleBasedStateMachine):
    """Models of one number of features, and a folder of files."""

    models = Bundle("models")
    # the solver of all models, or None for any
    solver: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="stateful-")).resolve()
        self.tracked: list[Tracked] = []
        self.files: dict[str, bytes] = {}
        self.numbers = 0
        self.d = 1
        self.threads = threading.active_count()

    def teardown(self) -> None:
        self.tracked.clear()
        gc.collect()
        opened = open_files(self.folder)
        shutil.rmtree(self.folder)
        if sys.exc_info()[0] is not None:
            # the traceback of a failure holds what was open then
            return
        assert not opened, f"left open: {opened}"
        assert threading.active_count() <= self.threads, "threads left running"

    # what every rule uses

    def new(self, suffix: str) -> Path:
        """A name of a file that there is not."""
        self.numbers += 1
        return self.folder / f"{self.numbers}{suffix}"

    def accept(self, *names: Path) -> None:
        """Take the files of these names, a folder with what is in it, as they are now."""
        present = files_in(self.folder)
        for path in names:
            stem = str(path.relative_to(self.folder).with_suffix(""))
            belongs = re.compile(rf"{re.escape(stem)}((\.codes-[ab])?\.(npy|safetensors)|(/.*)?)")
            known = {name for name in self.files if belongs.fullmatch(name)}
            found = {name: present[name] for name in present if belongs.fullmatch(name)}
            for name in known:
                del self.files[name]
            self.files |= found

    def given(self, A: Tensor, container: str) -> Any:
        """The matrix in a container; files that hold it are made."""
        path = self.new(".npy")
        value = CONTAINERS[container](A, path)
        self.accept(path)
        return value

    def track(self, nmf: NMF, options: dict[str, Any]) -> Tracked:
        tracked = Tracked(nmf, options, {})
        tracked.changed()
        self.tracked.append(tracked)
        return tracked

    def call(
        self,
        function: Callable[[], Any],
        raises: type[BaseException] | tuple[type[BaseException], ...] = (),
        *,
        draws: bool = False,
    ) -> Any:
        """What the function returns, or the error of these types that it raises. It must leave the
        process as it is; draws: it may take random numbers of torch's global generator."""
        before = environment()
        with warnings.catch_warnings(record=True) as self.warned:
            warnings.simplefilter("always")
            try:
                value = function()
            except raises as error:
                value = error
        for name, after in environment().items():
            if not (draws and name == "torch's numbers"):
                assert after == before[name], f"changed: {name}"
        for one in self.warned:
            assert issubclass(one.category, fastnmf.FastnmfWarning), one
        return value

    def refused(
        self, function: Callable[[], Any], errors: Any = REFUSALS, *, draws: bool = False
    ) -> BaseException:
        """The error of a call that must fail."""
        value = self.call(function, errors, draws=draws)
        assert isinstance(value, BaseException), f"not refused, and gave {value!r}"
        assert str(value), "no message"
        return value

    @invariant()
    def models_are_as_they_were(self) -> None:
        for one in self.tracked:
            now = state_of(one.nmf, NAMES)
            for name in one.state.keys() | now.keys():
                assert now.get(name) == one.state.get(name), f"{name} of {one} changed"

    @invariant()
    def files_are_as_they_were(self) -> None:
        now = files_in(self.folder)
        assert now.keys() == self.files.keys(), now.keys() ^ self.files.keys()
        for name, content in now.items():
            assert content == self.files[name], f"{name} changed"

    # models

    @initialize(
        target=models,
        d=st.integers(1, 8),
        K=st.integers(1, 10),
        fitted=st.sampled_from((True, True, False)),
        data=st.data(),
    )
    def begin(self, d: int, K: int, fitted: bool, data: st.DataObject) -> Tracked:
        self.d = d
        model = self.make(K, data)
        if fitted:
            self._any_fit(model, data)
        return model

    def make(self, K: int, data: st.DataObject) -> Tracked:
        given = {"nb_concepts": K, **data.draw(options(self.solver))}
        return self.track(NMF(**given), given)

    @rule(target=models, K=st.integers(1, 10), data=st.data())
    def another_model(self, K: int, data: st.DataObject) -> Tracked:
        return self.make(K, data)

    @rule(model=models, name=st.sampled_from(tuple(OPTIONAL)), data=st.data())
    def set_option(self, model: Tracked, name: str, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(OPTIONAL[name]))
        if name == "unit_norm" and value:
            model.nmf.alpha_D = model.options["alpha_D"] = "same"
        if name == "alpha_D" and model.options.get("unit_norm"):
            value = "same"
        setattr(model.nmf, name, value)
        model.options[name] = value
        model.changed()

    @rule(
        model=models,
        wrong=st.sampled_from(
            (
                ("tol", float("nan")), ("tol", "small"), ("max_iter", -1), ("max_iter", 1.5),
                ("solver", "cd"), ("seed", -1), ("alpha_Z", -1.0), ("l1_ratio", 2),
                ("init", "zeros"), ("init", (None,)), ("stop", "never"), ("max_memory", "much"),
                ("backend", "gpu"), ("tuning", {"form": "normal"}), ("revive", 1),
                ("nb_concepts", 0), ("nb_concepts", 2.5), ("accelerate", "no"),
            )
        ),
        container=st.sampled_from(IN_MEMORY),
    )  # fmt: skip
    def use_wrong_option(self, model: Tracked, wrong: tuple[str, Any], container: str) -> None:
        name, value = wrong
        A, before = Rows(4, self.d).tensor(), getattr(model.nmf, name)
        self.refused(lambda: NMF(**{**model.options, name: value}))
        setattr(model.nmf, name, value)
        state = state_of(model.nmf, NAMES)
        for method in (model.nmf.fit, model.nmf.partial_fit, model.nmf.encode):
            self.refused(lambda method=method: method(self.given(A, container)))
        assert state_of(model.nmf, NAMES) == state
        setattr(model.nmf, name, before)

    # fits

    @rule(model=models, data=st.data(), container=st.sampled_from(IN_MEMORY))
    def fit(self, model, data, container) -> None:
        self._any_fit(model, data, container)

    @rule(
        model=models,
        data=st.data(),
        container=st.sampled_from(tuple(CONTAINERS)),
        codes=st.sampled_from(("memory", "file", "none")),
    )
    def fit_with_files(self, model, data, container, codes) -> None:
        self._any_fit(model, data, container, codes)

    @rule(model=models, data=st.data())
    def fit_from_a_start(self, model, data) -> None:
        self._any_fit(model, data, start=True)

    @rule(
        model=models,
        data=st.data(),
        container=st.sampled_from(tuple(CONTAINERS)),
        codes=st.sampled_from(("memory", "memory", "file", "none")),
        how=st.sampled_from(HOW),
        iteration=st.integers(1, 12),
        checkpoint=st.sampled_from((True, True, False)),
        start=st.booleans(),
    )
    def fit_that_is_interrupted(self, model, data, start, **run) -> None:
        self._any_fit(model, data, start=start, **run)

    def _any_fit(
        self,
        model: Tracked,
        data: st.DataObject,
        container: str = "tensor",
        codes: str = "memory",
        how: str | None = None,
        iteration: int = 0,
        checkpoint: bool = False,
        start: bool = False,
    ) -> None:
        A = data.draw(rows(data.draw(st.sampled_from((self.d, self.d, 3))), most=60), label="A")
        A = A.tensor()
        place = {"file": self.new(".npy"), "none": None}.get(codes, codes)
        saved = self.new(".safetensors") if checkpoint else None
        run = {"codes": place, "checkpoint": saved}
        changes = {"init": self._start(model, A, place)} if start else {}
        with self._set(model, changes):
            interrupt = Interrupting(how, iteration)
            value = self._fit(model, A, container, callback=interrupt, **run)
            if isinstance(value, BaseException):
                if saved is not None:
                    self.accept(saved)
                if interrupt.acted:
                    self.models_are_as_they_were() if not changes else None
                    value = self._fit(model, A, container, **run, resume=checkpoint)
                else:
                    self._assert_to_be_refused(value, model, container, place)
                    return
            if saved is not None:
                self.accept(saved)
            stops = iteration if how == "stop" and interrupt.acted else None
            self._check_fit(model, A, container, place, value, changes, stops)
        model.changed()

    def _fit(self, model: Tracked, A: Tensor, container: str, **run: Any) -> Any:
        given = self.given(A, container)
        raises = (InvalidInput, ArithmeticError, Stopped, KeyboardInterrupt)
        if not model.seeded:
            torch.manual_seed(0)
        return self.call(lambda: model.nmf.fit(given, **run), raises, draws=not model.seeded)

    def _start(self, model: Tracked, A: Tensor, place: Any) -> tuple[Tensor | None, Tensor]:
        generator = torch.Generator().manual_seed(1)
        Z, D = (
            torch.rand(len(A), model.K, generator=generator),
            torch.rand(model.K, A.shape[1], generator=generator),
        )
        return (None if place is None else Z), D

    @contextlib.contextmanager
    def _set(self, model: Tracked, changes: dict[str, Any]) -> Iterator[None]:
        before = {name: getattr(model.nmf, name) for name in changes}
        for name, value in changes.items():
            setattr(model.nmf, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(model.nmf, name, value)

    def _assert_to_be_refused(
        self, error: BaseException, model: Tracked, container: str, place: Any
    ) -> None:
        """Whether options, data and what is asked for do not go together."""
        assert isinstance(error, InvalidInput), repr(error)
        chosen, message = model.options, str(error)
        # codes that are not kept are computed in passes
        limited = chosen.get("max_memory") is not None or place is None
        reasons = {
            "accelerate=True": chosen.get("accelerate") is True and (model.penalised or limited),
            "revive=True": bool(chosen.get("revive")) and place is None,
            "too little": limited,
            "read only once": limited and container == "generator",
            "form": limited and chosen.get("tuning") is not None,
        }
        assert any(word in message and true for word, true in reasons.items()), repr(error)

    def _check_fit(
        self,
        model: Tracked,
        A: Tensor,
        container: str,
        place: Any,
        factors: tuple[Tensor | None, Tensor],
        changes: dict[str, Any],
        stops: int | None,
    ) -> None:
        (Z, D), nmf, dtype = factors, model.nmf, computed_in(A.dtype)
        assert nmf.fitted
        assert nmf.online_info_ is None
        assert bits(nmf.get_dictionary()) == bits(D)
        assert_factor(D, (model.K, A.shape[1]), dtype)
        if place is None:
            assert Z is None
        else:
            assert_factor(Z, (len(A), model.K), dtype)
        if isinstance(place, Path):
            self.accept(place)
            assert np.array_equal(np.load(place), Z.numpy())
        info, chosen = nmf.fit_info_, {"max_iter": 500, "tol": 1e-4} | model.options | changes
        if "init" in changes:
            chosen["init"] = "given"
        assert_summary(info, A.to(dtype), Z, D, chosen, place)
        assert_warnings([str(one.message) for one in self.warned], info, chosen)
        assert (info.stopped_by == "callback") <= (stops == info.iterations)
        if stops is not None:
            assert info.iterations == stops
            return
        # nothing depends on what was called before, nor on where codes go
        anew, other = model.again(**changes, seed=info.seed), place
        if isinstance(place, Path):
            other = self.new(".npy") if chosen.get("max_memory") else "memory"
        expected = anew.fit(self.given(A, container), codes=other)
        if isinstance(other, Path):
            self.accept(other)
        assert bits(Z) == bits(expected[0])
        assert bits(D) == bits(expected[1])
        assert without_times(info) == without_times(anew.fit_info_)
        self._check_history(model, A, container, place, info, changes)

    def _check_history(self, model, A, container, place, info, changes) -> None:
        """An iteration reports the error that a fit of so many iterations ends with."""
        i = info.iterations // 2
        before = "residual" in info.form and info.solver in ("mu", "pgd")
        if i == 0 or before or place is None:
            return
        anew = model.again(**changes | {"seed": info.seed, "max_iter": i})
        place = self.new(".npy") if isinstance(place, Path) else place
        Z, D = anew.fit(self.given(A, container), codes=place)
        if isinstance(place, Path):
            self.accept(place)
        size = np.linalg.norm(A.double().numpy())
        if size:
            true = np.linalg.norm(errors_of(A.to(Z.dtype), Z, D)) / size
            assert_close_error(info.history[i - 1].relative_error, true)

    @rule(
        model=models,
        data=st.data(),
        container=st.sampled_from(IN_MEMORY),
        half_life=st.sampled_from((None, 1.0, float("inf"))),
    )
    def partial_fit(self, model, data, container, half_life) -> None:
        A = data.draw(rows(self.d), label="A").tensor()
        copied, before = copy.deepcopy(model.nmf), model.nmf.online_info_
        D = model.nmf.D.clone() if model.nmf.fitted else None

        def learn(nmf: NMF) -> Any:
            if not model.seeded:
                torch.manual_seed(0)
            given = self.given(A, container)
            call = lambda: nmf.partial_fit(given, half_life=half_life)  # noqa: E731
            return self.call(call, InvalidInput, draws=not model.seeded)

        value = learn(model.nmf)
        if isinstance(value, BaseException):
            other_width = D is not None and D.shape[1] != self.d
            assert model.penalised or other_width, repr(value)
            return
        assert value is model.nmf
        info = model.nmf.online_info_
        seen = (0, 0) if before is None else (before.rows, before.batches)
        assert (info.rows, info.batches) == (seen[0] + len(A), seen[1] + 1)
        assert model.nmf.fitted
        assert model.nmf.fit_info_ is None
        dtype = computed_in(A.dtype) if D is None else computed_in(A.dtype, D.dtype)
        assert_factor(model.nmf.D, (model.K, self.d), dtype)
        assert 0 <= info.unused_concepts <= model.K
        size = float(A.double().norm())
        if D is not None and D.any() and D.isfinite().all() and size:
            least = float(np.linalg.norm(least_errors(A.to(dtype), D.to(dtype)))) / size
            assert info.relative_error >= least * 0.99 - 1e-6
        learn(copied)
        ours, theirs = (dict(nmf.named_buffers()) for nmf in (model.nmf, copied))
        assert {name: bits(F) for name, F in ours.items()} == {
            name: bits(F) for name, F in theirs.items()
        }
        model.changed()

    # codes

    @rule(
        model=models,
        data=st.data(),
        container=st.sampled_from(tuple(CONTAINERS)),
        effort=st.sampled_from(EFFORTS),
        to_file=st.booleans(),
        starts=st.sampled_from((False, False, True)),
        method=st.sampled_from(("auto", "exact", "sweeps")),
    )
    def encode(self, model, data, container, effort, to_file, starts, method) -> None:
        A = data.draw(rows(self.d), label="A").tensor()
        place = self.new(".npy") if to_file else "memory"
        max_iter, tol = effort
        Z0 = torch.rand(len(A), model.K) if starts else None
        run = {"max_iter": max_iter, "tol": tol, "Z0": Z0, "method": method}
        given = self.given(A, container)
        call = lambda: model.nmf.encode(given, **run, codes=place)  # noqa: E731
        Z = self.call(call, (NotFitted, InvalidInput))
        if not model.nmf.fitted:
            assert isinstance(Z, NotFitted)
            return
        D = model.nmf.get_dictionary()
        if isinstance(Z, BaseException):
            limited = model.options.get("max_memory") and "too little" in str(Z)
            once = container == "generator" and "only once" in str(Z)
            assert limited or once or D.shape[1] != self.d, repr(Z)
            return
        dtype = computed_in(A.dtype, D.dtype)
        assert_factor(Z, (len(A), model.K), dtype)
        if to_file:
            self.accept(place)
        exact = method != "sweeps" or model.options["solver"] == "anls"
        assert_codes(
            Z,
            A.to(dtype),
            D.to(dtype),
            exact=exact and max_iter > 0,
            best_effort=not starts and max_iter > 0,
            penalised=bool(model.options.get("alpha_Z")),
        )
        other = NMF(**model.options).load_dictionary(D)
        run |= {"codes": self.new(".npy") if to_file else "memory", "return_info": True}
        again, info = self.call(lambda: other.encode(self.given(A, container), **run))
        if to_file:
            self.accept(run["codes"])
        assert bits(Z) == bits(again)
        if method == "sweeps":
            assert info.method == other.solver
            limit = model.nmf.tol if tol is None else tol
        else:
            allowed = ("exact",) if method == "exact" else ("exact", "hals", "hals, then exact")
            assert info.method in (allowed if max_iter else ("start",))
            limit = 1
        assert info.iterations <= max_iter + (method == "auto")
        assert bool(self.warned) == (not info.converged and limit > 0 and max_iter > 0)
        assert info.kkt.shape == (len(A),)
        assert bool((info.kkt >= 0).all())
        if exact and max_iter:
            assert float(info.kkt.max()) <= ROUNDING[dtype]
        size = float(A.double().norm())
        true = float(np.linalg.norm(errors_of(A.to(dtype), Z, D.to(dtype)))) / size if size else 0.0
        assert_close_error(info.relative_error, true)

    @rule(model=models, data=st.data(), effort=st.sampled_from(EFFORTS[:2]))
    def encode_row_by_row(self, model, data, effort) -> None:
        """Rows have the codes that they have alone; where they do not converge, up to a percent."""
        if not model.nmf.fitted or model.nmf.D.shape[1] != self.d:
            return
        nmf, max_iter = model.unlimited(), effort[0]
        A = data.draw(rows(self.d, dtype="float64"), label="A").tensor()
        whole = self.call(lambda: nmf.encode(A, max_iter))
        single = self.call(lambda: torch.cat([nmf.encode(a[None], max_iter) for a in A]))
        stacked = self.call(lambda: nmf.encode(torch.stack((A, A)), max_iter))
        assert stacked.shape == (2, *whole.shape)
        D = nmf.get_dictionary().to(whole)
        size = np.linalg.norm(A.numpy(), axis=1)
        for Z in (single, *stacked):
            apart = np.abs(errors_of(A, Z, D) - errors_of(A, whole, D))
            assert (apart <= 0.01 * size + 1e-300).all()

    @rule(model=models, data=st.data())
    def encode_with_gradient(self, model, data) -> None:
        if not model.nmf.fitted or model.nmf.D.shape[1] != self.d:
            return
        A = data.draw(rows(self.d, most=6, dtype="float32"), label="A").tensor()
        nmf = model.unlimited()
        plain = self.call(lambda: nmf.encode(A, 5))
        A.requires_grad_()
        Z = self.call(lambda: nmf.encode(A, 5))
        assert bits(Z) == bits(plain)
        self.call(lambda: Z.sum().backward())
        assert A.grad.isfinite().all()

    @rule(
        model=models,
        n=st.integers(1, 12),
        dtype=st.sampled_from((torch.float32, torch.float64, torch.float16)),
        container=st.sampled_from(tuple(CONTAINERS)),
        to_file=st.booleans(),
    )
    def decode(self, model, n, dtype, container, to_file) -> None:
        generator = torch.Generator().manual_seed(n)
        Z = torch.randn(n, model.K, generator=generator).to(dtype)
        place = self.new(".npy") if to_file else None
        given = self.given(Z, container)
        X = self.call(lambda: model.nmf.decode(given, place), (NotFitted, InvalidInput))
        if not model.nmf.fitted:
            assert isinstance(X, NotFitted)
            return
        D = model.nmf.get_dictionary()
        if isinstance(X, BaseException):
            limited = model.options.get("max_memory") and "too little" in str(X)
            assert limited or (container == "generator" and "only once" in str(X)), repr(X)
            return
        if to_file:
            self.accept(place)
        expected = Z.double() @ D.double()
        assert X.shape == expected.shape
        scale = Z.double().abs() @ D.double()
        eps = torch.finfo(X.dtype).eps
        assert ((X.double() - expected).abs() <= 4 * (model.K + 1) * eps * scale + 1e-30).all()

    @rule(model=models, data=st.data(), signed=st.booleans())
    def nnls(self, model, data, signed) -> None:
        if not model.nmf.fitted or model.nmf.D.shape[1] != self.d:
            return
        A = data.draw(rows(self.d, dtype="float64"), label="A").tensor()
        D = model.nmf.D.double()
        if signed:
            D = D * torch.where(torch.arange(D.numel()).reshape(D.shape) % 3 == 0, -1, 1)
        Z, info = self.call(lambda: fastnmf.nnls(A, D, return_info=True))
        assert_factor(Z, (len(A), model.K), torch.float64)
        assert_codes(Z, A, D, exact=True, best_effort=True, penalised=False)
        assert (info.status == 0).all() or self.warned

    # dictionaries, copies and files

    @rule(model=models, data=st.data())
    def load_dictionary(self, model, data) -> None:
        fixed = {"n": model.K}
        D = data.draw(rows(self.d, **fixed), label="D").tensor()
        kept = D.clone()
        assert self.call(lambda: model.nmf.load_dictionary(D)) is model.nmf
        expected = kept.to(computed_in(kept.dtype))
        D.zero_()
        assert bits(model.nmf.get_dictionary()) == bits(expected)
        assert model.nmf.fitted
        assert model.nmf.fit_info_ is None
        assert model.nmf.online_info_ is None
        assert set(dict(model.nmf.named_buffers())) == {"D"}
        model.changed()

    @rule(model=models, dtype=st.sampled_from(("half", "bfloat16", "float", "double")))
    def change_dtype(self, model, dtype) -> None:
        before = dict(model.nmf.named_buffers())
        target = {"half": torch.float16, "float": torch.float32, "double": torch.float64}
        target = target.get(dtype, torch.bfloat16)
        # beyond what 16 bits hold
        if any(not F.to(target).isfinite().all() for F in before.values()):
            return
        before = {name: bits(F.to(target)) for name, F in before.items()}
        assert getattr(model.nmf, dtype)() is model.nmf
        assert {name: bits(F) for name, F in model.nmf.named_buffers()} == before
        model.changed()

    @rule(target=models, model=models, how=st.sampled_from(("deepcopy", "pickle", "torch.save")))
    def copies(self, model, how) -> Tracked:
        made = {"deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _through_torch}
        nmf = self.call(lambda: made[how](model.nmf))
        assert state_of(nmf, NAMES) == model.state
        return self.track(nmf, dict(model.options))

    @rule(target=models, model=models)
    def into_another_by_state_dict(self, model) -> Tracked:
        nmf, state = model.again(), model.nmf.state_dict()
        assert set(state) == ({"D"} if model.nmf.fitted else set())
        if model.nmf.fitted:
            self.call(lambda: nmf.load_state_dict(state))
            assert nmf.fitted
            assert bits(nmf.get_dictionary()) == bits(model.nmf.D)
            assert nmf.fit_info_ is None
        return self.track(nmf, dict(model.options))

    @rule(model=models, other=models)
    def into_one_there_is_by_state_dict(self, model, other) -> None:
        if not model.nmf.fitted or model is other:
            return
        state = model.nmf.state_dict()
        if model.K != other.K:
            self.refused(lambda: other.nmf.load_state_dict(state), (RuntimeError, InvalidInput))
            return
        self.call(lambda: other.nmf.load_state_dict(state))
        # as for any module, the dtype stays that of the model
        assert torch.equal(other.nmf.D.double(), model.nmf.D.to(other.nmf.D.dtype).double())
        assert other.nmf.D.data_ptr() != model.nmf.D.data_ptr()
        assert other.nmf.fit_info_ is None
        assert other.nmf.online_info_ is None
        other.changed()

    @rule(target=models, model=models, over=st.booleans())
    def save_and_load(self, model, over) -> Tracked:
        path = self.new(".safetensors")
        if over:
            path.write_bytes(b"before")
            self.accept(path)
        if not model.nmf.fitted:
            self.refused(lambda: model.nmf.save(path), NotFitted)
            return model
        self.call(lambda: model.nmf.save(path))
        self.accept(path)
        nmf = self.call(lambda: NMF.load(path))
        kept = {name: model.options[name] for name in STORED if name in model.options}
        for name in kept:
            assert getattr(nmf, name) == getattr(model.nmf, name)
        assert nmf.fitted
        D = model.nmf.D
        assert bits(nmf.D) == bits(D.to(computed_in(D.dtype)))
        assert repr(nmf.fit_info_) == repr(model.nmf.fit_info_)
        A = Rows(5, D.shape[1]).tensor()
        default = NMF(**kept).load_dictionary(D)
        assert bits(nmf.encode(A)) == bits(default.encode(A))
        return self.track(nmf, kept)

    # what is refused

    @rule(
        model=models,
        name=st.sampled_from(tuple(REFUSED)),
        method=st.sampled_from(("fit", "partial_fit", "encode", "load_dictionary", "nnls")),
    )
    def wrong_input(self, model, name, method) -> None:
        n = model.K if method == "load_dictionary" else 6
        A = REFUSED[name](Rows(n, self.d).tensor())
        sized = name in ("too large", "too small")
        if method in ("nnls", "load_dictionary") and (sized or name == "negative"):
            return
        D = model.nmf.D
        if sized and method == "partial_fit" and D is not None and D.dtype == torch.float64:
            # a batch is computed in the dtype of the dictionary, whose range has these squares
            return
        if method == "nnls":
            self.refused(lambda: fastnmf.nnls(A, torch.eye(self.d)))
        elif method == "encode":
            # rows of any number and shape have codes, of any size
            if name in ("no rows", "a vector", "4-D", "too large", "too small"):
                return
            self.refused(lambda: model.nmf.encode(A))
        else:
            # data that a batch cannot learn from are known once it has a start
            call = lambda: getattr(model.nmf, method)(A)  # noqa: E731
            self.refused(call, draws=not model.seeded)

    @rule(
        model=models,
        error=st.sampled_from((Stopped, KeyboardInterrupt, MemoryError, RuntimeError)),
        method=st.sampled_from(("fit", "partial_fit", "encode")),
    )
    def failing_batches(self, model, error, method) -> None:
        if not model.nmf.fitted and method == "encode":
            return
        batches = Failing(Rows(6, self.d).tensor(), error)
        width = model.nmf.D.shape[1] if model.nmf.fitted else self.d
        refusals = (InvalidInput,) if model.penalised or width != self.d else ()
        refusals += (InvalidInput,) if model.options.get("max_memory") else ()
        value = self.call(lambda: getattr(model.nmf, method)(batches), (error, *refusals))
        assert isinstance(value, BaseException)

    @rule(
        model=models,
        wrong=st.sampled_from(("a.txt", "missing/a", "folder", "input")),
        method=st.sampled_from(("codes", "checkpoint", "save", "encode", "decode")),
    )
    def wrong_output(self, model, wrong, method) -> None:
        A = Rows(6, self.d).tensor()
        suffix = ".safetensors" if method in ("checkpoint", "save") else ".npy"
        path = self.folder / (wrong if "." in wrong else wrong + suffix)
        given = A
        if wrong == "folder":
            path = self.folder
        elif wrong == "input":
            if method in ("save", "decode") or not model.nmf.fitted:
                return
            path = Path(self.given(A, "path" if suffix == ".npy" else "safetensors"))
            given = str(path)
        call = {
            "codes": lambda: model.nmf.fit(given, codes=path),
            "checkpoint": lambda: model.nmf.fit(given, checkpoint=path),
            "save": lambda: model.nmf.save(path),
            "encode": lambda: model.nmf.encode(given, codes=path),
            "decode": lambda: model.nmf.decode(torch.ones(3, model.K), path),
        }
        self.refused(call[method])

    @rule(model=models, how=st.sampled_from(("cut", "empty", "array", "no model")))
    def wrong_file(self, model, how) -> None:
        path = self.new(".safetensors")
        if how == "cut":
            NMF(2).load_dictionary(torch.rand(2, 3)).save(path)
            path.write_bytes(path.read_bytes()[:-7])
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "array":
            np.save(path.with_suffix(".npy"), np.ones((2, 3)))
            path = path.with_suffix(".npy").rename(path)
        else:
            CONTAINERS["safetensors"](torch.rand(3, self.d), path)
        self.accept(path)
        self.refused(lambda: NMF.load(path), InvalidInput)
        A = Rows(6, self.d).tensor()
        for resume in (False, True):
            self.refused(lambda resume=resume: model.nmf.fit(A, checkpoint=path, resume=resume))

    @rule(model=models)
    def wrong_state_dict(self, model) -> None:
        D = torch.rand(model.K, self.d)
        wrong = [{"D": D[None]}, {"D": torch.rand(model.K + 1, self.d)}]
        for state in wrong:
            call = lambda state=state: model.nmf.load_state_dict(state)  # noqa: E731
            self.refused(call, (RuntimeError, InvalidInput, TypeError))


def _pickled(nmf: NMF) -> NMF:
    return pickle.loads(pickle.dumps(nmf))


def _through_torch(nmf: NMF) -> NMF:
    file = io.BytesIO()
    torch.save(nmf, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@contextlib.contextmanager
def in_a_small_world() -> Iterator[None]:
    """Let max_memory be as small as the data here, Ctrl-C be what it is in a program, and no file
    wait for the disk: nothing here is lost with the power."""
    changes = [(memory, "_OVERHEAD", 0), (memory, "WORKSPACE_BYTES", 0), (memory, "LEAST_ROWS", 8)]
    changes.append((os, "fsync", lambda file: None))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, handler)
        stack.enter_context(warnings.catch_warnings())
        # those of `call` are read
        warnings.simplefilter("ignore", fastnmf.FastnmfWarning)
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        yield


def check(
    sequences: int, solver: str | None = None, seed: int | None = None, shorten: bool = True
) -> None:
    """Run random sequences of calls, the same ones every time, or those of a seed. shorten: whether
    to look for a shorter sequence that breaks the same rule, which may take minutes."""
    machine = type("Models", (Models,), {"solver": solver})
    if seed is not None:
        machine = hypothesis.seed(seed)(machine)
    chosen = settings(
        database=None,
        deadline=None,
        derandomize=seed is None,
        max_examples=sequences,
        phases=[phase for phase in Phase if shorten or phase != Phase.shrink],
        print_blob=False,
        stateful_step_count=30,
        suppress_health_check=list(HealthCheck),
    )
    # what there is already is not searched after each sequence
    gc.freeze()
    with in_a_small_world():
        run_state_machine_as_test(machine, settings=chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; one more for each")
    parser.add_argument("--solver", help="of all models; by default any")
    parser.add_argument("--as-found", action="store_true", help="do not look for shorter ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("fastnmf").setLevel(logging.CRITICAL)
    end, seed = time.monotonic() + 60 * arguments.minutes, arguments.seed
    while time.monotonic() < end:
        check(ROUND, arguments.solver, seed, not arguments.as_found)
        seed += 1
        sequences = ROUND * (seed - arguments.seed)
        print(f"{sequences:,} sequences, the last of seed {seed - 1}", flush=True)


if __name__ == "__main__":
    main()
