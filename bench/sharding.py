"""What `train --shard` takes on two CUDA GPUs or more, beside whole models: `make bench-sharding`. Not measured yet.

A model of Yi-1.5-6B's shape with random weights is trained for some steps by `--gpus 2`, plain and with each sharding,
in 4 and in 16 bits; each run is stopped in its middle and goes on. Writes docs/bench-sharding.md: memory of the fullest
GPU, time, losses, and whether the adapter is whole. What fails has the end of its log there.

python3 -m bench.sharding --shape tiny --device cpu     the same with two processes, for a try; writes no page
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from bench.pages import DOCS, table, write
from bench.random_model import SHAPES
from bench.train import CommandError, by_yi_tune, measure, run_folder, training

RUNS = (("", "qlora"), ("fsdp", "qlora"), ("zero2", "qlora"), ("", "lora"), ("fsdp", "lora"), ("zero3", "lora"))
STEPS = 16


def fullest() -> float:
    """Memory in use on the fullest GPU, in GiB; 0 without one."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        used = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return 0.0
    return max(map(int, used), default=0) / 1024


def one(train: list[str], run: Path) -> str:
    """Train, stop in the middle, and go on; the cells of a row."""
    from safetensors.torch import load_file

    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], fullest())

    threading.Thread(target=watch, daemon=True).start()
    try:
        measured = by_yi_tune(train, run)
    finally:
        done.set()
    losses = [
        log["loss"] for log in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in log
    ]
    shapes = {tensor.numel() > 0 for tensor in load_file(run / "adapter_model.safetensors").values()}
    process = subprocess.Popen([*train, "--fresh"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = run / "trainer_log.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) in range(3, STEPS // 2)):
        time.sleep(0.05)
    process.terminate()
    process.wait()
    measure(train, run)
    resumed = [
        log["loss"] for log in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in log
    ]
    return (
        f"{peak[0]:.1f} GiB | {measured.loop or 0:.1f} s | {losses[0]:.4f} | {losses[-1]:.4f} | {resumed[-1]:.4f} "
        f"| {'yes' if shapes == {True} else 'no'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="yi-1.5-6b")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--gpus", default="2")
    options = parser.parse_args()
    lines = table(
        "--shard", "config", "fullest GPU", "training", "first loss", "last", "last when resumed", "adapter whole"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = work / "models" / options.shape
        subprocess.run([sys.executable, "-m", "bench.random_model", options.shape, str(model)], check=True)
        for sharding, config in RUNS:
            name = f"{config}-{sharding or 'whole'}"
            train = [*training(str(model), work), "--config", config, "--run", name, "--gpus", options.gpus]
            train += [
                "--device",
                options.device,
                "--set",
                f"max_steps={STEPS}",
                *(["--shard", sharding] if sharding else []),
            ]
            row = f"| {sharding or 'whole'} | {config} | "
            if sharding.startswith("zero") and not find_spec("deepspeed"):
                lines.append(f"{row}DeepSpeed is not installed | | | | | |")
                continue
            try:
                lines.append(f"{row}{one(train, run_folder(str(model), work, name))} |")
            except CommandError as error:
                print(error.log)
                lines.append(f"{row}{error}: {error.log.splitlines()[-1] if error.log else ''} | | | | | |")
            print(lines[-1], flush=True)
    if options.device == "auto":
        write(DOCS / "bench-sharding.md", "Sharding on GPUs", "sharding", lines)


if __name__ == "__main__":
    main()
