"""bench/studies/gpu.py: the loop over its parts, its processes, its bounds of errors, and what a
bare machine needs. What it checks is run in tests/kernels/interpreted, and it is rehearsed in
tests/kernels/test_rehearsal.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastnmf.backends.torch import REFERENCE

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import gpu_study_parts
from support import gpu_checks, gpu_extension, gpu_summary, loops
from support.gaussian import draw
from support.gpu_checks import Case
from support.gpu_runner import Event, Part, Report, run
from support.gpu_worker import Worker, events

ROOT = Path(__file__).parents[1]


class Clock:
    """An Executor whose parts take what `seconds` says of them, and the clock that they move."""

    def __init__(self, seconds):
        self.now, self.seconds, self.limits = 0.0, seconds, {}

    def __call__(self):
        return self.now

    def do(self, part, limit):
        self.limits[part.name] = limit
        self.now += min(limit, self.seconds[part.name])
        yield Event("overran" if self.seconds[part.name] > limit else "done")


def ends(report):
    return {part: event.kind for part, event in report.ended.items()}


def quiet(_):
    pass


def test_parts_run_within_the_minutes_and_those_that_do_not_fit_are_left_out():
    parts = [Part(name, seconds, quiet) for name, seconds in (("a", 60), ("b", 50), ("c", 20))]
    clock, report = Clock({"a": 80, "b": 50, "c": 30}), Report(None, quiet)
    run(parts, clock, report, 120, clock)
    assert ends(report) == {"a": "done", "b": "left out", "c": "done"}
    assert report.ended["b"].text == "it takes about 50 s, and 40 s are left"
    assert report.passed


def test_part_is_ended_after_three_times_its_estimate_or_at_the_end_of_the_minutes():
    parts = [Part(name, 20, quiet) for name in "ab"] + [Part("short", 1, quiet)]
    clock, report = Clock({"a": 1000, "b": 1000, "short": 19}), Report(None, quiet)
    run(parts, clock, report, 100, clock)
    assert clock.limits == {"a": 60, "b": 40}
    assert ends(report) == {"a": "overran", "b": "overran", "short": "left out"}
    assert clock.now == 100
    assert not report.passed
    clock = Clock({"short": 19})
    run(parts[2:], clock, report, 100, clock)
    assert clock.limits == {"short": 20}


def test_what_fails_does_not_end_the_others(tmp_path):
    """And each result is in the file when the next is computed."""
    path, seen = tmp_path / "results.jsonl", []

    def reads():
        yield {"value": 1}
        seen.append(path.read_text())
        raise ValueError("the second\nline")

    class Here:
        def do(self, part, limit):
            return events(part)

    parts = [Part("fails", 1, reads), Part("then", 1, gpu_study_parts.results(float("nan"), 2))]
    report = Report(path, quiet)
    run(parts, Here(), report, 100)
    report.close()
    assert json.loads(seen[0])["value"] == 1
    assert ends(report) == {"fails": "failed", "then": "done"}
    assert report.ended["fails"].text.startswith("ValueError: the second (test_gpu_study.py:")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("value", line.get("ended")) for line in lines] == [
        1,
        "failed",
        "nan",
        2,
        "done",
    ]
    assert not report.passed


@pytest.fixture
def worker():
    made = Worker(gpu_study_parts.load)
    yield made
    made.close()


def done(worker, name, limit=60):
    return list(worker.do(gpu_study_parts.load()[name], limit))


def test_parts_share_a_process_until_one_fails_in_it(worker):
    """An error of the device stays in its process."""
    first, second = (done(worker, name)[0].result["process"] for name in ("first", "second"))
    assert first == second != os.getpid()
    failed = done(worker, "fails")
    assert [event.kind for event in failed] == ["result", "failed"]
    assert "RuntimeError: CUDA error: an illegal memory access (gpu_study" in failed[1].text
    assert done(worker, "first")[0].result["process"] != first


def test_part_that_hangs_or_kills_its_process_ends_alone(worker):
    hung = done(worker, "hangs", limit=1)
    assert [event.kind for event in hung] == ["result", "overran"]
    died = done(worker, "dies")
    assert [event.kind for event in died] == ["result", "failed"]
    assert died[1].text == "its process ended with status 7"
    assert [event.kind for event in done(worker, "first")] == ["result", "done"]


def test_part_says_what_it_lacks(worker):
    assert done(worker, "needs more") == [Event("left out", text="there is no nvcc")]


def test_summary_puts_measured_beside_predicted_and_beside_overcomplete():
    report = Report(None, quiet)
    ours = {"what": "hals, 10 × 5, K = 3, high", "contender": "fastnmf (triton)", "seconds": 0.03}
    theirs = {**ours, "contender": "Overcomplete", "seconds": 9.0, "measured_on": "64 of 10,000"}
    check = {"check": "hals_block_", "off_by_bound": 7.25, "same_bits": False, "passed": False}
    for result in ({**ours, "predicted": 0.02}, theirs, check, {**check, "passed": True}):
        report.take("hals", Event("result", result), 1)
    report.take("hals", Event("done"), 1)
    report.take("slow", Event("overran", text="ended after 60 s"), 2)
    text = gpu_summary.summary(report)
    assert "30 ms     20 ms      1.50                  ~9 s          300.0 ×" in text
    assert "checks: 1 passed, 1 failed" in text
    assert "FAILED part hals, check hals_block_, off_by_bound 7.25, same_bits False" in text
    assert "overran: slow: ended after 60 s" in text
    assert "compute-sanitizer --tool racecheck" in text


def composed():
    """The operations in plain torch, the fused ones of products and the reference."""

    def mu_normal_(F, C, G, updated, sums, l1=0.0):
        updated.copy_(F)
        REFERENCE["mu_"](updated, C, G @ F + l1, sums)

    def mu_residual_(F, X, W, B, sums, l1=0.0, curvature=0.0):
        REFERENCE["mu_"](F, B @ X.to(B).T, B @ W.T + l1 + curvature * F, sums)

    def pgd_residual_(F, Y, E, B, step, l1=0.0, curvature=0.0):
        pgd(F, Y, l1 + curvature * Y - B @ E.T, step)

    def pgd_normal_(F, Y, C, G, step):
        pgd(F, Y, G @ Y - C, step)

    def pgd(F, Y, gradient, step):
        before, extrapolated = F.clone(), Y.clone()
        REFERENCE["pgd_"](before, extrapolated, gradient, step.length, step.momentum)
        step.next_F.copy_(before), step.next_Y.copy_(extrapolated)

    fused = (mu_normal_, mu_residual_, pgd_normal_, pgd_residual_)
    return {**REFERENCE, **{op.__name__: op for op in fused}}


def off(case, ops, tf32=False):
    return gpu_checks.exact(case, "cpu", tf32).off(*gpu_checks.called(case, ops, "cpu"))


@pytest.mark.parametrize("case", gpu_checks.cases(((40, 30, 7), (24, 48, 200))), ids=str)
def test_float32_is_within_the_bounds_and_not_far_below(case):
    """So that a bound that is too wide is found."""
    found = off(case, composed())
    assert found == 0 if case.name == "round_tf32_" else 2e-3 < found <= 1


@pytest.mark.parametrize("name", ["hals_block_", "hals_sweep_"])
def test_sums_in_another_order_are_within_the_bounds_at_1024_concepts(name):
    """Where two orders of summing differ by 1.4e-5 of F."""
    case = Case(name, "", (96, 768, 1024), True)
    assert off(case, composed()) <= 1


def rounded(X):
    """To the nearest tf32."""
    return ((X.contiguous().view(torch.int32) + 0x1000) & -8192).view(torch.float32)


def forgets_a_concept(op):
    def forgetful(F, C, G, *more):
        G = G.clone()
        G[-1, 0] = 0
        op(F, C, G, *more)

    return forgetful


def in_tf32(op):
    def coarse(F, X, W, *more):
        op(F, rounded(X), rounded(W), *more)

    return coarse


def cuts_off_nothing(op):
    def signed(F, C, G, *more):
        op(F, C - 2 * C.amax(), G, *more)
        F -= 1e-3

    return signed


def leaves_sums(op):
    def silent(*given):
        op(*given[:-1], torch.zeros_like(given[-1]))

    return silent


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("hals_block_", forgets_a_concept),
        ("hals_block_", in_tf32),
        ("hals_block_", leaves_sums),
        ("hals_sweep_", forgets_a_concept),
        ("hals_sweep_", in_tf32),
        ("hals_sweep_", cuts_off_nothing),
        ("mu_residual_", in_tf32),
        ("mu_normal_", in_tf32),
        ("pgd_residual_", lambda op: lambda F, Y, E, B, step: op(F, Y, 1.0001 * E, B, step)),
        ("pgd_normal_", lambda op: lambda F, Y, C, G, step: op(F, Y, rounded(C), G, step)),
        ("round_tf32_", lambda op: lambda out, X: op(out, X * 1.0001)),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_what_is_wrong_is_found(name, fault):
    case, ops = Case(name, "", (60, 50, 40), True), composed()
    assert off(case, ops) <= 1
    ops[name] = fault(ops[name])
    assert off(case, ops) > 2


def test_a_number_that_is_not_written_is_found():
    case = Case("mu_normal_", "", (60, 50, 40), True)
    assert off(case, {**composed(), "mu_normal_": lambda *_: None}) == torch.inf


@pytest.mark.parametrize("name", ["mu_residual_", "pgd_residual_", "mu_normal_"])
def test_a_penalty_that_is_left_out_is_found_in_either_precision(name):
    case, ops = Case(name, " penalised", (60, 50, 40), True), composed()
    ops[name] = lambda *given, plain=ops[name]: plain(*given[:5])
    for tf32 in (False, True):
        assert off(replace(case, variant=""), ops, tf32) <= 1
        assert off(case, ops, tf32) > 2


def test_plain_torch_does_what_overcomplete_does():
    """Or, where it is not installed, what autograd does."""
    A, Z, D = draw(30, 12, 5, "cpu")
    mine = loops.overcomplete_adam(A, Z.clone(), D.clone(), 3)
    both = [torch.nn.Parameter(X.clone()) for X in (Z, D)]
    optimizer = torch.optim.Adam(both, lr=5e-2, weight_decay=1e-5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.mean(torch.square(A - both[0] @ both[1])).backward()
        optimizer.step()
        with torch.no_grad():
            _ = [X.clamp_(min=0) for X in both]
    torch.testing.assert_close(mine, tuple(X.detach() for X in both))
    nmf = pytest.importorskip("overcomplete.optimization.nmf", exc_type=ImportError)
    theirs = nmf._one_step_hals(A, Z.clone(), D.clone())
    torch.testing.assert_close(loops.overcomplete_hals(A, Z.clone(), D.clone()), theirs)
    torch.testing.assert_close(
        loops.overcomplete_mu(A, Z, D), nmf._one_step_multiplicative_rule(A, Z, D)
    )
    theirs = nmf.hierarchical_als(A, Z.clone(), D.clone(), max_iter=3, tol=0)
    given = loops.overcomplete_hals, A, Z.clone(), D.clone(), 3
    torch.testing.assert_close(loops.overcomplete_fit(*given), theirs)


def test_without_nvcc_the_reason_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "there was no nvcc to build it with" in gpu_extension.build(tmp_path / "built")


def test_build_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_extension, "BUILD_SECONDS", 0.01)
    assert "took more than" in gpu_extension.build(tmp_path / "built")


def test_what_could_not_be_built_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_extension, "installed", lambda: False)
    monkeypatch.setattr(gpu_extension, "WAIT_SECONDS", 0.0)
    assert "still being built" in gpu_extension.missing(tmp_path)
    (tmp_path / "done").write_text("nvcc failed")
    assert gpu_extension.missing(tmp_path) == "nvcc failed"


BARE = """
import importlib.metadata as metadata, re, sys

def needed(name, found):
    if name in found:
        return found
    try:
        requires = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return found
    found.add(name)
    for line in requires:
        if "extra ==" not in line:
            needed(re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-"), found)
    return found

kept = set.union(*(needed(name, set()) for name in ("torch", "triton", "numpy"))) | {"fastnmf"}
lacking = {
    module for module, packages in metadata.packages_distributions().items()
    if not any(name.lower().replace("_", "-") in kept for name in packages)
}

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in lacking:
            raise ModuleNotFoundError(f"No module named {name!r} on a bare machine", name=name)

sys.meta_path.insert(0, Refusing())
"""


@pytest.mark.thorough
def test_study_needs_torch_and_triton_only(tmp_path):
    """Its parts are listed, and a fit and a check run, where nothing else can be imported."""
    pytest.importorskip("triton", reason="triton is not installed")
    (tmp_path / "sitecustomize.py").write_text(BARE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1"}
    study = ROOT / "bench" / "studies" / "gpu.py"
    checks = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r})",
            "from support import gpu_checks, gpu_nnls, gpu_theirs, gpu_times",
            "from support.gpu_sizes import SMALL",
            "case = gpu_checks.Case('mu_normal_', '', (6, 5, 3), True)",
            "assert all(check['passed'] for check in gpu_checks.checked(case, 'cpu'))",
            "assert all(check['passed'] for check in gpu_nnls.checks(SMALL.nnls, 'torch', 'cpu'))",
            "assert [*gpu_nnls.fits(SMALL.exact_fits, 'torch', 'cpu')]",
            "from fastnmf import NMF",
            "NMF(3, tol=0).fit(gpu_times.draw(6, 5, 3, 'cpu')[0], max_iter=2)",
            "assert [*gpu_theirs.note()]",
            "assert 'pytest' not in sys.modules",
        ]
    )
    said = ""
    for command in ([str(study), "--list"], ["-c", checks]):
        ran = subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert ran.returncode == 0, ran.stderr
        said += ran.stdout
    assert "hals, 10,000 concepts, high" in said
