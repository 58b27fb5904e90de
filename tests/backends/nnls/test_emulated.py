"""The CUDA solver of exact least squares without a GPU: compiled for the CPU, where one thread
runs all lanes in turn (tests/emulated_cuda). It shows no timing."""

from __future__ import annotations

import pytest
import torch
from emulated import build, installed
from nnls_problems import (
    EVERY_FAMILY,
    EVERY_SEARCH,
    EVERY_WORKING_SET,
    assert_cap_is_reported,
    assert_nothing_strange_is_solved,
    assert_same_work,
    assert_solved,
    assert_solved_from_garbage,
    assert_solved_from_other_data,
    assert_working_sets_solve,
    family,
)

import fastnmf
from fastnmf import NMF, Tuning
from fastnmf.backends.nnls.result import workspace_share
from fastnmf.backends.pointers import NnlsLimits, nnls_arguments, view
from fastnmf.solvers.registry import SOLVERS

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="session")
def built(once):
    """The path of the extension, compiled for the CPU against emulated_cuda. One for all tests: a
    second, of another path, would not be loaded."""
    return once("emulated", build) / "_cuda.so"


@pytest.fixture
def emulated(built):
    """The backend `cuda`, on the CPU, on an emulated device."""
    with installed(built) as found:
        yield found


# GPUs with float64 at half the rate of float32, and at a 64th
EVERY_CARD = pytest.mark.parametrize("ratio", [2, 64], ids=["full_float64", "slow_float64"])
DTYPES_AND_CARDS = [("float32", 2), ("float32", 64), ("float64", 2)]


@EVERY_CARD
@EVERY_FAMILY
def test_nnls_satisfies_the_kkt_conditions(name, dtype, ratio, emulated):
    emulated["ratio"] = ratio
    assert_solved(name, dtype, "cuda", n=8)
    # a draft in float32, and the rows that it leaves unsolved
    assert emulated["launches"] == (2 if dtype == "float32" and ratio == 64 else 1)


@pytest.mark.parametrize(("dtype", "ratio"), DTYPES_AND_CARDS)
def test_nnls_is_exact_from_any_start(dtype, ratio, emulated):
    emulated["ratio"] = ratio
    assert_solved_from_garbage(dtype, "cuda", n=8)
    assert_solved_from_other_data("cuda", n=8)


@EVERY_WORKING_SET
def test_working_sets_end_at_the_solution(name, dtype, warm, shared, emulated, monkeypatch):
    assert_working_sets_solve((name, dtype, warm, shared), "cuda", monkeypatch)


@EVERY_CARD
@pytest.mark.parametrize("max_iter", [0, 4])
def test_nnls_reports_rows_that_meet_the_cap(max_iter, ratio, emulated):
    emulated["ratio"] = ratio
    assert_cap_is_reported(max_iter, "cuda")


@EVERY_CARD
def test_rows_that_are_not_finite_are_never_solved(ratio, emulated):
    emulated["ratio"] = ratio
    assert_nothing_strange_is_solved("cuda")


@EVERY_SEARCH
def test_max_iter_means_the_work_that_it_does_on_torch(n, d, K, signed, emulated):
    assert_same_work(n, d, K, signed, "cuda")


# a warp for each row, and a block; shared memory for none, some and all of the factor
@pytest.mark.parametrize("concepts", [90, 120])
@pytest.mark.parametrize("shared", [64, 5000, 30_000, 200_000])
def test_nnls_has_the_same_bits_wherever_its_factor_is_stored(concepts, shared, emulated):
    A, D = family("zero_residual", n=4, d=100, K=concepts)
    expected = fastnmf.nnls(A, D, backend="cuda")
    emulated["shared"], emulated.most = shared, 0
    assert torch.equal(fastnmf.nnls(A, D, backend="cuda"), expected)
    assert emulated["blocks"] == 1
    assert emulated["threads"] == (32 if concepts == 90 else 128)


def workspace_of_a_row(K, q=None):
    """Bytes of a row on all of K concepts, or on a working set of q."""
    F, G = torch.empty(K, 1), torch.empty(K, K)
    index = None if q is None else torch.zeros(1, q, dtype=torch.int32)
    scale = torch.empty(K, dtype=torch.float64)
    gram, report = (G, scale, index), torch.empty(1, 4, dtype=torch.float64)
    rows = nnls_arguments(F, torch.empty(K, 1), gram, report, False, None)
    # less the counter of rows
    return fastnmf._cuda.nnls_workspace(*rows, 0)[0] - 256


@pytest.mark.parametrize("K", [2_000, 10_000])
def test_plan_counts_the_rows_whose_workspaces_fit(K, emulated):
    emulated["shared"] = 227 << 10
    expected = workspace_share(150 * 10**9) / workspace_of_a_row(K)
    # the plan does not subtract what lies in shared memory
    assert SOLVERS["anls"].rows_at_once(K, 150 * 10**9) == pytest.approx(expected, rel=0.1)


def test_working_sets_of_many_concepts_fill_a_card_that_full_searches_leave_idle(emulated):
    emulated["shared"] = 227 << 10
    share, processors = workspace_share(150 * 10**9), 132
    assert share / workspace_of_a_row(10_000) < processors / 2
    # 128 concepts and a support of 500
    assert share / workspace_of_a_row(10_000, 628) > 32 * processors


def arguments(K=7, m=5, dtype=torch.float64):
    """The arguments of nnls by name, G and scale separately, and the tensors behind them."""
    B = torch.rand(K, 12, dtype=dtype, generator=torch.Generator().manual_seed(0))
    B /= B.norm(dim=1, keepdim=True)
    kept = {
        "F": torch.zeros(K, m, dtype=dtype),
        "C": B @ torch.rand(12, m, dtype=dtype),
        "G": B @ B.T,
        "scale": torch.ones(K, dtype=torch.float64),
        "report": torch.full((m, 4), torch.nan, dtype=torch.float64),
        "sums": torch.full((m, 2), torch.nan, dtype=torch.float64),
        "workspace": torch.full((1 << 20,), 0x5A, dtype=torch.uint8),
    }
    given = {name: view(tensor) for name, tensor in kept.items()}
    given["workspace"] = view(kept["workspace"][: 1 << 19])
    limits = NnlsLimits(False, 1e-12, 1e-11, 99, K, 4)
    return given | {"limits": limits, "place": (0, 0)}, kept


def grouped(given):
    """The arguments as the extension takes them."""
    given = dict(given)
    return {"gram": (given.pop("G"), given.pop("scale"), None), **given}


def solve(emulated, given, **changes):
    emulated.module.nnls(**grouped(given | changes))


def workspace_bytes(emulated, given):
    names = ("F", "C", "gram", "limits", "report")
    return emulated.module.nnls_workspace(*(grouped(given)[name] for name in names), 0)


@pytest.mark.parametrize("K", [7, 150])
@pytest.mark.parametrize(("dtype", "ratio"), DTYPES_AND_CARDS)
def test_nnls_stays_inside_its_workspace(dtype, ratio, K, emulated):
    emulated["ratio"] = ratio
    given, kept = arguments(K, dtype=getattr(torch, dtype))
    least, most = workspace_bytes(emulated, given)
    for size, blocks in ((least, 1), ((least + most) // 2, None), (most, 4), (1 << 19, 4)):
        kept["workspace"].fill_(0x5A)
        solve(emulated, given, workspace=view(kept["workspace"][:size]))
        assert blocks is None or emulated["blocks"] == blocks
        assert (kept["workspace"][min(size, most) :] == 0x5A).all()
    with pytest.raises(ValueError, match=f"workspace has {least - 1} bytes: at least {least} "):
        solve(emulated, given, workspace=view(kept["workspace"][: least - 1]))


def at(address):
    """A change of a view: elsewhere."""
    return lambda old: (address, *old[1:])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("F", lambda old: (*old[:3], "float16"), "F has dtype 'float16'"),
        ("limits", lambda old: old._replace(capacity=0), "capacity = 0"),
        ("limits", lambda old: old._replace(max_steps=-1), "max_steps = -1"),
        ("G", at(0), "G is a null pointer"),
        ("sums", at(0), "sums is a null pointer"),
        ("workspace", at(8), "workspace = 8 is not aligned to 16"),
        ("scale", at(4), "scale = 4 is not aligned to 8"),
        ("C", lambda old: (*old[:2], (0, 1), old[3]), r"C \(7, 5\) has strides \(0, 1\)"),
        ("sums", lambda old: (old[0], (5, 1), *old[2:]), r"sums has shape \(5, 1\): \(5, 2\) is"),
        ("place", lambda old: (1, 0), "F is not in the memory of CUDA device 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nnls_refuses_wrong_arguments(name, change, message, emulated):
    given, _kept = arguments()
    with pytest.raises(ValueError, match=message):
        solve(emulated, given, **{name: change(given[name])})
    assert emulated["current"] == 0


@pytest.mark.parametrize("name", ["F", "C", "G", "scale", "report", "sums", "workspace"])
def test_nnls_refuses_memory_of_the_host(name, emulated):
    given, _kept = arguments()
    emulated["host address"] = given[name][0]
    with pytest.raises(ValueError, match=f"^{name} is not in the memory of CUDA device 0"):
        solve(emulated, given)
    emulated["host address"] = 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("cudaFuncGetAttributes", "nnls: no kernel for this device"),
        ("cudaOccupancyMaxActiveBlocksPerMultiprocessor", "nnls: occupancy"),
        ("cudaMemsetAsync", "nnls: counter"),
        ("cudaLaunchKernel", "nnls: launch"),
    ],
)
def test_nnls_names_the_call_that_failed(call, message, emulated):
    given, _kept = arguments()
    emulated[call] = 1
    with pytest.raises(RuntimeError, match=f"CUDA, {message}: it was set to fail"):
        solve(emulated, given)
    del emulated[call]
    with pytest.raises(RuntimeError, match="CUDA, device 7: "):
        solve(emulated, given, place=(7, 0))


def test_nnls_runs_on_the_stream_of_the_caller_and_leaves_the_device_as_it_was(emulated):
    given, kept = arguments()
    emulated["current"] = 1
    solve(emulated, given, place=(0, 12_345))
    assert emulated["stream"] == 12_345
    assert emulated["current"] == 1
    assert (kept["report"][:, 2] <= 1e-12).all()


@pytest.mark.parametrize("where", ["C", "G", "F"])
@pytest.mark.parametrize(
    ("K", "value", "dtype", "ratio"),
    [
        (7, torch.nan, "float32", 2),
        (7, torch.inf, "float32", 64),
        (7, torch.nan, "float64", 2),
        (150, torch.inf, "float32", 2),
        (150, torch.nan, "float32", 64),
        (150, torch.nan, "float64", 2),
    ],
)
def test_lanes_agree_where_numbers_are_not_finite(K, value, dtype, ratio, where, emulated):
    """Lanes computed different maxima of a NaN, and a warp would have waited for ever."""
    emulated["ratio"] = ratio
    for warm in (False, True):
        given, kept = arguments(K, dtype=getattr(torch, dtype))
        kept["F"][::2] = 0.5
        kept[where][2, 3] = value
        kept[where][K - 1, 0] = value
        solve(emulated, given, limits=given["limits"]._replace(warm=warm))


def test_empty_is_left_alone(emulated):
    for K, m in ((0, 5), (5, 0)):
        given, _kept = arguments(K, m)
        given["limits"] = given["limits"]._replace(capacity=1)
        solve(emulated, given)
        assert workspace_bytes(emulated, given) == (0, 0)


@EVERY_CARD
def test_sums_of_large_codes_are_finite(ratio, emulated):
    """Squares of numbers near the largest of float32 were summed in float32."""
    emulated["ratio"] = ratio
    given, kept = arguments(dtype=torch.float32)
    kept["C"] *= 1e30
    solve(emulated, given)
    expected = kept["F"].double().square().sum(0)
    torch.testing.assert_close(kept["sums"][:, 1], expected)
    torch.testing.assert_close(kept["sums"][:, 0], expected)


@EVERY_CARD
@pytest.mark.parametrize("form", ["normal", "residual"])
def test_a_fit_ends_where_that_of_torch_does(form, ratio, emulated):
    emulated["ratio"] = ratio
    A = torch.rand(60, 40, generator=torch.Generator().manual_seed(0))
    options = {"solver": "anls", "tol": 0, "max_iter": 3, "seed": 0, "init": "random"}
    errors = {}
    for backend in ("cuda", "torch"):
        model = NMF(12, backend=backend, tuning=Tuning(form=form), **options)
        model.fit(A)
        assert model.fit_info_.backend == backend
        errors[backend] = model.fit_info_.relative_error
    assert errors["cuda"] == pytest.approx(errors["torch"], rel=1e-4)
