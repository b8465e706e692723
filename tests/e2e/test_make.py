"""The README's first two commands, as far as the environment they build is there already."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Workspace

ROOT = Path(__file__).parents[2]

VENV = ROOT / ".venv"
# A link is another checkout's, which is not to be built anew from this one.
pytestmark = pytest.mark.skipif(
    Path(sys.prefix) != VENV or VENV.is_symlink(), reason="make uses .venv, which is not what runs these tests"
)


def start_make(*arguments: str, stderr: int, **environment: str) -> "subprocess.Popen[str]":
    # Of a make that runs these tests, nothing is passed on.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr}
    return subprocess.Popen(["make", *arguments], cwd=ROOT, env=inherited | environment, text=True, **pipes)


def make(*arguments: str) -> Done:
    process = start_make(*arguments, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def test_nothing_is_built_a_second_time() -> None:
    assert make("--question", ".venv/.ready").status == 0
    assert "uv" not in make("--dry-run", "test").out


@pytest.mark.alone
def test_demo(tmp_path: Path, engine_seconds: float) -> None:
    """Also the bounds of time, of the main job within it too, and a second pair of names asked everything."""
    identity = {"NAME": "O'Brien & Söhne 🚀", "AUTHOR": 'The "A" Team'}
    given = [f"{key}={value}" for key, value in identity.items()]
    began, told, starts = time.monotonic(), "", []
    with start_make("demo", *given, stderr=subprocess.PIPE, YI_TUNE_WORKSPACE=str(tmp_path)) as demo:
        for line in demo.stdout or ():
            told += line
            if line.startswith("$ yi-tune"):
                starts.append(time.monotonic())
        assert demo.wait(60) == 0, demo.stderr and demo.stderr.read()
    # The main job begins at the second command that it names, and ends at the third.
    assert starts[2] - starts[1] <= 10 * engine_seconds
    assert time.monotonic() - began <= 15 * engine_seconds
    before, after = told.split("yi-tune train", 1)
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
