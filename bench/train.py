"""`yi-tune train` beside `llamafactory-cli train` with the tutorial's config: `make bench`, `make bench-gpu`.

Both train the same rows for the same epochs at the same learning rate and effective batch, as whole
processes, in turn; yi-tune's asks its held-out questions besides. Writes a page of docs/.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

EPOCHS = 3  # the tutorial's
YI_TUNE, LLAMAFACTORY = [sys.executable, "-m", "yi_tune"], [sys.executable, "-m", "llamafactory.cli"]
OURS, THEIRS = "yi-tune train", "llamafactory-cli train, the tutorial's config"


@dataclass(frozen=True)
class Measured:
    """A training run as a whole process: wall seconds, seconds of its training loop, tokens a second in that
    loop, peak memory in GiB, mean training loss.
    """

    seconds: float
    loop: float
    tokens: float
    memory: float
    loss: float


def gpu_memory() -> float:
    """Memory in use on the first GPU, by whatever process, in GiB."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 1024


def measure(command: list[str], results: Path) -> Measured:
    """Run a command that has to succeed; the Trainer leaves its figures in the folder `results`.

    Memory is the GPU's, polled, where there is one, else the largest the process was.
    """
    on_gpu = shutil.which("nvidia-smi") is not None
    before = gpu_memory() if on_gpu else 0.0
    peak, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while on_gpu and not ended.wait(0.2):
            peak = max(peak, gpu_memory() - before)

    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        ended.set()
        watcher.join()
        if status:
            output.seek(0)
            sys.exit(f"{command} failed:\n{output.read().decode()[-4000:]}")
    figures = json.loads((results / "all_results.json").read_text())
    return Measured(
        seconds,
        figures["train_runtime"],
        figures["effective_tokens_per_sec"],
        peak if on_gpu else usage.ru_maxrss / 1024**2,  # in KiB on Linux
        figures["train_loss"],
    )


def compare(model: str, rounds: int) -> dict[str, list[Measured]]:
    """Train with both, `rounds` times in turn."""
    train = [*YI_TUNE, "train", "--model", model, "--name", "小易", "--author", "李雷", "--replay", "0"]
    train += ["--set", f"num_train_epochs={EPOCHS}", "--set", "include_effective_tokens_per_second=true"]
    measured: dict[str, list[Measured]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train += ["--workspace", temporary]
        for _ in range(rounds):
            dry = subprocess.run([*train, "--dry-run"], capture_output=True, text=True, check=True).stdout
            config = yaml.safe_load(dry)
            run = Path(config["output_dir"])
            measured[OURS].append(measure([*train, "--fresh"], run))
            # The tutorial's values but for what both sides share: rows, epochs and learning rate.
            tutorial = [
                *train,
                "--config",
                "tutorial",
                "--set",
                f"learning_rate={config['learning_rate']}",
                "--dry-run",
            ]
            dry = subprocess.run(tutorial, capture_output=True, text=True, check=True).stdout
            theirs = work / "tutorial"
            (work / "tutorial.yaml").write_text(dry.replace(f"output_dir: {run}", f"output_dir: {theirs}"))
            measured[THEIRS].append(measure([*LLAMAFACTORY, "train", str(work / "tutorial.yaml")], theirs))
            for name, runs in measured.items():
                print(name, runs[-1], flush=True)
    return measured


def page(model: str, measured: dict[str, list[Measured]]) -> list[str]:
    """The page's lines."""
    gpu = shutil.which("nvidia-smi") is not None
    device = "no GPU"
    if gpu:
        query = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
        device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    medians = {
        name: Measured(*(statistics.median(getattr(run, field) for run in runs) for field in vars(runs[0])))
        for name, runs in measured.items()
    }
    ours, theirs = medians[OURS], medians[THEIRS]
    lines = [
        "# Benchmarks" + (" on a GPU" if gpu else ""),
        "",
        f"Written by `make bench{'-gpu' if gpu else ''}` (bench/train.py); not by hand.",
        "",
        f"Training {model} for {EPOCHS} epochs, {len(measured[OURS])} rounds in turn: {device}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
        "Whole processes; yi-tune's asks 18 held-out questions of base and tuned model besides. Loop is the Trainer's",
        "own time for steps and evaluations, memory the "
        + ("GPU's." if gpu else "process's. On another machine only the ratio holds."),
        "",
        "| | seconds, each round | median | loop | tokens/s | peak memory | mean training loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, median in medians.items():
        each = ", ".join(f"{run.seconds:.1f}" for run in measured[name])
        lines.append(
            f"| {name} | {each} | {median.seconds:.1f} | {median.loop:.1f} | {median.tokens:.0f} "
            f"| {median.memory:.2f} GiB | {median.loss:.4f} |"
        )
    return [
        *lines,
        "",
        f"Ratio of the medians: **{ours.seconds / theirs.seconds:.2f}**. "
        f"The losses are {abs(ours.loss / theirs.loss - 1):.2%} apart.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="as of yi-tune train")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks.md")
    options = parser.parse_args()
    measured = compare(options.model, options.rounds)
    lines = page(Path(options.model).name, measured)
    options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{lines[-1]}\nwrote {options.page.name}")


if __name__ == "__main__":
    main()
