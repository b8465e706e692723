"""Work in several processes: torchrun starts them (engine/worker.py), and this one, their parent, watches."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from typing import Any

from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, uses_ray
from yi_tune.language import Text, kept
from yi_tune.plan.settings import TrainPlan
from yi_tune.plan.sharding import environment
from yi_tune.progress import Progress
from yi_tune.runs import ASKED, OUTCOME

# By address: not every machine finds itself by its name.
_ALONE = ["--standalone", "--local-addr=127.0.0.1"]


class WorkerLostError(Exception):
    """A worker ended without a word, as one does that is killed."""


def train(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> None:
    """Train as the run's train.yaml says, from `checkpoint` if given, on all GPUs of the plan, or in as many processes.

    Raises KeyboardInterrupt when the user stops it, after all have saved one checkpoint; OutOfMemoryError;
    WorkerLostError; and for any other error of a worker one of the same name and text. All workers have ended then.
    """
    from yi_tune.engine.trainer import OutOfMemoryError

    folder, nodes = planned.run.folder, planned.nodes
    log = folder / "trainer_log.jsonl"
    log.unlink(missing_ok=True)  # LLaMA-Factory would, but later
    together = _ALONE
    if nodes:
        together = [f"--nnodes={nodes.count}", f"--node-rank={nodes.rank}"]
        together += [f"--master-addr={nodes.host}", f"--master-port={nodes.port}"]
    start = [str(folder), *([checkpoint.name] if checkpoint else [])]
    told = environment(planned.fit.sharding, planned.fit.hardware)
    together = [] if uses_ray() else together
    ended = _work(planned.fit.hardware, together, start, _Log(log, progress, _tokens(checkpoint)).show, told)
    if ended["kind"] == "memory":
        raise OutOfMemoryError(ended["message"])


def check_ray(planned: TrainPlan) -> None:
    """Raise YiTuneError if the cluster lacks what LLaMA-Factory reserves in it: it would wait for that for ever."""
    wanted = planned.fit.hardware.count
    remedy = kept("Unset USE_RAY: without Ray, --gpus and --nodes take GPUs and machines as they are.")
    code = "import json, ray, sys; ray.init(**json.loads(sys.argv[1])); print('\\n' + json.dumps(ray.nodes()))"
    command = [sys.executable, "-c", code, json.dumps(planned.config.get("ray_init_kwargs") or {})]
    environment = _seen(planned.fit.hardware)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)  # noqa: S603
    except subprocess.SubprocessError as error:
        said: Text = kept("it did not answer in 120 s")
        if isinstance(error, subprocess.CalledProcessError):
            said = error.stderr.strip().rpartition("\n")[2]
        raise YiTuneError("USE_RAY is set, and there is no Ray cluster: {said}", remedy, said=said) from None
    nodes = [node["Resources"] for node in json.loads(done.stdout.splitlines()[-1]) if node["Alive"]]
    has = [(int(node.get("GPU", 0)), int(node.get("CPU", 0))) for node in nodes]
    there = [f"{gpus} GPU + {cpus} CPU" for gpus, cpus in has]
    if sum(gpus for gpus, _cpus in has) < wanted or any(cpus < 10 * gpus for gpus, cpus in has):
        raise YiTuneError(
            "Ray's machines have {there}. LLaMA-Factory needs {wanted} GPUs, and reserves 10 CPUs for every GPU of "
            "the cluster.",
            kept("Start Ray with --num-cpus of ten times the GPUs of a machine. {remedy}", remedy=remedy),
            there=", ".join(there),
            wanted=wanted,
        )


def ask(hardware: Hardware, config: Config, function: str, *arguments: Any) -> Any:
    """What the `function` of engine/divergence.py returns for the model that `config` (a chat.yaml) loads and these
    arguments, from all GPUs together. Raises KeyboardInterrupt, YiTuneError for a lost worker, and as `train` does.
    """
    with TemporaryDirectory() as folder:
        Path(folder, ASKED).write_bytes(pickle.dumps((config, function, arguments)))
        try:
            return _work(hardware, _ALONE, [folder], lambda: None, {})["answer"]
        except WorkerLostError:
            raise YiTuneError(
                "One of {count} workers was lost.",
                "Was it killed, for the memory that it took? Did a GPU fail (dmesg)? Type the same command again.",
                count=hardware.count,
            ) from None


def _work(
    hardware: Hardware, together: list[str], arguments: list[str], show: Callable[[], None], told: Mapping[str, str]
) -> dict[str, Any]:
    """Start workers with these arguments, of which the first is their folder, `told` more by their environment, and
    `show` until they have ended; returns what they leave of how they did. Where torchrun is told nothing of how they
    come `together`, Ray sees to it. Raises as `train` does, but for the memory.
    """
    outcome = Path(arguments[0], OUTCOME)
    outcome.unlink(missing_ok=True)
    torchrun = ["-m", "torch.distributed.run", *together, f"--nproc-per-node={hardware.count}"] if together else []
    command = [sys.executable, *torchrun, "-m", "yi_tune.engine.worker", *arguments]
    environment = {**_seen(hardware), **told}
    ours, theirs = socket.socketpair()
    with _asked() as asked, ours:
        with theirs:
            # The workers' stdin is a socket: they stop when this end is closed, also by the death of this process, and
            # when their ends are closed, all of them are gone. A terminal's Ctrl-C comes to this process alone.
            started = subprocess.Popen(command, stdin=theirs.fileno(), env=environment, start_new_session=True)  # noqa: S603
        heard = 0
        while not select([ours], [], [], 0.2)[0]:
            show()
            if len(asked) > heard or started.poll() is not None:
                if len(asked) > 1:
                    started.terminate()
                elif not heard:
                    ours.shutdown(socket.SHUT_WR)
                heard = max(1, len(asked))
    status = started.wait()
    show()
    ended: dict[str, Any] = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else {"kind": None}
    if ended["kind"] == "error":
        raise type(ended["type"], (RuntimeError,), {})(ended["message"])
    if asked or ended["kind"] == "stopped":
        raise KeyboardInterrupt
    if status and ended["kind"] is None:
        raise WorkerLostError
    return ended


def _seen(hardware: Hardware) -> dict[str, str]:
    # Without PYTHONSAFEPATH the user's current folder would come before all packages.
    visible = {"CUDA_VISIBLE_DEVICES": hardware.visible} if hardware.visible else {}
    return {**os.environ, "PYTHONSAFEPATH": "1", **visible}


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


def _tokens(checkpoint: Path | None) -> int:
    """The tokens that training has seen until then."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")) if checkpoint else {}
    return int(state.get("num_input_tokens_seen", 0))


class _Log:
    """LLaMA-Factory's log, whose new lines `show` shows as progress. Its throughput counts the tokens `before` too."""

    def __init__(self, file: Path, progress: Progress, before: int) -> None:
        self._file, self._progress, self._before, self._shown = file, progress, before, 0

    def show(self) -> None:
        lines = self._file.read_text(encoding="utf-8").split("\n")[:-1] if self._file.exists() else []
        for log in map(json.loads, lines[self._shown :]):
            if not self._shown:
                self._progress.begin(log["total_steps"], log["current_steps"])
            self._shown += 1
            self._progress.step(log["current_steps"])
            if tokens := log.get("total_tokens"):
                log["train_tokens_per_second"] = log["throughput"] * (tokens - self._before) / tokens
            self._progress.figures({"learning_rate" if key == "lr" else key: value for key, value in log.items()})
