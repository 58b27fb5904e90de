"""What quality.py reports of the courses in its results: medians over seeds."""

from __future__ import annotations

import math
import statistics

from support.tables import OURS, first_of, markdown, ratio_text, seconds_text

# above the least error that any library reached, and above the last error of a library
STATED, NEAR_LAST = (0.01, 0.001), 0.001


def least_error(entries: list[dict], data: str, seed: int) -> float:
    """The least error that any library reached on a data set with a seed."""
    found = [entry for entry in entries if entry["data"] == data and entry["seed"] == seed]
    return min((error for entry in found for _, error in entry["points"]), default=math.inf)


def seconds_to(entry: dict, error: float) -> float:
    """When the course first had at most this error; infinite where it never had."""
    return next((seconds for seconds, found in entry["points"] if found <= error), math.inf)


def last_error(entry: dict) -> float:
    return entry["points"][-1][1] if entry["points"] else math.inf


def median(values: list[float]) -> float | None:
    """None where it is infinite."""
    found = statistics.median(values)
    return found if found < math.inf else None


def summaries(entries: list[dict]) -> list[dict]:
    """Medians over the seeds of each library on each data set; None for what was not reached.

    settled: the seconds that the library and fastnmf took to 0.1 % above the library's last error.
    """
    lines = []
    for data in first_of(entries, "data"):
        of_data = [entry for entry in entries if entry["data"] == data]
        for contender in sorted(first_of(of_data, "contender"), key=lambda name: name != OURS):
            lines.append(summary(of_data, data, contender))
    return lines


def summary(of_data: list[dict], data: str, contender: str) -> dict:
    """One line: the medians of one library; of_data: all entries of the data set."""
    least = {seed: least_error(of_data, data, seed) for seed in first_of(of_data, "seed")}
    own = {entry["seed"]: entry for entry in of_data if entry["contender"] == OURS}
    found = [entry for entry in of_data if entry["contender"] == contender]
    times = [[seconds_to(e, (1 + above) * least[e["seed"]]) for e in found] for above in STATED]
    ends = [(1 + NEAR_LAST) * last_error(e) for e in found]
    pairs = [
        (seconds_to(e, end), seconds_to(own[e["seed"]], end))
        for e, end in zip(found, ends, strict=True)
    ]
    return {
        "title": found[0]["title"],
        "contender": contender,
        "seconds": [median(each) for each in times],
        "reached": [sum(map(math.isfinite, each)) for each in times],
        "seeds": len(found),
        "final_error": median([last_error(e) for e in found]),
        "settled": [median(each) for each in zip(*pairs, strict=True)],
        "iterations": statistics.median(e["iterations"] for e in found),
    }


def table(lines: list[dict], limits: tuple[float, float]) -> str:
    """limits: the seconds that a fit of ours and of another library was given."""
    rows = []
    for line in lines:
        ours, error = line["contender"] == OURS, line["final_error"]
        limit = limits[not ours]
        rows.append(
            [
                line["title"],
                f"**{OURS}**" if ours else line["contender"],
                *(f"> {limit:g} s" if s is None else seconds_text(s) for s in line["seconds"]),
                f"{', '.join(map(str, line['reached']))} of {line['seeds']}",
                "none" if error is None else f"{error:.5f}",
                f"{line['iterations']:,.0f}",
                "" if ours else to_last_error_text(line),
                *(best_text(line, lines, which, limits) if ours else "" for which in (0, 1)),
            ]
        )
    header = ["data", "library", "to 1 %", "to 0.1 %", "seeds that reached it", "last error"]
    ratios = ["ours to its last error", "best other / ours, 1 %", "0.1 %"]
    return markdown([*header, "iterations", *ratios], rows)


def to_last_error_text(line: dict) -> str:
    its, ours = line["settled"]
    if its is None:
        return "no iteration ended"
    return "not reached" if ours is None else f"{seconds_text(ours)} ({ratio_text(its / ours)})"


def best_text(ours: dict, lines: list[dict], which: int, limits: tuple[float, float]) -> str:
    """The median time of the fastest other library divided by ours.

    A bound where one of the two did not reach that error in time.
    """
    others = [line for line in lines if line["title"] == ours["title"] and line is not ours]
    reached = [line["seconds"][which] for line in others if line["seconds"][which] is not None]
    own = ours["seconds"][which]
    if own is None and not reached:
        return "-"
    bound = "< " if own is None else "" if reached else "> "
    return bound + ratio_text(min(reached, default=limits[1]) / (own or limits[0]))


def explanation(seeds: int, limits: tuple[float, float], clock: str) -> str:
    ours, others = (f"{limit:g} s" for limit in limits)
    given = ours if ours == others else f"{others} ({OURS}: {ours})"
    return (
        f"Medians of {clock} time over {seeds} seed{'s' if seeds > 1 else ''}. To 1 % and 0.1 %: "
        f"above the least error that any library reached in {given} on the same data with the same "
        f"seed (> {others}: not reached with half of the seeds or more). Last error: that after "
        f"all iterations. Ours to its last error: how long {OURS} takes to that error plus "
        f"{NEAR_LAST:.1%}, and how many times as long the library took."
    )
