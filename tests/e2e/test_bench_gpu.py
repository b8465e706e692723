"""What `make bench-gpu` does on a GPU, on a CPU: each of its steps, with a model of some layers."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_step_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--shape", "tiny", "--rounds", "1", "--steps", "2"]
    command += ["--minutes", "9", "--work", str(tmp_path)]
    page = ROOT / "docs" / "bench-gpu.md"
    before = page.exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["step"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert {row["outcome"] for row in rows.values()} == {"done"}
    ours, theirs = (row for name, row in rows.items() if "round 1" in name)
    # The same rows in the same order, and the same two steps.
    assert abs(ours["measured"]["loss"] / theirs["measured"]["loss"] - 1) < 0.02
    for micro_batch in (8, 4, 1):
        row = rows[f"memory at micro-batch {micro_batch}"]
        assert row["measured"]["memory"] > 0
        assert row["estimate"] > 0
    # What was tried on a CPU is no page of docs/.
    assert page.exists() == before
