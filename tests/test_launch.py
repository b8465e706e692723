"""The parent of several workers; torchrun and they are fakes. For real: tests/e2e/test_several.py."""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from tests.plans import plan
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.launch import WorkerLostError, ask, check_ray, train
from yi_tune.meeting import Nodes
from yi_tune.plan.fit import Fit
from yi_tune.progress import Progress
from yi_tune.runs import Run

TWO = Hardware("A GPU", bf16=True, free=1, count=2, visible="3,1")
# A shell starts Python: the first line of a script cannot name an interpreter whose path has a space.
START = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
"""
# What stands for torchrun: a process that works on the run folder.
FAKE = """{start}
import json, os, sys, time
from pathlib import Path
run = Path(sys.argv[8])
def leave(**outcome): (run / "outcome.json").write_text(json.dumps(outcome))
def log(**line):
    with (run / "trainer_log.jsonl").open("a") as file: file.write(json.dumps(dict(total_steps=4, **line)) + "\\n")
def wait(): assert os.read(0, 1) == b""
{script}
"""


class OutOfMemoryError(MemoryError):
    pass


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    engine = ModuleType("yi_tune.engine.trainer")
    engine.OutOfMemoryError = OutOfMemoryError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, engine.__name__, engine)
    (tmp_path / "a run").mkdir()
    return Run(tmp_path / "a run")


@contextmanager
def torchrun(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Iterator[None]:
    """Within this context torchrun does that."""
    torchrun = folder / "python"
    torchrun.write_text(FAKE.format(start=START.format(python=sys.executable), script=script))
    torchrun.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(torchrun))
        yield


def trained(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    checkpoint: Path | None = None,
    hardware: Hardware = TWO,
    nodes: Nodes | None = None,
) -> str:
    """Train with torchrun doing that; returns what is said."""
    console = Console(record=True, width=200)
    with torchrun(run.folder.parent, monkeypatch, script), Progress(console) as progress:
        train(plan(run=run.folder, fit=Fit(4, 1, False, hardware), nodes=nodes), checkpoint, progress)
    return console.export_text()


def test_what_is_started(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'run.joinpath("told").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))'
    checkpoint = run.folder / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    trained(run, monkeypatch, script, checkpoint)
    arguments, environment = json.loads((run.folder / "told").read_text())
    worker = ["-m", "yi_tune.engine.worker", str(run.folder), "checkpoint-5"]
    assert arguments == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        *worker,
    ]
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["PYTHONSAFEPATH"]) == ("3,1", "1")


def test_what_is_started_on_one_of_several_machines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'Path(sys.argv[-1], "told").write_text(json.dumps(sys.argv[1:]))'
    hardware, nodes = replace(TWO, count=1, nodes=3), Nodes(3, 2, "10.0.0.1", 29500)
    trained(run, monkeypatch, script, hardware=hardware, nodes=nodes)
    arguments = json.loads((run.folder / "told").read_text())
    address = ["--master-addr=10.0.0.1", "--master-port=29500"]
    assert arguments[2:7] == ["--nnodes=3", "--node-rank=2", *address, "--nproc-per-node=1"]


def test_progress_is_the_logs_and_not_that_of_an_earlier_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    old = "".join(json.dumps({"current_steps": step, "total_steps": 9, "loss": 9, "lr": 1}) + "\n" for step in range(3))
    (run.folder / "trainer_log.jsonl").write_text(old)
    script = (
        "log(current_steps=2, loss=2.0, lr=1e-4, throughput=50.0, total_tokens=1000)\n"
        "time.sleep(0.5); log(current_steps=3, eval_loss=0.5); log(current_steps=4, loss=1.0, lr=1e-4)"
    )
    said = trained(run, monkeypatch, script)
    assert "step 2/4  loss 2.0000  lr 1.0e-04  50 tok/s" in said
    assert "step 4/4  loss 1.5000  lr 1.0e-04  50 tok/s  eval 0.5000" in said
    assert "/9" not in said
    # In 20 s it has seen but what came after the checkpoint.
    checkpoint = run.folder / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"num_input_tokens_seen": 400}')
    assert "step 2/4  loss 2.0000  lr 1.0e-04  30 tok/s" in trained(run, monkeypatch, script, checkpoint)


def test_a_workers_error_is_one_of_this_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no such thing") as error:
        trained(run, monkeypatch, 'leave(kind="error", type="ValueError", message="no such thing"); sys.exit(1)')
    assert type(error.value).__name__ == "ValueError"
    with pytest.raises(OutOfMemoryError, match="20 GiB"):
        trained(run, monkeypatch, 'leave(kind="memory", type="OutOfMemoryError", message="20 GiB"); sys.exit(1)')
    with pytest.raises(WorkerLostError):  # what an earlier one left is not taken for this one's
        trained(run, monkeypatch, "sys.exit(1)")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_user_stops_it(number: signal.Signals, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(number)
    threading.Timer(0.5, signal.raise_signal, [number]).start()
    with pytest.raises(KeyboardInterrupt):
        trained(run, monkeypatch, 'wait(); time.sleep(0.3); leave(kind="stopped")')
    assert json.loads((run.folder / "outcome.json").read_text()) == {"kind": "stopped"}
    assert signal.getsignal(number) == before


def test_the_second_time_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (0.5, 1.0):
        threading.Timer(seconds, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        trained(run, monkeypatch, 'wait(); time.sleep(60); run.joinpath("late").touch()')
    assert not (run.folder / "late").exists()


def test_workers_that_outlive_torchrun_are_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'os.fork() and os.kill(os.getpid(), 9); wait(); time.sleep(0.5); run.joinpath("last").touch()'
    with pytest.raises(WorkerLostError):
        trained(run, monkeypatch, script)
    assert (run.folder / "last").exists()


def test_workers_are_asked_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = 'import pickle; leave(kind="answer", answer=[*pickle.loads((run / "asked.pickle").read_bytes()), str(run)])'
    with torchrun(tmp_path, monkeypatch, told):
        *asked, folder = ask(TWO, {"template": "yi"}, "check", 1, None)
    assert asked == [{"template": "yi"}, "check", [1, None]]
    assert not Path(folder).exists()
    for script in ("sys.exit(1)", "os.kill(os.getpid(), 9)"):
        with torchrun(tmp_path, monkeypatch, script), pytest.raises(YiTuneError, match="One of 2 workers was lost"):
            ask(TWO, {}, "check")
    script = 'leave(kind="error", type="OutOfMemoryError", message="CUDA out of memory"); sys.exit(1)'
    with torchrun(tmp_path, monkeypatch, script), pytest.raises(RuntimeError, match="CUDA out of memory"):
        ask(TWO, {}, "check")


# What stands for Ray, and for the Python that asks it and then starts LLaMA-Factory.
FAKE_RAY = "import os\ndef init(): pass\ndef nodes(): return eval(os.environ['NODES'])"
FAKE_PYTHON = """{start}
import json, os, sys
if sys.argv[1] == "-c": os.execv("{python}", ["{python}", *sys.argv[1:]])
open(sys.argv[3] + "/told", "w").write(json.dumps(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([(1, 10), (0, 2), (1, 12)], ""),
        ([(1, 10), (1, 9)], "1 GPU + 10 CPU, 1 GPU + 9 CPU. LLaMA-Factory needs 2 GPUs, and reserves 10 CPUs"),
        ([(1, 80)], "needs 2 GPUs"),
        (None, "there is no Ray cluster: NameError: name 'nothing' is not defined"),
    ],
)
def test_ray_has_what_llamafactory_reserves_or_is_refused(
    nodes: list[tuple[int, int]] | None, told: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray.py").write_text(FAKE_RAY)
    found = nodes and [{"Alive": True, "Resources": {"GPU": gpus, "CPU": cpus}} for gpus, cpus in nodes]
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(start=START.format(python=sys.executable), python=sys.executable))
    python.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for name, value in {"USE_RAY": "1", "NODES": str(found or "nothing"), "PYTHONPATH": path}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", str(python))
    planned = plan(run=run.folder, fit=Fit(4, 1, False, TWO))
    assert planned.config["ray_num_workers"] == 2
    if told:
        with pytest.raises(YiTuneError, match=re.escape(told)):
            check_ray(planned)
    else:
        check_ray(planned)
        train(planned, None, Progress(Console(quiet=True)))
    worker = ["-m", "yi_tune.engine.worker", str(run.folder)]
    assert [json.loads(file.read_text()) for file in run.folder.glob("told")] == ([] if told else [worker])
