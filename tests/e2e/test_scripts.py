"""bench/ and nano/ still fit the code: each script is imported and asked for help; bench/gpu.py takes a step."""

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


def test_step_on_a_model_that_is_trained(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of bench/gpu.py's steps on nano's run, which stands for that of its large model."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "ROW_TOKENS", 64)
    run = run_folder("tiny", tmp_path)
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("checkpoint-*"))
    (step,) = (step for step in gpu.steps("tiny", 1, 2, tmp_path) if step.name.startswith("2 rows"))
    training = gpu.take(step, time.monotonic() + 100)
    assert training.outcome == "done", training.log
    assert training.measured
    assert training.measured.loss
    assert training.estimate == pytest.approx(training.measured.memory, rel=0.2)
