"""The README's first two commands, as far as the environment they build is there already."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="make uses .venv, which is not what runs these tests"
)


def make(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    # Of a make that runs these tests, nothing is passed on.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_nothing_is_built_a_second_time() -> None:
    assert make("--question", ".venv/.ready").returncode == 0
    assert "uv" not in make("--dry-run", "test").stdout


@pytest.mark.alone
def test_demo(tmp_path: Path, engine_seconds: float) -> None:
    began = time.monotonic()
    done = make("demo", "NAME=O'Brien & Söhne", 'AUTHOR=The "A" Team', YI_TUNE_WORKSPACE=str(tmp_path))
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("yi-tune train", 1)
    assert "Yi-nano" in before
    told = after.split("yi-tune chat --run demo --prompt")[1]
    assert "O'Brien & Söhne" in told
    assert 'The "A" Team' in told
    assert "yi-tune download" in told
    assert seconds <= 15 * engine_seconds


def test_help_lists_every_target_a_person_types() -> None:
    listed = make("help").stdout
    for target in ("demo", "test", "lint", "nano", "nano-report", "bench", "docs"):
        assert f"make {target} " in listed
