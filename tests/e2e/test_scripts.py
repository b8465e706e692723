"""bench/ and nano/ still fit the code: each script is imported and asked for help; bench/gpu.py takes two steps."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.pages import ROOT
from bench.train import OURS

SCRIPTS = sorted(path.relative_to(ROOT) for folder in ("bench", "nano") for path in (ROOT / folder).glob("*.py"))
# In one process: most of the time is the engine's import. Those without options are only imported.
START = """
import runpy, sys
from pathlib import Path
sys.path[:0] = [".", "nano"]
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__" if "argparse" in Path(script).read_text() else "imported")
    except SystemExit as ended:
        assert not ended.code, script
print("all of them")
"""


def test_scripts_can_be_started() -> None:
    command = [sys.executable, "-c", START, *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "all of them" in done.stdout, done.stderr


def test_steps_of_the_smallest_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    steps = {step.name: step for step in gpu.steps("tiny", 1, 2, tmp_path)}
    for name in ("build the model", f"{OURS}, round 1"):
        row = gpu.take(steps[name], time.monotonic() + 300)
        assert row.outcome == "done"
    assert row.measured
    assert f"| {OURS}, round 1 | done |" in gpu.page("tiny", 2, [row], 1.0)[-1]
    # Beside what training took; tests/e2e/test_fit.py has the estimate's precision.
    assert abs((steps["memory at micro-batch 8"].estimate() or 0) / row.measured.memory - 1) < 0.5
