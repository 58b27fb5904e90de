"""bench/studies/gpu.py from end to end, in small, on a pretended device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "bench" / "studies" / "gpu.py"
pytestmark = pytest.mark.thorough


def test_study_is_rehearsed_from_end_to_end(tmp_path):
    """Every part runs, every check passes, and the output says that times mean nothing."""
    pytest.importorskip("triton", reason="triton is not installed")
    lines, environment = tmp_path / "lines.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(STUDY), "--rehearse", "--json", str(lines)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    ends = {one["part"]: one["ended"] for one in found if "ended" in one}
    assert set(ends.values()) == {"done"}
    assert len(ends) == 23
    assert all(one["passed"] for one in found if "check" in one)
    timed = {one["part"] for one in found if "seconds" in one and "what" in one}
    assert {"hals, 10,000 concepts, high", "few concepts", "streamed data", "nnls"} <= timed
    kinds = {kind for one in found for kind in ("check", "what", "piece", "note") if kind in one}
    assert kinds == {"check", "what", "piece", "note"}
    assert ran.stdout.count("times mean nothing") == 2
    assert "measured / predicted" in ran.stdout
