"""`yi-tune train` beside `llamafactory-cli train` with the tutorial's config, on nano: `make bench`.

Both train the same rows for the same epochs at the same learning rate and effective batch, as whole
processes, in turn; yi-tune's asks its held-out questions besides. Writes docs/benchmarks.md.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
EPOCHS = 1
BIN = Path(sys.executable).parent
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def timed(command: list[str], cwd: Path) -> float:
    """Wall seconds of a command that has to succeed."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.monotonic() - began


def loss(folder: Path) -> float:
    """The mean training loss the Trainer reports."""
    return float(json.loads((folder / "train_results.json").read_text())["train_loss"])


def main() -> None:
    """Run the pair and write the page."""
    train = [str(BIN / "yi-tune"), "train", "--model", "nano", "--name", "小易", "--author", "李雷"]
    train += ["--set", f"num_train_epochs={EPOCHS}"]
    seconds: dict[str, list[float]] = {"yi-tune train": [], "llamafactory-cli train, the tutorial's config": []}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for _ in range(ROUNDS):
            ours = timed([*train, "--fresh"], work)
            run = work / "saves" / "nano" / "identity"
            rate = json.loads((run / "run.json").read_text())["config"]["learning_rate"]
            losses["yi-tune train"] = loss(run)
            # The tutorial's values but for what both sides share: rows, epochs and learning rate.
            dry = [*train, "--config", "tutorial", "--set", f"learning_rate={rate}", "--dry-run"]
            config = subprocess.run(dry, cwd=work, capture_output=True, text=True, check=True).stdout
            theirs_folder = work / "tutorial"
            (work / "tutorial.yaml").write_text(config.replace(f"output_dir: {run}", f"output_dir: {theirs_folder}"))
            theirs = timed([str(BIN / "llamafactory-cli"), "train", "tutorial.yaml"], work)
            losses["llamafactory-cli train, the tutorial's config"] = loss(theirs_folder)
            for name, took in zip(seconds, (ours, theirs), strict=True):
                seconds[name].append(took)
                print(f"{name}: {took:.1f} s", flush=True)
    ours, theirs = (statistics.median(took) for took in seconds.values())
    apart = losses["yi-tune train"] / losses["llamafactory-cli train, the tutorial's config"] - 1
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (bench/train.py); not by hand.",
        "",
        f"Training nano with num_train_epochs {EPOCHS}, {ROUNDS} rounds in turn, {platform.machine()} with "
        f"{os.cpu_count()} cores, no GPU. Whole processes; yi-tune's asks 18 held-out questions of base and tuned",
        "model besides. On another machine only the ratio holds.",
        "",
        "| | seconds, each round | median | mean training loss |",
        "|---|---|---|---|",
    ]
    for name, took in seconds.items():
        each = ", ".join(f"{value:.1f}" for value in took)
        lines.append(f"| {name} | {each} | {statistics.median(took):.1f} | {losses[name]:.4f} |")
    lines += [
        "",
        f"Ratio of the medians: **{ours / theirs:.2f}**. The losses are {abs(apart):.2%} apart.",
        "",
        "On a CUDA GPU: not measured yet.",
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"ratio {ours / theirs:.2f}, losses {apart:+.2%} apart; wrote {PAGE.name}")


if __name__ == "__main__":
    main()
