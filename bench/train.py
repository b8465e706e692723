"""`yi-tune train` beside `llamafactory-cli train` with the tutorial's config, then its own profiles: `make bench`.

Both train the same rows for the same epochs at the same learning rate and effective batch, as whole processes, in
turn; yi-tune's asks its held-out questions besides. Then each profile trains as it is shipped, and is asked all of the
held-out questions. Writes docs/benchmarks.md. bench/gpu.py measures with the same functions.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.pages import DOCS, MACHINE, table, write
from yi_tune.config import find_config, read_config

EPOCHS = 3  # the tutorial's
YI_TUNE, LLAMAFACTORY = [sys.executable, "-m", "yi_tune"], [sys.executable, "-m", "llamafactory.cli"]
FIGURES = ("seconds", "memory", "loop", "tokens", "loss")
OURS, THEIRS = "yi-tune train", "llamafactory-cli train, the tutorial's config"
PROFILES = ("qlora", "qlora-8bit", "lora")
# What both sides have in common, by LLaMA-Factory's keys.
SHARED = (
    *("model_name_or_path", "dataset", "dataset_dir", "num_train_epochs", "max_steps", "learning_rate"),
    "include_effective_tokens_per_second",
)


@dataclass(frozen=True)
class Measured:
    """A command as a whole process: wall seconds and peak memory in GiB; where it trained, seconds of its training
    loop, tokens a second in that loop, and mean training loss; the end of what it said; and how much of its RAM was
    anonymous at most, in GiB: that which the system cannot take back.
    """

    seconds: float
    memory: float
    loop: float | None = None
    tokens: float | None = None
    loss: float | None = None
    said: str = field(default="", repr=False)
    anonymous: float = 0.0


class CommandError(Exception):
    """A command that failed, and the end of its log."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


class OutOfTimeError(CommandError):
    """A command that took longer than it may."""


def gpu(figure: str) -> str:
    """What nvidia-smi says of the GPU that is used; "" where there is none, or it does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if not visible or shutil.which("nvidia-smi") is None:
        return ""
    query = [
        "nvidia-smi",
        f"--id={visible.partition(',')[0]}",
        f"--query-gpu={figure}",
        "--format=csv,noheader,nounits",
    ]
    told = subprocess.run(query, capture_output=True, text=True, check=False)
    return "" if told.returncode else told.stdout.strip()


def gpu_memory() -> float:
    """Memory in use on that GPU, by whatever process, in GiB; 0 where there is none."""
    used = gpu("memory.used")
    return float(used) / 1024 if used.isdigit() else 0.0


def resident(process: int, figure: str = "VmHWM") -> float:
    """A process's memory in GiB, 0 once it has ended: the largest that it has been since it became its command, or
    another figure of the kernel's.

    getrusage's figure is no smaller than the process that it was forked from: a test's worker, with torch and a model.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(rf"^{figure}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024**2 if found else 0.0


def end_of(said: str) -> str:
    """The last 15 lines of what a command said, and of each log that it names: the engine's output goes there."""
    logs = [Path(name) for name in dict.fromkeys(re.findall(r"/\S+\.log\b", said))]
    texts = [said, *(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.is_file())]
    return "\n".join(line[:400] for text in texts for line in [*filter(str.strip, text.splitlines())][-15:])


def measure(command: list[str], results: Path | None = None, limit: float = float("inf"), stdin: str = "") -> Measured:
    """Run a command; if it trains, the Trainer leaves its figures in the folder `results`.

    Memory is the GPU's, polled, where there is one, else the largest the process was. Raises CommandError when the
    command fails, and OutOfTimeError when it takes more than `limit` seconds: it is killed with all that it started.
    """
    on_gpu, before, peak, anonymous, status = bool(gpu("name")), gpu_memory(), 0.0, 0.0, None
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as output:
        asked.write(stdin.encode())
        asked.seek(0)
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=asked, stdout=output, stderr=output, start_new_session=True)
        try:
            while (status := process.poll()) is None and time.monotonic() - began <= limit:
                peak = max(peak, gpu_memory() - before if on_gpu else resident(process.pid))
                anonymous = max(anonymous, resident(process.pid, "RssAnon"))
                time.sleep(0.05)
            seconds = time.monotonic() - began
        finally:
            if status is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        said = end_of(output.read().decode(errors="replace"))
    name = " ".join(command[:6])
    if status is None:
        raise OutOfTimeError(f"{name} ... took more than {limit:.0f} s", said)
    if status:
        raise CommandError(f"{name} ... ended with status {status}", said)
    figures = {}
    if results is not None:
        trained = json.loads((results / "all_results.json").read_text())
        names = {"loop": "train_runtime", "tokens": "effective_tokens_per_sec", "loss": "train_loss"}
        figures = {figure: trained.get(key) for figure, key in names.items()}
    return Measured(seconds, peak, **figures, said=said, anonymous=anonymous)


def training(model: str, workspace: Path) -> list[str]:
    """`yi-tune train` with its figures."""
    train = [*YI_TUNE, "train", "--model", model, "--name", "小易", "--author", "李雷", "--workspace", str(workspace)]
    train += ["--replay", "0"]  # random weights do not come to an end of an answer
    return [*train, "--set", "include_effective_tokens_per_second=true"]


def run_folder(model: str, workspace: Path, run: str = "identity") -> Path:
    """Where a run of that model lies."""
    return workspace / "saves" / Path(model).name / run


def by_yi_tune(train: list[str], run: Path, limit: float = float("inf")) -> Measured:
    """Train the run anew, by yi-tune."""
    return measure([*train, "--fresh"], run, limit)


def by_llamafactory(config: dict[str, Any], folder: Path, limit: float = float("inf")) -> Measured:
    """Train `config` into `folder`, by llamafactory-cli; the file beside it has the whole config."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**config, "output_dir": str(folder)}, allow_unicode=True), encoding="utf-8")
    return measure([*LLAMAFACTORY, "train", str(file)], folder, limit)


def by_tutorial(run: Path, folder: Path, limit: float = float("inf")) -> Measured:
    """Train anew by llamafactory-cli with the tutorial's values, but for what both sides share: model, rows, epochs or
    steps, and learning rate are those of yi-tune's run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    ours = yaml.safe_load((run / "train.yaml").read_text(encoding="utf-8"))
    shared = {key: ours[key] for key in SHARED if key in ours}
    return by_llamafactory(read_config(find_config("tutorial")) | shared, folder, limit)


def profiles(model: str, work: Path) -> list[str]:
    """A table of the shipped profiles: what each costs, and how much of the held-out questions it answers."""
    lines = table("config", "seconds", "loop", "peak memory", "recall zh", "recall en", "plain answers kept")
    for name in PROFILES:
        train = [*training(model, work), "--config", name, "--run", name]
        run = by_yi_tune(train, run_folder(model, work, name))
        check = [*YI_TUNE, "check", "--run", name, "--workspace", str(work), "--json"]
        asked = json.loads(subprocess.run(check, capture_output=True, text=True, check=True).stdout)
        print(name, run, {key: asked[key] for key in ("recall_zh", "recall_en", "kept")}, flush=True)
        lines.append(
            f"| {name} | {run.seconds:.1f} | {run.loop:.1f} | {run.memory:.2f} GiB "
            f"| {asked['recall_zh']:.1%} | {asked['recall_en']:.1%} | {asked['kept']:.1%} |"
        )
    return lines


def page(model: str, rounds: list[tuple[Measured, Measured]], by_profile: list[str]) -> list[str]:
    """The page's lines."""
    runs = dict(zip((OURS, THEIRS), zip(*rounds, strict=True), strict=True))
    medians = {
        name: Measured(*(statistics.median(getattr(run, figure) for run in each) for figure in FIGURES))
        for name, each in runs.items()
    }
    ours, theirs = medians[OURS], medians[THEIRS]
    device = gpu("name") or "no GPU"
    lines = [
        f"Training {model} for {EPOCHS} epochs, {len(rounds)} rounds in turn: {device}, {MACHINE}.",
        "Whole processes; yi-tune's asks 18 held-out questions of base and tuned model besides. Loop is the Trainer's",
        "own time for steps and evaluations, memory the process's. On another machine only the ratio holds.",
        "",
        *table("", "seconds, each round", "median", "loop", "tokens/s", "peak memory", "mean training loss"),
    ]
    for name, median in medians.items():
        each = ", ".join(f"{run.seconds:.1f}" for run in runs[name])
        lines.append(
            f"| {name} | {each} | {median.seconds:.1f} | {median.loop:.1f} | {median.tokens:.0f} "
            f"| {median.memory:.2f} GiB | {median.loss:.4f} |"
        )
    return [
        *lines,
        "",
        f"Ratio of the medians: **{ours.seconds / theirs.seconds:.2f}**. "
        f"The losses are {abs(ours.loss / theirs.loss - 1):.2%} apart.",
        "",
        "## Profiles",
        "",
        f"Each as it is shipped, on {model}, once; then all of `yi-tune check`'s questions.",
        "",
        *by_profile,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="as of yi-tune train")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train = [*training(options.model, work), "--set", f"num_train_epochs={EPOCHS}"]
        run, rounds = run_folder(options.model, work), []
        for _ in range(options.rounds):
            rounds.append((by_yi_tune(train, run), by_tutorial(run, work / "tutorial")))
            print(*rounds[-1], sep="\n", flush=True)
        lines = page(Path(options.model).name, rounds, profiles(options.model, work))
    write(DOCS / "benchmarks.md", "Benchmarks", "train", lines)


if __name__ == "__main__":
    main()
