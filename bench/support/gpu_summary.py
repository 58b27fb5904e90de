"""The summary of the GPU study: what passed, what failed, and times beside those predicted and
beside Overcomplete's."""

from __future__ import annotations

from collections import Counter

from support.gpu_runner import Report
from support.gpu_theirs import OVERCOMPLETE, PLAIN

RACES = (
    "same bits twice failed: compute-sanitizer --tool racecheck python bench/studies/gpu.py "
    "--only 'PART' shows whether threads of a kernel race"
)


def summary(report: Report) -> str:
    """As text of several lines."""
    lines = ["", "Summary", *_ends(report), *_checks(report), *_times(report)]
    if any(check.get("same_bits") is False for check in report.failed):
        lines.append(RACES)
    return "\n".join(lines)


def _ends(report: Report) -> list[str]:
    counts = Counter(end.kind for end in report.ended.values())
    lines = ["parts: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())]
    lines += [
        f"  {end.kind}: {part}: {end.text}"
        for part, end in report.ended.items()
        if end.kind != "done"
    ]
    return lines


def _checks(report: Report) -> list[str]:
    failed = report.failed
    lines = [f"checks: {len(report.checks) - len(failed)} passed, {len(failed)} failed"]
    for check in failed:
        shown = {key: value for key, value in check.items() if key not in ("passed", "after")}
        lines.append(
            "  FAILED " + ", ".join(f"{key} {_short(value)}" for key, value in shown.items())
        )
    return lines


def _times(report: Report) -> list[str]:
    """A line for each of ours: measured, predicted, theirs."""
    timed = [result for result in report.results if "seconds" in result and "what" in result]
    them = {r["what"]: r for r in timed if r["contender"] in (OVERCOMPLETE, PLAIN)}
    rows = [
        ("what", "by", "measured", "predicted", "measured / predicted", "Overcomplete", "faster")
    ]
    for result in timed:
        what, seconds = result["what"], result["seconds"]
        if result["contender"] in (OVERCOMPLETE, PLAIN):
            continue
        predicted, theirs = result.get("predicted"), them.get(what)
        graph = {True: ", CUDA graph", False: ", no graph"}.get(result.get("graph"), "")
        rows.append(
            (
                what, result["contender"] + graph, _milliseconds(seconds),
                _milliseconds(predicted) if predicted else "",
                f"{seconds / predicted:.2f}" if predicted else "",
                _theirs(theirs) if theirs else "",
                f"{theirs['seconds'] / seconds:.1f} ×" if theirs else "",
            )
        )  # fmt: skip
    left = [f"  left out: {r['what']}: {r['left_out']}" for r in report.results if "left_out" in r]
    if len(rows) == 1:
        return left
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    notes = ["~: extrapolated. *: not Overcomplete itself, but the same in plain torch."]
    return ["", *table, *notes, *left]


def _theirs(result: dict) -> str:
    about = "~" if "measured_on" in result else ""
    star = "*" if result["contender"] == PLAIN else ""
    return about + _milliseconds(result["seconds"]) + star


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
