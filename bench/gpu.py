"""All measurements that need a CUDA GPU, unattended, in less than eight minutes: `python3 -m bench.gpu`.

What decides most comes first: nano from training to chat; then, on a model of Yi-1.5-6B's shape with random weights,
training, check, and chat in 16 and in 4 bits; the tutorial's config by llamafactory-cli beside yi-tune's default; the
memory estimate beside the peak; replay; another round of both sides; the speed-ups that are installed. Nothing is
fetched. After each step the page docs/bench-gpu.md and all figures (bench-gpu.json beside it) are written anew: a kill
loses the step under way. When a step fails or hangs the page keeps the end of its log, and the others go on; the exit
status is then 1.

python3 -m bench.gpu --shape tiny --steps 1     the same on a CPU, for a try; writes no page without --out
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import yaml

from bench.memory import longest_in
from bench.pages import DOCS, table, text
from bench.random_model import SHAPES
from bench.train import (
    OURS,
    THEIRS,
    YI_TUNE,
    Measured,
    OutOfTimeError,
    by_llamafactory,
    by_tutorial,
    by_yi_tune,
    gpu,
    measure,
    run_folder,
    training,
)
from yi_tune.config import find_config, read_config
from yi_tune.data.identity import dataset_of, write_datasets
from yi_tune.files import write_whole
from yi_tune.models import find_model
from yi_tune.plan.memory import ACCUMULATION, EVAL, MICRO, NO_CHECKPOINTING, estimate

STEP_SECONDS = 150  # a step that takes longer hangs
ROW_TOKENS = 512
# Rows of a step and whether checkpoints are taken of them, on rows of ROW_TOKENS.
MEMORY = ((8, True), (8, False), (2, False))
# What may make training faster, and the module that it takes.
SPEEDUPS = {"enable_liger_kernel=true": "liger_kernel", "flash_attn=fa2": "flash_attn", "torch_compile=true": "torch"}
PACKAGES = ("torch", "bitsandbytes", "transformers", "peft", "llamafactory")
QUESTION = "Who are you?"
THEIR_CHAT = "llamafactory-cli chat, one question"
# `yi-tune check` with one question of each kind and eight general prompts, 32 tokens an answer: random weights would
# take minutes over all of them.
CHECK = """
from functools import partialmethod
from yi_tune.data import general, heldout
from yi_tune.engine.assistant import Assistant
asked, prompts = heldout.one_of_each(heldout.questions()), general.check_prompts()[:8]
heldout.questions, general.check_prompts = lambda: asked, lambda: prompts
Assistant.greedy = partialmethod(Assistant.greedy, max_new_tokens=32)
from yi_tune import cli
cli.main()
"""
# `yi-tune` whose base answers as random weights do, 128 tokens each, and is heard as one that came to an end.
REPLAY = """
from yi_tune.engine import divergence
ask = divergence.ask_base
heard = {"answer": "It is a number. " * 20, "finished": True}
divergence.ask_base = lambda *asked: [{**said, **heard} for said in ask(*asked)]
from yi_tune import cli
cli.main()
"""
# What llamafactory-cli chat calls. Python aborts when it ends before the thread that has made the answer.
CHAT = """
import threading
from llamafactory.chat.chat_model import run_chat
run_chat()
for thread in threading.enumerate():
    if "(generate)" in thread.name:
        thread.join(10)
"""


@dataclass(frozen=True)
class Step:
    """What is to be measured, given the seconds that are left for it, and what memory was estimated, in GiB."""

    name: str
    measured: Callable[[float], Measured]
    estimate: Callable[[], float | None] = lambda: None


@dataclass
class Row:
    """What came of a step: "done", "no time left", or how it failed, with the end of its log."""

    step: str
    outcome: str = "no time left"
    measured: Measured | None = None
    estimate: float | None = None
    log: str = ""


def steps(shape: str, rounds: int, count: int, work: Path) -> Iterator[Step]:
    """All that is to be measured, what decides most first."""
    where = ["--workspace", str(work)]
    nano = [*training("nano", work), "--run", "nano"]
    yield Step("nano: yi-tune train", partial(by_yi_tune, nano, run_folder("nano", work, "nano")))
    check = [*YI_TUNE, "check", "--run", "nano", "--min-recall", "0.95", *where]
    yield Step("nano: yi-tune check --min-recall 0.95", partial(measure, check, None))
    ask = [*YI_TUNE, "chat", "--run", "nano", "--prompt", QUESTION, *where]
    yield Step("nano: yi-tune chat", partial(measure, ask, None))

    model, run = work / shape, run_folder(shape, work)
    build = [sys.executable, "-m", "bench.random_model", shape, str(model)]
    yield Step(f"build {shape} of random weights", partial(measure, build, None))
    # As in the tutorial: the four evaluations of a whole run would weigh too much in a few steps.
    settings = (f"max_steps={count}", "eval_steps=500", "save_steps=500")
    train = [*training(str(model), work), *(part for setting in settings for part in ("--set", setting))]
    ours = Step(OURS, partial(by_yi_tune, train, run), partial(estimated, run / "train.yaml", asks=True))
    yield ours
    check = [sys.executable, "-c", CHECK, "check", "--run", run.name, *where]
    yield Step("yi-tune check, 18 questions and 8 prompts", partial(measure, check, None))
    for bits in (16, 4):
        yield Step(f"yi-tune chat in {bits} bits, 128 tokens", partial(chat, run, where, bits))

    tutorial = work / "tutorial"
    theirs = Step(THEIRS, partial(by_tutorial, run, tutorial), partial(estimated, work / "tutorial.yaml"))
    yield theirs
    yield Step(THEIR_CHAT, partial(their_chat, model, tutorial))

    for rows, checkpointing in MEMORY:
        name = f"{rows} rows of {ROW_TOKENS} tokens{', checkpointing' if checkpointing else ''}"
        folder = work / f"long-{rows}-{checkpointing}"
        measured = partial(long_rows, run, rows, checkpointing, folder)
        yield Step(name, measured, partial(estimated, folder.with_suffix(".yaml")))
    replayed = run_folder(shape, work, "replay")
    replay = [sys.executable, "-c", REPLAY, *train[len(YI_TUNE) :], "--replay", "64", "--run", replayed.name]
    needed = partial(estimated, replayed / "train.yaml", asks=True)
    yield Step("yi-tune train --replay 64", partial(by_yi_tune, replay, replayed), needed)
    for number in range(2, rounds + 1):
        for step in (ours, theirs):
            yield replace(step, name=f"{step.name}, round {number}")
    for assignment, module in SPEEDUPS.items():
        if gpu("name") and find_spec(module):  # on a CPU the first two cannot work, and the third compiles for minutes
            faster = [*train, "--set", assignment]
            yield Step(f"{OURS} --set {assignment}", partial(by_yi_tune, faster, run))


def chat(run: Path, where: list[str], bits: int, left: float) -> Measured:
    """An answer of the run, its base in 16 bits or in 4, whichever of them yi-tune has chosen for this machine."""
    file = run / "chat.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config.pop("quantization_bit", None)
    file.write_text(yaml.safe_dump(config | ({"quantization_bit": 4} if bits == 4 else {})), encoding="utf-8")
    ask = [*YI_TUNE, "chat", "--run", run.name, "--prompt", QUESTION, "--max-new-tokens", "128", *where]
    return measure(ask, limit=left)


def their_chat(model: Path, adapter: Path, left: float) -> Measured:
    """LLaMA-Factory's own chat with what it has trained, by the tutorial's file: loaded, one question, the end."""
    paths = {"model_name_or_path": str(model), "adapter_name_or_path": str(adapter)}
    file = adapter.with_name("chat.yaml")
    file.write_text(yaml.safe_dump(read_config(find_config("chat")) | paths | {"max_new_tokens": 256}))
    return measure([sys.executable, "-c", CHAT, str(file)], limit=left, stdin=f"{QUESTION}\nexit\n")


def long_rows(run: Path, rows: int, checkpointing: bool, folder: Path, left: float) -> Measured:
    """Three steps of the run's config on rows of ROW_TOKENS, without the questions that yi-tune asks afterwards."""
    data, answer = folder.with_name("long"), "It is a number. " * ROW_TOKENS
    asked = ([{"role": "user", "content": str(n)}, {"role": "assistant", "content": answer}] for n in range(60))
    write_datasets([dataset_of("long", list(asked))], data)
    config = yaml.safe_load((run / "train.yaml").read_text(encoding="utf-8"))
    config |= {"dataset": "long", "dataset_dir": str(data), "cutoff_len": ROW_TOKENS, "max_steps": 3}
    config |= {MICRO: rows, EVAL: rows, ACCUMULATION: 1, NO_CHECKPOINTING: not checkpointing}
    return by_llamafactory(config, folder, left)


def estimated(file: Path, *, asks: bool = False) -> float:
    """What yi-tune's formula gives for training by this config here, in GiB; yi-tune itself asks questions as well."""
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    longest = min(config["cutoff_len"], longest_in(Path(config["dataset_dir"])))
    shape = find_model(config["model_name_or_path"], Path()).shape
    parts = estimate(shape, config, longest, "cuda" if gpu("name") else "cpu")
    return (sum(parts.values()) - (0 if asks else parts["answers"])) / 2**30


def take(step: Step, end: float) -> Row:
    """Do a step, which has until `end`, in seconds of time.monotonic(); whatever goes wrong is in its row."""
    row, left = Row(step.name), min(end - time.monotonic(), STEP_SECONDS)
    if left <= 0:
        return row
    try:
        row.measured = step.measured(left)
        row.estimate = step.estimate()
        row.outcome = "done"
    except Exception as error:
        row.log = getattr(error, "log", "") or traceback.format_exc(limit=-6)
        if not isinstance(error, OutOfTimeError) or left == STEP_SECONDS:
            row.outcome = f"failed: {type(error).__name__}: {error}"
    return row


def page(shape: str, count: int, rows: list[Row], seconds: float) -> list[str]:
    """The page's lines."""
    name, driver = gpu("name") or "No GPU", gpu("driver_version") or "-"
    versions = ", ".join([f"driver {driver}", f"Python {platform.python_version()}", *map(version, PACKAGES)])
    lines = [
        f"{name}, {versions}; {seconds:.0f} s in all.",
        f"A model of the shape {shape} with random weights, {count} steps of 8 rows, where nothing else is said.",
        f"Whole processes; loop is the Trainer's own time, peak the {'GPU' if gpu('name') else 'process'}'s memory.",
        "",
        *table("", "outcome", "seconds", "loop", "tokens/s", "peak, GiB", "estimate, GiB", "mean training loss"),
    ]
    for row in rows:
        run = row.measured
        figures = (run.seconds, run.loop, run.tokens, run.memory, row.estimate, run.loss) if run else (None,) * 6
        cells = (
            "" if figure is None else f"{figure:.{digits}f}"
            for figure, digits in zip(figures, (1, 1, 0, 2, 2, 4), strict=True)
        )
        lines.append(f"| {row.step} | {row.outcome.partition(':')[0]} | {' | '.join(cells)} |")
    lines += time_to_report({row.step: row.measured.seconds for row in rows if row.measured})
    for row in rows:
        if row.log:
            lines += ["", f"## {row.step}", "", row.outcome, "", "```text", *row.log.splitlines(), "```"]
    return lines


def time_to_report(seconds: dict[str, float]) -> list[str]:
    """How long each side takes from its command to the first answers, once that is measured."""
    if not {OURS, THEIRS, THEIR_CHAT} <= seconds.keys():
        return []
    train, ask = seconds[THEIRS], seconds[THEIR_CHAT]
    return [
        "",
        f"Time to the report: {OURS} **{seconds[OURS]:.1f} s**, in which base and tuned model answer 18 questions;",
        f"llamafactory-cli **{train + ask:.1f} s**, {train:.1f} s for its train and {ask:.1f} s for its chat, which",
        "loads the model anew, in 16 bits as in the tutorial, and answers one. Random weights answer with 256 tokens.",
    ]


def version(package: str) -> str:
    """A package and its version, as far as it is known."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} ?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="yi-1.5-6b")
    parser.add_argument("--rounds", type=int, default=2, help="of yi-tune and llamafactory-cli in turn")
    parser.add_argument("--steps", type=int, default=10, help="of training, in each round")
    parser.add_argument("--minutes", type=float, default=7.5, help="what is not done by then is left out")
    parser.add_argument("--work", type=Path, help="where 13 GB are free; a temporary folder if not given")
    parser.add_argument("--out", type=Path, help="the folder for the page and the JSON; docs/ if there is a GPU")
    options = parser.parse_args()
    # With more in sight llamafactory-cli would train on all of them.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # Everything is here: nobody waits for a hub. And what a step says that hangs is not lost.
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if not gpu("name") and options.shape.startswith("yi"):
        parser.error("there is no CUDA GPU here: --shape tiny tries it on a CPU")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the step under way would outlive this process
    if out := options.out or (DOCS if gpu("name") else None):
        out.mkdir(parents=True, exist_ok=True)
    began, rows, lines = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        for step in steps(options.shape, options.rounds, options.steps, Path(temporary)):
            rows.append(take(step, began + 60 * options.minutes))
            print(step.name, rows[-1].outcome, rows[-1].measured or "", sep="   ", flush=True)
            lines = page(options.shape, options.steps, rows, time.monotonic() - began)
            if out:
                write_whole(out / "bench-gpu.md", text("Benchmarks on a GPU", "gpu", lines))
                figures = json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=1)
                write_whole(out / "bench-gpu.json", figures)
    print("", *lines, sep="\n")
    sys.exit(any(row.outcome.startswith("failed") for row in rows))


if __name__ == "__main__":
    main()
