"""Training in several processes: torchrun starts them (engine/worker.py), and this one, their parent, watches."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

from yi_tune.plan.plan import TrainPlan
from yi_tune.progress import Progress
from yi_tune.runs import OUTCOME


class WorkerLostError(Exception):
    """A worker ended without a word, as one does that is killed."""


def train(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> None:
    """Train as the run's train.yaml says, from `checkpoint` if given, on all GPUs of the plan, or in as many processes.

    Raises KeyboardInterrupt when the user stops it, after all have saved one checkpoint; OutOfMemoryError;
    WorkerLostError; and for any other error of a worker one of the same name and text. All workers have ended then.
    """
    from yi_tune.engine.trainer import OutOfMemoryError

    run, hardware, nodes = planned.run, planned.fit.hardware, planned.nodes
    outcome = run.folder / OUTCOME
    outcome.unlink(missing_ok=True)
    # By address: not every machine finds itself by its name.
    together = ["--standalone", "--local-addr=127.0.0.1"]
    if nodes:
        together = [f"--nnodes={nodes.count}", f"--node-rank={nodes.rank}"]
        together += [f"--master-addr={nodes.host}", f"--master-port={nodes.port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *together, f"--nproc-per-node={hardware.count}"]
    command += ["-m", "yi_tune.engine.worker", str(run.folder), *([checkpoint.name] if checkpoint else [])]
    # Without PYTHONSAFEPATH the user's current folder would come before all packages.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if hardware.visible:
        environment["CUDA_VISIBLE_DEVICES"] = hardware.visible
    log = run.folder / "trainer_log.jsonl"
    log.unlink(missing_ok=True)  # LLaMA-Factory would, but later
    follow = _Log(log, progress)
    ours, theirs = socket.socketpair()
    with _asked() as asked, ours:
        with theirs:
            # The workers' stdin is a socket: they stop when this end is closed, also by the death of this process, and
            # when their ends are closed, all of them are gone. A terminal's Ctrl-C comes to this process alone.
            torchrun = subprocess.Popen(command, stdin=theirs.fileno(), env=environment, start_new_session=True)  # noqa: S603
        told = 0
        while not select([ours], [], [], 0.2)[0]:
            follow.show()
            if len(asked) > told or torchrun.poll() is not None:
                if len(asked) > 1:
                    torchrun.terminate()
                elif not told:
                    ours.shutdown(socket.SHUT_WR)
                told = max(1, len(asked))
    status = torchrun.wait()
    follow.show()
    ended: dict[str, Any] = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else {"kind": None}
    if ended["kind"] == "error":
        raise type(ended["type"], (RuntimeError,), {})(ended["message"])
    if asked or ended["kind"] == "stopped":
        raise KeyboardInterrupt
    if ended["kind"] == "memory":
        raise OutOfMemoryError(ended["message"])
    if status:
        raise WorkerLostError


@contextmanager
def _asked() -> Iterator[list[int]]:
    """The list of Ctrl-C and SIGTERM that come meanwhile; they do nothing else."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """LLaMA-Factory's log, whose new lines `show` shows as progress."""

    def __init__(self, file: Path, progress: Progress) -> None:
        self._file, self._progress, self._shown = file, progress, 0

    def show(self) -> None:
        lines = self._file.read_text(encoding="utf-8").split("\n")[:-1] if self._file.exists() else []
        for log in map(json.loads, lines[self._shown :]):
            if not self._shown:
                self._progress.begin(log["total_steps"], log["current_steps"])
            self._shown += 1
            self._progress.step(log["current_steps"])
            names = {"lr": "learning_rate", "throughput": "train_tokens_per_second"}
            self._progress.figures({names.get(key, key): value for key, value in log.items()})
