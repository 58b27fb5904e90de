"""What must hold of models and of what their methods return, computed from inputs in float64."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle import objective
from precisions import told
from scipy.optimize import nnls as scipy_nnls
from torch import Tensor

from fastnmf import NMF
from fastnmf.results.info import FitInfo

# of ‖A‖, or of the error itself: by how much a reported error may be off
ERROR, SHARE = 1e-6, 0.01
# of ‖a‖²: by how much codes may be worse than they must be, for rounding
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}
# options that a model file has
STORED = ("nb_concepts", "solver", "tol", "alpha_Z", "alpha_D", "l1_ratio", "unit_norm")


def bits(F: Any) -> Any:
    """What is equal where a tensor has the same dtype, shape and bits."""
    if not isinstance(F, Tensor):
        return F
    flat = F.detach().contiguous().flatten().view(torch.uint8)
    return str(F.dtype), tuple(F.shape), flat.numpy().tobytes()


def fields(info: Any) -> Any:
    """A summary as values that are equal where it is; NaN is equal to NaN."""
    return repr(dataclasses.asdict(info)) if dataclasses.is_dataclass(info) else info


def without_times(info: FitInfo) -> dict[str, Any]:
    """What two fits with the same bits must have in common."""
    values = info.as_dict()
    history = [
        {name: repr(value) for name, value in one.items() if name != "seconds"}
        for one in values.pop("history")
    ]
    left = ("seconds", "codes", "passes", "chunk_rows")
    return {name: repr(value) for name, value in values.items() if name not in left} | {
        "history": history
    }


def state_of(model: NMF, names: tuple[str, ...]) -> dict[str, Any]:
    """All of a model that a failed call, or a call of another model, must leave as it is."""
    state = {name: bits(buffer) for name, buffer in model.named_buffers()}
    state |= {name: repr(getattr(model, name)) for name in names}
    state |= {"fitted": model.fitted, "D is": model.D is not None}
    infos = {name: fields(getattr(model, name)) for name in ("fit_info_", "online_info_")}
    return state | infos | {"repr": repr(model)}


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def environment() -> dict[str, Any]:
    """What no call may change."""
    return {
        "folder": os.getcwd(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "precision": told(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "torch's numbers": torch.get_rng_state().numpy().tobytes(),
        "NumPy's numbers": np.random.get_state()[1].tobytes(),
        "Python's numbers": random.getstate(),
    }


def open_files(folder: Path) -> list[str]:
    """The files in a folder that this process has open, where the system lists them."""
    links = Path("/proc/self/fd")
    found = (
        [os.readlink(link) for link in links.iterdir() if link.exists()] if links.exists() else []
    )
    return [name for name in found if name.startswith(str(folder))]


def computed_in(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def assert_factor(F: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert isinstance(F, Tensor)
    assert (tuple(F.shape), F.dtype) == (shape, dtype)
    assert F.is_contiguous()
    assert not F.requires_grad
    assert bool(F.isfinite().all()), "not finite"
    assert bool((F >= 0).all()), "negative"


def assert_close_error(reported: float, true: float) -> None:
    assert abs(reported - true) <= max(ERROR, SHARE * true), (reported, true)


def errors_of(A: Tensor, Z: Tensor, D: Tensor) -> np.ndarray:
    """‖a − z D‖ of each row."""
    A, Z, D = (M.detach().double().numpy() for M in (A, Z, D))
    return np.linalg.norm(A - Z @ D, axis=1)


def least_errors(A: Tensor, D: Tensor) -> np.ndarray:
    """The least ‖a − z D‖ over z ≥ 0 of each row."""
    A, D = (M.detach().double().numpy() for M in (A, D))
    # by the largest entry first: squares of small ones vanish
    largest = np.abs(D).max(axis=1)
    unit = D[largest > 0] / largest[largest > 0][:, None]
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    found = []
    for a in A:
        size = np.linalg.norm(a)
        if size == 0 or len(unit) == 0:
            found.append(size)
            continue
        try:
            found.append(size * scipy_nnls(unit.T, a / size, maxiter=200 * len(unit))[1])
        except RuntimeError:
            found.append(0.0)
    return np.array(found)


def assert_summary(
    info: FitInfo, A: Tensor, Z: Tensor | None, D: Tensor, options: dict[str, Any], codes: str
) -> None:
    """Whether a summary is true of the factors that were returned."""
    (n, d), K = A.shape, len(D)
    assert (info.n, info.d, info.nb_concepts) == (n, d, K)
    assert f"torch.{info.dtype}" == str(D.dtype)
    assert info.solver == options["solver"]
    assert info.iterations == len(info.history) <= options["max_iter"]
    assert [one.iteration for one in info.history] == list(range(1, info.iterations + 1))
    seconds = [one.seconds for one in info.history]
    assert seconds == sorted(seconds)
    assert all(one.relative_change >= 0 for one in info.history)
    assert info.converged == (info.stopped_by in ("tol", "error"))
    if info.stopped_by == "max_iter":
        assert info.iterations == options["max_iter"]
    if info.converged:
        assert options["tol"] > 0
        assert info.iterations > 0
    A64, D64 = A.double().numpy(), D.double().numpy()
    size = np.linalg.norm(A64)
    if Z is None:
        assert info.codes == "not kept"
        if size:
            least = np.linalg.norm(least_errors(A, D)) / size
            assert info.relative_error >= least - max(ERROR, SHARE * least)
        return
    Z64 = Z.double().numpy()
    true = np.linalg.norm(A64 - Z64 @ D64) / size if size else 0.0
    assert_close_error(info.relative_error, true)
    used, alive = Z64 > 0, (Z64 > 0).any(0) & (D64 > 0).any(1)
    assert info.dead_concepts == K - alive.sum()
    assert abs(info.mean_l0 - used.sum() / n) < 1e-9
    assert info.l0_most == used.sum(1).max()
    assert sum(info.l0_histogram) == n
    # squares of the smallest numbers are zero
    if not alive.any() or (Z64.max(0) * D64.max(1)).max() > 1e-140:
        assert abs(sum(info.energy) - (1 if alive.any() else 0)) < 1e-6
    assert -1e-6 <= info.hoyer <= 1 + 1e-6
    assert 0 <= info.near_duplicates < K
    spread = np.square(A64 - A64.mean(0)).sum() / size**2 if size else 0.0
    if spread > 1e-6:
        allowed = (2 * SHARE * true**2 + 3 * ERROR * true + ERROR**2) / spread
        assert abs(info.r_squared - (1 - true**2 / spread)) <= allowed + 1e-5
    penalties = info.alpha_Z, info.alpha_D, info.l1_ratio
    expected = objective(A64, Z64, D64, *penalties)
    assert abs(info.objective - expected) <= 3 * SHARE * expected + ERROR * size**2 + 1e-40
    if info.unit_norm:
        norms = np.linalg.norm(D64, axis=1)
        # a concept that no row uses may have any norm
        assert np.allclose(norms[alive], 1, atol=1e-5)
    if info.iterations and not any(penalties[:2]) and options.get("init", "auto") != "given":
        assert true <= 1 + 1e-5


def assert_warnings(given: list[str], info: FitInfo, options: dict[str, Any]) -> None:
    """Whether a fit warned of what its summary says, and of nothing else."""
    begun, K = info.iterations > 0, info.nb_concepts
    dead = begun and info.dead_concepts == K and info.relative_error > 0
    expected = {
        "not converged": begun and options["tol"] > 0 and info.stopped_by == "max_iter",
        "penalises one factor alone": not info.unit_norm
        and (info.alpha_Z > 0) != (info.alpha_D > 0),
        "concepts are dead": dead,
        "by their mean": begun and not dead and info.r_squared < 0,
    }
    for words, is_expected in expected.items():
        assert any(words in one for one in given) == is_expected, (words, given)
    # half-steps that exact solvers leave unsolved are warned of once
    others = [one for one in given if not any(words in one for words in expected)]
    assert len(others) <= (info.solver == "anls"), others


def assert_codes(
    Z: Tensor, A: Tensor, D: Tensor, *, exact: bool, best_effort: bool, penalised: bool
) -> None:
    """Codes of rows (n, d): never worse than zero codes, zero for zero rows, and for an exact
    solver as good as the best. best_effort: whether they start from the default and iterated."""
    rounding = ROUNDING[Z.dtype]
    size = np.linalg.norm(A.double().numpy(), axis=1)
    squares = errors_of(A, Z, D) ** 2
    if best_effort and not penalised:
        assert (squares <= size**2 * (1 + rounding)).all(), "worse than zero codes"
        least = least_errors(A, D) ** 2
        assert (squares >= least - rounding * size**2).all()
        if exact:
            assert (squares <= least + rounding * size**2).all(), "not the optimum"
    if best_effort:
        assert not Z[torch.from_numpy(size == 0)].any(), "codes of zero rows"
