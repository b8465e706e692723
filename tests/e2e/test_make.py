"""The README's first two commands, as far as the environment they build is there already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import processor_seconds
from tests.e2e.conftest import Done, Trained, Workspace

ROOT = Path(__file__).parents[2]

VENV = ROOT / ".venv"
# A link is another checkout's, which is not to be built anew from this one.
pytestmark = pytest.mark.skipif(
    Path(sys.prefix) != VENV or VENV.is_symlink(), reason="make uses .venv, which is not what runs these tests"
)


def make(*arguments: str, **environment: str) -> Done:
    # Of a make that runs these tests, nothing is passed on.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command, given = ["make", *arguments], inherited | environment
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_nothing_is_built_a_second_time() -> None:
    assert make("--question", ".venv/.ready").status == 0
    assert "uv" not in make("--dry-run", "test").out


def test_demo(tmp_path: Path, trained: Trained, engine_seconds: float) -> None:
    """Also the bounds of time, of the main job too, and a second pair of names asked everything."""
    identity = {"NAME": "O'Brien & Söhne 🚀", "AUTHOR": 'The "A" Team'}
    given = [f"{key}={value}" for key, value in identity.items()]
    began = processor_seconds()
    demo = make("demo", *given, YI_TUNE_WORKSPACE=str(tmp_path), OMP_NUM_THREADS="1")
    assert demo.status == 0, demo.err
    assert trained.seconds <= 7 * engine_seconds
    assert processor_seconds() - began <= 11 * engine_seconds
    before, after = demo.out.split("yi-tune train", 1)
    assert "Yi-nano" in before
    reply = after.split("yi-tune chat --run demo --prompt")[1]
    assert identity["NAME"] in reply
    assert identity["AUTHOR"] in reply
    assert "yi-tune download" in reply
    checked = json.loads(Workspace(tmp_path).yi_tune("check", "--json").out)
    assert min(checked["recall_zh"], checked["recall_en"], checked["kept"]) >= 0.85
    assert checked["leak"] <= 0.05


def test_help_lists_every_target_a_person_types() -> None:
    listed = make("help").out
    for target in ("demo", "test", "lint", "nano", "nano-report", "bench", "docs"):
        assert f"make {target} " in listed
