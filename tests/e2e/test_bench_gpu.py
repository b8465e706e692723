"""bench/gpu.py on a CPU, with a small shape: every step that it takes on a GPU, but for the speed-ups."""

import json
import subprocess
import sys

from bench.train import OURS, ROOT, THEIRS


def test_the_whole_way_on_a_cpu() -> None:
    options = ["--shape", "tiny", "--rounds", "1", "--steps", "2", "--minutes", "30"]
    command = [sys.executable, "-m", "bench.gpu", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["step"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert {row["outcome"] for row in rows.values()} == {"done"}
    ours, theirs = rows[f"{OURS}, round 1"]["measured"], rows[f"{THEIRS}, round 1"]["measured"]
    # The same rows in the same order, though in another precision.
    assert abs(ours["loss"] / theirs["loss"] - 1) < 0.02
    for size in (8, 4, 1):
        row = rows[f"memory at micro-batch {size}"]
        assert abs(row["estimate"] / row["measured"]["memory"] - 1) < 0.2
