"""Yi-1.5-6B's size on a CPU: `yi-tune train --device cpu`, `chat` and `export`, one after the other as processes, on a
model of its shape with random weights: `make bench-full-size`. Nothing is fetched; 30 GB of disk are needed.

Writes docs/full-size.md: seconds, seconds a step, and the largest that each process was beside the plan's estimate.

python3 -m bench.full_size --shape tiny --page page.md     the same in two minutes, for a try
python3 -m bench.full_size --ram 16                        with so much RAM free: the rest is taken up meanwhile
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import yaml

from bench.memory import longest_in
from bench.pages import DOCS, MACHINE, table, write
from bench.random_model import SHAPES
from bench.train import YI_TUNE, CommandError, Measured, measure, run_folder
from yi_tune.data.identity import Identity, render
from yi_tune.hardware import cpu_has_bf16
from yi_tune.models import find_model
from yi_tune.plan.memory import estimate, needed

GIB = 2**30
STEPS = 2
# Sentences in an answer, for rows of 32 tokens and of 64 when they are padded: with Yi's tokenizer the identity rows
# have 26 on average and 58 at most.
SENTENCES = (2, 8)
# `yi-tune` whose answers end after 16 tokens: random weights never end one, and an identity row's answer has 11.
SHORT = """
from functools import partialmethod
from yi_tune.engine.assistant import Assistant
Assistant.greedy = partialmethod(Assistant.greedy, max_new_tokens=16)
from yi_tune import cli
cli.main()
"""


def write_rows(file: Path, sentences: int) -> Path:
    """Rows of own data, all of the same length."""
    row = {"instruction": "What is it?", "output": " ".join(["It is a number."] * sentences)}
    file.write_text((json.dumps(row) + "\n") * 80, encoding="utf-8")
    return file


def gb(size: float) -> str:
    """Bytes in GB, as the plan prints them."""
    return f"{size / 1e9:.1f} GB"


def cells(measured: Measured) -> list[str]:
    """Seconds, and the memory of the process, whole and anonymous."""
    return [f"{measured.seconds:.0f}", gb(measured.memory * GIB), gb(measured.anonymous * GIB)]


def train(model: Path, work: Path, sentences: int) -> tuple[str, float]:
    """The row of a training, and its seconds a step."""
    name = f"rows-{sentences}"
    rows, run = write_rows(work / f"{name}.jsonl", sentences), run_folder(str(model), work, name)
    options = ["--no-identity", "--data", str(rows), "--replay", "0", "--device", "cpu", "--set", f"max_steps={STEPS}"]
    where = ["--model", str(model), "--run", name, "--workspace", str(work)]
    measured = measure([sys.executable, "-c", SHORT, "train", *options, *where], run)
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    step = ((measured.loop or 0.0) - sum(log.get("eval_runtime", 0.0) for log in history)) / STEPS
    config = yaml.safe_load((run / "train.yaml").read_text(encoding="utf-8"))
    parts = estimate(find_model(str(model), work).shape, config, longest_in(run / "data"), "cpu")
    micro, steps = config["per_device_train_batch_size"], config["gradient_accumulation_steps"]
    what = f"train, {STEPS} steps of {micro} x {steps} rows of {-(-longest_in(run / 'data') // 8) * 8} tokens"
    seconds, whole, anonymous = cells(measured)
    estimated = [gb(sum(parts.values())), gb(needed(parts))]
    return f"| {' | '.join([what, seconds, f'{step:.1f}', whole, anonymous, *estimated])} |", step


def after(what: str, *command: str) -> str:
    """The row of a command that uses the run."""
    seconds, whole, anonymous = cells(measure([*YI_TUNE, *command]))
    return f"| {what} | {seconds} | | {whole} | {anonymous} | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="yi-1.5-6b")
    parser.add_argument("--ram", type=float, help="GB of RAM to leave free; where there is swap, it softens the limit")
    parser.add_argument("--page", type=Path, default=DOCS / "full-size.md")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # chat and export have no --device
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model = work / options.shape
        subprocess.run([sys.executable, "-m", "bench.random_model", options.shape, str(model)], check=True)
        free = psutil.virtual_memory().available
        taken = b"\1" * max(0, int(free - options.ram * 1e9)) if options.ram else b""
        rows, step, failed = [], math.nan, False
        run = ["--run", f"rows-{SENTENCES[0]}", "--workspace", str(work)]
        ask = [*("chat", "--prompt", "Who are you?", "--max-new-tokens", "32"), *run]
        try:
            for sentences in SENTENCES:
                row, seconds = train(model, work, sentences)
                step = seconds if sentences == SENTENCES[0] else step
                rows.append(row)
            rows.append(after("chat, a reply of 32 tokens", *ask))
            rows.append(after("export, safetensors", "export", *run))
        except CommandError as error:
            failed = True
            rows.append(f"| {error} | | | | | | |")
            print(error, error.log, sep="\n")
        lines = [
            f"A model of the shape {options.shape} with random weights; {MACHINE}, {gb(free - len(taken))} of RAM",
            f"free, no GPU; the CPU has {'' if cpu_has_bf16() else 'no '}bf16. Each command is a process:",
            "`yi-tune train --no-identity --data rows.jsonl --replay 0 --device cpu`, then `chat` and `export` of its",
            "run. *Seconds a step* are without the evaluations. *Peak* is the largest that the process was, with the",
            "pages of the model's file, which the system takes back where memory is short; *anonymous* is what it",
            "cannot take back. *Estimate* is what the plan expects of the peak, *needed* what it wants free. Random",
            "weights never end an answer: those to train's questions are cut to 16 tokens.",
            "",
            *table("", "seconds", "seconds a step", "peak", "anonymous", "estimate", "needed"),
            *rows,
        ]
        if not math.isnan(step):
            steps = math.ceil(len(render(Identity("小易", "李雷"))) * 0.9 / 8) * 3
            lines += [
                "",
                f"The default training has {steps} steps of 8 identity rows, of 26 tokens on average: at that speed "
                f"{steps * step / 60:.0f} min,",
                "besides the loading, four evaluations and the questions.",
            ]
        write(options.page, "The full size, without a GPU", "full_size", lines)
    sys.exit(failed)


if __name__ == "__main__":
    main()
