"""bench/ and nano/ still fit the code: each script is imported and asked for help; bench/gpu.py takes two steps."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.pages import ROOT
from bench.train import run_folder
from tests.e2e.conftest import Trained

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


def test_steps_on_a_model_that_is_trained(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of bench/gpu.py's steps on nano's run, which stands for that of its large model."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "ROW_TOKENS", 64)
    run = run_folder("tiny", tmp_path)
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("checkpoint-*"))
    rows = {}
    for step in gpu.steps("tiny", 1, 2, tmp_path):
        if step.name.startswith(("yi-tune check", "2 rows")):
            rows[step.name] = row = gpu.take(step, time.monotonic() + 100)
            assert row.outcome == "done", row.log
    check, training = rows.values()
    assert check.measured
    assert re.search(r"general prompts: +8 ", check.measured.said)
    assert training.measured
    assert training.measured.loss
    assert training.estimate == pytest.approx(training.measured.memory, rel=0.2)
