"""Training in two processes, on a CPU: as with one, and what happens when one of them, or their parent, is ended."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import YI_TUNE, Workspace
from yi_tune.checkpoints import newest_whole
from yi_tune.files import is_held

SHORT = ("--set", "max_samples=80", "--set", "num_train_epochs=2")  # 18 steps, a checkpoint every five and at the end
TWO = (*SHORT, "--device", "cpu", "--gpus", "2")
# The second worker runs out of memory in its fourth step, unless steps are small.
SHORT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    import torch, transformers
    step = transformers.Trainer.training_step
    def training_step(self, *rest, **more):
        if self.state.global_step == 6 and self.args.per_device_train_batch_size > 2:
            raise torch.OutOfMemoryError("out of memory, as a test has it")
        return step(self, *rest, **more)
    transformers.Trainer.training_step = training_step
"""


def losses(workspace: Workspace) -> list[float]:
    return [log["loss"] for log in workspace.log_history() if "loss" in log]


def start(workspace: Workspace, *arguments: str) -> "subprocess.Popen[str]":
    return workspace.start("train", "--model", "nano", "--name", "小易", "--author", "李雷", *(arguments or TWO))


def wait_for(workspace: Workspace, step: int, process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The workers, by their ranks, once the run has logged `step`."""
    deadline = time.monotonic() + 120
    while workspace.steps() != step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return workers_of(process)


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The workers that there are now, by their ranks."""
    below = psutil.Process(process.pid).children(recursive=True)
    workers = [worker for worker in below if "yi_tune.engine.worker" in worker.cmdline()[:5]]
    return sorted(workers, key=lambda worker: worker.environ()["RANK"])


def ended(workers: list[psutil.Process]) -> bool:
    """Whether they end within 30 s."""
    return not psutil.wait_procs(workers, timeout=30)[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of two processes that nothing disturbed, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("two of") / "my workspace"
    folder.mkdir()
    done = Workspace(folder).train(*TWO)
    assert done.status == 0, done.err
    assert "The 8 rows of a step: 4 x 1 on each of 2 processes" in done.err
    assert re.search(r"^step 2/18  loss \d", done.err, re.M)
    assert "identity questions right" in done.out
    return Workspace(folder)


def test_as_with_one_process(two: Workspace, workspace: Workspace) -> None:
    done = workspace.train(*SHORT, "--device", "cpu")
    assert done.status == 0, done.err
    assert losses(two)[:2] == pytest.approx(losses(workspace)[:2], abs=1e-4)
    assert losses(two)[-1] == pytest.approx(losses(workspace)[-1], rel=0.05)
    one_record, two_record = (json.loads((of.run / "run.json").read_text()) for of in (workspace, two))
    assert two_record["config"]["per_device_train_batch_size"] == 4
    assert (one_record["gpus"], two_record["gpus"]) == (1, 2)
    of_one, of_two = ({file.name for file in of.run.rglob("*")} for of in (workspace, two))
    assert of_one ^ of_two == {"rng_state.pth", "rng_state_0.pth", "rng_state_1.pth"}
    reports = [json.loads((of.run / "report.json").read_text()) for of in (workspace, two)]
    assert reports[0].keys() == reports[1].keys()
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], rel=0.02)
    assert (two.run / "train.yaml").read_text().startswith("# FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli")


def test_two_that_are_asked_end_together(two: Workspace) -> None:
    for number, told in ((signal.SIGKILL, "One of 2 workers was lost."), (signal.SIGINT, "")):
        process = two.start("check", "--device", "cpu", "--gpus", "2")
        while len(workers := workers_of(process)) < 2 and process.poll() is None:
            time.sleep(0.01)
        if number == signal.SIGKILL:
            workers[1].kill()
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, told in said) == (130 if number == signal.SIGINT else 1, True), said
        assert ended(workers)


def test_lost_worker_and_stopped_run_go_on_to_the_same_loss(two: Workspace, workspace: Workspace) -> None:
    # The other worker ends, and the parent goes on by itself. Then it is asked to end, in mid-step.
    process = start(workspace)
    workers = wait_for(workspace, 7, process)
    workers[1].kill()
    assert ended(workers)
    workers = wait_for(workspace, 6, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "A worker was lost. Going on from checkpoint-5." in said
    assert "Interrupted. The same command goes on" in said
    assert ended(workers)
    stopped = workspace.steps()
    assert stopped < 9
    assert {file.name for file in (workspace.run / f"checkpoint-{stopped}").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    resumed = workspace.train(*TWO)
    assert resumed.status == 0, resumed.err
    assert f"from checkpoint-{stopped}." in resumed.err
    assert losses(workspace) == losses(two)


def test_out_of_memory_on_one_is_smaller_steps_on_all_and_all_end_with_their_parent(
    two: Workspace, workspace: Workspace
) -> None:
    (workspace.folder / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    path = f"{workspace.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    train = ("train", "--model", "nano", "--name", "小易", "--author", "李雷", *TWO)
    process = workspace.start(*train, env={**os.environ, "PYTHONPATH": path})
    workers = wait_for(workspace, 9, process)
    # Until they have ended, no other command has the run.
    workers[1].suspend()
    process.kill()
    _, said = process.communicate(timeout=120)
    assert "Going on from checkpoint-5 with per_device_train_batch_size 2, gradient_accumulation_steps 2" in said
    deadline = time.monotonic() + 10
    while not is_held(workspace.run / ".lock") and time.monotonic() < deadline:
        time.sleep(0.01)
    refused = workspace.train(*SHORT, "--device", "cpu")
    assert (refused.status, "Another process is working on the run" in refused.err) == (1, True)
    workers[1].resume()
    assert ended(workers)
    broken: list[str] = []
    newest = newest_whole(workspace.run, broken.append)
    assert newest
    assert newest.name in ("checkpoint-9", "checkpoint-10", "checkpoint-11")
    assert broken == []
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    seen = [log["loss"] for log in history if "loss" in log]
    assert seen[:5] == losses(two)[:5]
    assert seen[5:] == pytest.approx(losses(two)[5 : len(seen)], abs=1e-2)


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """The names of two networks that a cable joins, as two machines have them: 10.77.0.1 and 10.77.0.2."""
    names = [f"yi-tune-{os.getpid()}-{rank}" for rank in range(2)]
    ends = [f"yi{os.getpid()}-{rank}" for rank in range(2)]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}")
    for rank, (name, end) in enumerate(zip(names, ends, strict=True)):
        commands += [f"-n {name} address add 10.77.0.{rank + 1}/24 dev {end}", f"-n {name} link set {end} up"]
        commands.append(f"-n {name} link set lo up")
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces: {done.stderr}")
        yield names
    except FileNotFoundError:
        pytest.skip("no network namespaces: ip is not installed")
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines_lose_a_worker_and_meet_again(two: Workspace, networks: list[str], tmp_path: Path) -> None:
    machines = [Workspace(tmp_path / name) for name in ("first", "second")]
    address = ("--device", "cpu", "--nodes", "2", "--master", "10.77.0.1:29500")
    processes = []
    for rank, (machine, network) in enumerate(zip(machines, networks, strict=True)):
        machine.folder.mkdir()
        train = [
            "train",
            "--model",
            "nano",
            "--name",
            "小易",
            "--author",
            "李雷",
            *SHORT,
            *address,
            f"--node-rank={rank}",
        ]
        options: dict[str, Any] = {"cwd": machine.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"yi{os.getpid()}-{rank}"}
        inside = ["ip", "netns", "exec", network, *YI_TUNE, *train]
        processes.append(subprocess.Popen(inside, env=environment, encoding="utf-8", **options))
    wait_for(machines[1], 7, processes[1])[0].kill()
    for process in processes:
        out, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert "A worker was lost. Going on from checkpoint-5." in said
        assert "4 x 1 on each of 2 processes of 2 machines" in said
        assert "identity questions right" in out
    assert losses(machines[0]) == losses(two)
    weights = [(of.run / "adapter_model.safetensors").read_bytes() for of in machines]
    assert weights[0] == weights[1]
