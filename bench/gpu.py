"""All measurements that need a CUDA GPU, unattended, in less than eight minutes: `make bench-gpu`.

On a model of Yi-1.5-6B's shape with random weights: yi-tune's default beside the tutorial's config by llamafactory-cli,
in turn; the memory of three micro-batches beside the estimate; a chat; the speed-ups that are installed. On nano: that
it learns its name there too. Prints a table and JSON, and writes docs/bench-gpu.md. After a failure the other steps go
on, and the exit status is 1; steps that found no time left are named.

.venv/bin/python -m bench.gpu --shape tiny --steps 1     the same on a CPU, for a try; writes no page
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.memory import longest_in
from bench.pages import DOCS, table, write
from bench.random_model import SHAPES
from bench.train import (
    OURS,
    THEIRS,
    YI_TUNE,
    CommandError,
    Measured,
    OutOfTimeError,
    by_llamafactory,
    by_tutorial,
    by_yi_tune,
    gpu,
    measure,
    planned,
    training,
)
from yi_tune.models import find_model
from yi_tune.plan.memory import estimate

PAGE = DOCS / "bench-gpu.md"
MICRO_BATCHES = (8, 4, 1)
# What may make training faster, and the module that it takes.
SPEEDUPS = {"enable_liger_kernel=true": "liger_kernel", "flash_attn=fa2": "flash_attn", "torch_compile=true": "torch"}
PACKAGES = ("torch", "bitsandbytes", "transformers", "llamafactory")

# How the figures of a step are shown.
_FIGURES = {
    "seconds": "{:.1f}",
    "loop": "{:.1f}",
    "tokens": "{:.0f}",
    "memory": "{:.2f} GiB",
    "loss": "{:.4f}",
}


@dataclass(frozen=True)
class Step:
    """What is to be measured, given the seconds that are left for it, and what memory was estimated, in GiB."""

    name: str
    measured: Callable[[float], Measured]
    estimate: Callable[[], float | None] = lambda: None


@dataclass(frozen=True)
class Row:
    """What came of a step: "done", "no time left", or how it failed."""

    step: str
    outcome: str
    measured: Measured | None = None
    estimate: float | None = None


def steps(shape: str, rounds: int, count: int, work: Path) -> Iterator[Step]:
    """All that is to be measured, the most wanted first."""
    model = work / shape
    where = ["--workspace", str(work)]
    train = [*training(str(model), work), "--set", f"max_steps={count}"]
    yield Step(
        "build the model",
        lambda left: measure([sys.executable, "-m", "bench.random_model", shape, str(model)], limit=left),
    )
    yield from in_turn(train, work, 1)
    for micro_batch in MICRO_BATCHES:
        yield Step(
            f"memory at micro-batch {micro_batch}",
            lambda left, size=micro_batch: memory(train, work, size, left),
            lambda size=micro_batch: estimated(memory_config(train, size)),
        )
    nano = [*training("nano", work), "--run", "nano"]
    yield Step("nano: yi-tune train", lambda left: by_yi_tune(nano, left))
    check = [*YI_TUNE, "check", "--run", "nano", "--min-recall", "0.95", *where]
    yield Step("nano: yi-tune check --min-recall 0.95", lambda left: measure(check, limit=left))
    chat = [*YI_TUNE, "chat", "--run", "identity", "--prompt", "你是谁？", "--max-new-tokens", "32", *where]
    yield Step("yi-tune chat, 32 tokens", lambda left: measure(chat, limit=left))
    for number in range(2, rounds + 1):
        yield from in_turn(train, work, number)
    for assignment, module in SPEEDUPS.items():
        if gpu("name") and find_spec(module):  # on a CPU the first two cannot work, and the third compiles for minutes
            faster = [*train, "--set", assignment]
            yield Step(f"{OURS} --set {assignment}", lambda left, train=faster: by_yi_tune(train, left))


def in_turn(train: list[str], work: Path, number: int) -> Iterator[Step]:
    """A round of yi-tune's default beside the tutorial's config."""
    yield Step(f"{OURS}, round {number}", lambda left: by_yi_tune(train, left))
    yield Step(f"{THEIRS}, round {number}", lambda left: by_tutorial(train, work / "tutorial", left))


def memory(train: list[str], work: Path, micro_batch: int, left: float) -> Measured:
    """Some steps of yi-tune's config, the longest rows first, without the questions that it asks afterwards."""
    return by_llamafactory(memory_config(train, micro_batch), work / f"memory-{micro_batch}", left)


def memory_config(train: list[str], micro_batch: int) -> dict[str, Any]:
    sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
    config = planned(*train) | dict.fromkeys(sizes, micro_batch)
    return config | {"gradient_accumulation_steps": 1, "train_sampling_strategy": "group_by_length", "max_steps": 3}


def estimated(config: dict[str, Any]) -> float:
    """What yi-tune's formula gives for training with this config here, in GiB, without questions afterwards."""
    model = Path(config["model_name_or_path"])
    longest = longest_in(Path(config["dataset_dir"]))  # what the rounds before have left there
    parts = estimate(find_model(str(model), Path()).shape, config, longest, "cuda" if gpu("name") else "cpu")
    return (sum(parts.values()) - parts["answers"]) / 2**30


def take(step: Step, end: float) -> Row:
    """Do a step, which has until `end`, in seconds of time.monotonic()."""
    left = end - time.monotonic()
    if left <= 0:
        return Row(step.name, "no time left")
    try:
        return Row(step.name, "done", step.measured(left), step.estimate())
    except OutOfTimeError:
        return Row(step.name, "no time left")
    except CommandError as error:
        return Row(step.name, f"failed: {error}")


def page(shape: str, count: int, rows: list[Row], seconds: float) -> list[str]:
    """The page's lines."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    lines = [
        f"{gpu('name') or 'No GPU'}, driver {gpu('driver_version') or '-'}, {versions}; {seconds:.0f} s in all.",
        f"A model of the shape {shape} with random weights, {count} steps of 8 rows. Whole processes; yi-tune's asks",
        "18 held-out questions besides, and random weights answer each with 256 tokens. Loop is the Trainer's time,",
        f"memory the {'GPU' if gpu('name') else 'process'}'s peak.",
        *(f"Not installed: {module}." for module in SPEEDUPS.values() if not find_spec(module)),
        "",
        *table("", "outcome", *("seconds", "loop", "tokens/s", "peak memory"), "estimate", "mean training loss"),
    ]
    for row in rows:
        cells = [_cell(getattr(row.measured, key, None), form) for key, form in _FIGURES.items()]
        cells.insert(4, _cell(row.estimate, _FIGURES["memory"]))
        lines.append(f"| {row.step} | {row.outcome.partition(':')[0]} | {' | '.join(cells)} |")
    return lines


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="yi-1.5-6b")
    parser.add_argument("--rounds", type=int, default=2, help="of yi-tune and llamafactory-cli in turn")
    parser.add_argument("--steps", type=int, default=10, help="of training, in each round")
    parser.add_argument("--minutes", type=float, default=7.5, help="what is not done by then is left out")
    parser.add_argument("--work", type=Path, help="where 13 GB are free; a temporary folder if not given")
    options = parser.parse_args()
    if not gpu("name") and options.shape.startswith("yi"):
        parser.error("there is no CUDA GPU here: --shape tiny tries it on a CPU")
    # With more in sight llamafactory-cli would train on all of them.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    began = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary)
        for step in steps(options.shape, options.rounds, options.steps, work):
            rows.append(take(step, began + 60 * options.minutes))
            print(rows[-1].step, rows[-1].outcome, rows[-1].measured or "", sep="   ", flush=True)
    lines = page(options.shape, options.steps, rows, time.monotonic() - began)
    if gpu("name"):
        write(PAGE, "Benchmarks on a GPU", "gpu", lines)
    print(*lines, "", json.dumps([asdict(row) for row in rows], ensure_ascii=False), sep="\n")
    sys.exit(any(row.outcome.startswith("failed") for row in rows))


if __name__ == "__main__":
    main()
