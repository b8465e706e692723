"""Real runs of the real engine on nano, as whole processes, which start with the engine imported (tests/e2e/warm.py).

A workspace's `yi_tune`, `train` and `start` take no time to import; give `env=` and they are started from nothing.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from tests.conftest import processor_seconds
from tests.e2e.warm import WarmServer
from yi_tune import loading
from yi_tune.runs import Run

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

YI_TUNE = [sys.executable, "-m", "yi_tune"]
warm_servers: list[WarmServer] = []  # one at most


def warm_server() -> WarmServer | None:
    """The process that forks for commands, where one can: not beside a GPU, nor in another environment than its own."""
    if Path("/dev/nvidiactl").exists():
        return None
    if not warm_servers:
        warm_servers.append(WarmServer())
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return warm_servers[0] if environment == warm_servers[0].environment else None


@pytest.fixture(scope="session", autouse=True)
def _warm_server_ends() -> Iterator[None]:
    yield
    while warm_servers:
        warm_servers.pop().close()


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
        """Start yi-tune; its output is piped. With `env=` as a process of its own from the first import on."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        options |= {"cwd": self.folder, "text": True, "encoding": "utf-8"}
        if "env" not in options and (warm := warm_server()):
            return warm.popen(arguments, **options)
        return subprocess.Popen([*YI_TUNE, *arguments], **options)

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


SmallDisk = Callable[[str], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mounts a disk of that size, which takes root on Linux."""
    disk = tmp_path / "small disk"

    def mount(size: str) -> Path:
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
            pytest.skip("this machine mounts no tmpfs")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


@dataclass(frozen=True)
class Trained(Workspace):
    """A workspace with a finished run, what training it printed, and the processor's seconds that it took."""

    done: Done
    seconds: float


@pytest.fixture(scope="session")
def engine_seconds() -> float:
    """Of this machine's processor, to import what trains: what is fast is said in this, since machines differ."""
    before = processor_seconds()
    subprocess.run([sys.executable, "-c", "import llamafactory.train.tuner"], check=True, capture_output=True)
    return processor_seconds() - before


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The main job with defaults, done once for all of pytest-xdist's workers: do not change it."""
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "trained"
    root.mkdir(exist_ok=True)
    folder, known = root / "my workspace", root / "done.json"
    with FileLock(root / "lock"):
        if not known.exists():
            folder.mkdir()
            before = processor_seconds()
            done = Workspace(folder).train(env=os.environ | {"OMP_NUM_THREADS": "1"})
            known.write_text(json.dumps([asdict(done), processor_seconds() - before]))
    done, seconds = json.loads(known.read_text())
    return Trained(folder, Done(**done), seconds)


@pytest.fixture(scope="session")
def assistant(trained: Trained) -> "Assistant":
    """That run, loaded into this process."""
    return loading.load_run(Run(trained.run))
