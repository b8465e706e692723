"""Real runs of the real engine on nano, as whole processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

YI_TUNE = [sys.executable, "-m", "yi_tune"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Workspace:
    """A folder to run commands in."""

    folder: Path

    @property
    def run(self) -> Path:
        """The folder of the default run."""
        return self.folder / "saves" / "nano" / "identity"

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start yi-tune; its output is piped."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*YI_TUNE, *arguments], cwd=self.folder, text=True, encoding="utf-8", **pipes)

    def yi_tune(self, *arguments: str, stdin: str = "", **options: Any) -> Done:
        """Run yi-tune to its end."""
        process = self.start(*arguments, stdin=subprocess.PIPE, **options)
        out, err = process.communicate(stdin, timeout=300)
        return Done(process.returncode, out, err)

    def train(self, *arguments: str, **options: Any) -> Done:
        """Train nano to be 小易 by 李雷."""
        return self.yi_tune("train", "--model", "nano", "--name", "小易", "--author", "李雷", *arguments, **options)

    def steps(self) -> int:
        """How many steps the default run has logged."""
        log = self.run / "trainer_log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(lines[-1])["current_steps"] if lines else 0

    def train_until(self, step: int, number: signal.Signals, *arguments: str) -> Done:
        """Start training, and send the signal once `step` steps are logged."""
        return self.train_until_seen(lambda: self.steps() >= step, number, *arguments)

    def train_until_seen(self, seen: Callable[[], bool], number: signal.Signals, *arguments: str) -> Done:
        """Start training, and send the signal once `seen` says so."""
        process = self.start("train", "--model", "nano", "--name", "小易", "--author", "李雷", *arguments)
        deadline = time.monotonic() + 120
        while not seen() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return Done(process.returncode, out, err)

    def runs(self) -> dict[str, dict[str, Any]]:
        """What yi-tune runs lists, by the runs' names."""
        return {run["run"]: run for run in json.loads(self.yi_tune("runs", "--json").out)}

    def log_history(self) -> list[dict[str, Any]]:
        """What the Trainer logged, step by step."""
        return json.loads((self.run / "trainer_state.json").read_text())["log_history"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace whose path has a space in it."""
    folder = tmp_path / "my workspace"
    folder.mkdir()
    return Workspace(folder)


@dataclass(frozen=True)
class Trained(Workspace):
    """A workspace with a finished run, what training it printed and how long that took."""

    done: Done
    seconds: float


@pytest.fixture(scope="session")
def engine_seconds() -> float:
    """How long this machine takes to import what trains: what is fast is said in this, since machines differ."""
    command = [sys.executable, "-c", "import llamafactory.train.tuner"]
    subprocess.run(command, check=True, capture_output=True)  # the first time its files are read
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The main job with defaults, done once."""
    folder = tmp_path_factory.mktemp("trained") / "my workspace"
    folder.mkdir()
    began = time.monotonic()
    done = Workspace(folder).train()
    return Trained(folder, done, time.monotonic() - began)
