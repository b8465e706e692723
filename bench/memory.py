"""The estimate of memory beside what `yi-tune train` takes as a whole process on a CPU: `make bench-memory`.

nano and random models of three other sizes, and nano in each other way that it is trained; some steps each, that with
the longest rows first. Writes docs/memory.md. A GPU's memory is bench/gpu.py's and bench/published.py's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import yaml

from bench.pages import DOCS, table, write
from bench.published import section
from bench.random_model import NANO
from bench.train import measure, training
from yi_tune.models import find_model
from yi_tune.plan.memory import estimate

MODELS = ("nano", "small", "medium", "large")
GIB = 2**30
# In a process of its own: how large a child was counts from how large its parent is.
_LONGEST = """
import json, sys
from pathlib import Path
from yi_tune.data.own import count_tokens
rows = [json.loads(line)["messages"] for file in sys.argv[2:] for line in Path(file).read_text().splitlines()]
print(f"\\n{max(count_tokens(Path(sys.argv[1]), rows))}")
"""


def longest_in(data: Path) -> int:
    """Tokens of the longest row that a run has in its folder `data`."""
    return _longest(*sorted(data.glob("*.jsonl")))


@cache
def _longest(*files: Path) -> int:
    """Tokens of the longest row, by nano's tokenizer, which the random models have too."""
    command = [sys.executable, "-c", _LONGEST, str(NANO), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def compare(model: str, micro_batch: int, work: Path, *options: str) -> tuple[int, float]:
    """The estimate for four steps of training, and how large the process was, in bytes."""
    train = [*training(model, work), "--device", "cpu", "--set", f"per_device_train_batch_size={micro_batch}"]
    train += ["--set", "max_steps=4", "--set", "train_sampling_strategy=group_by_length", *options]
    measured = measure([*train, "--fresh"]).memory * GIB
    (written,) = work.glob(f"saves/{Path(model).name}/*/train.yaml")
    config = yaml.safe_load(written.read_text(encoding="utf-8"))
    shape = find_model(config["model_name_or_path"], Path()).shape
    parts = estimate(shape, config, longest_in(written.parent / "data"), "cpu")
    return sum(parts.values()), measured


def write_long_rows(file: Path) -> Path:
    """Rows of your own that are several times as long as an identity row."""
    question, answer = "What is known of the number?", " ".join(["It is a number."] * 60)
    rows = [{"instruction": f"{question} {number}", "output": answer} for number in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    options = parser.parse_args()
    lines = [
        "What plan/memory.py estimates, beside the largest that the process of `yi-tune train` was, in GiB: on a",
        "CPU, four steps on the longest rows, an evaluation and the questions after training. The rows are those of",
        "the identity, and what the options add.",
        "",
        *table("model", "parameters", "micro-batch", "options", "estimate", "measured", "estimate / measured"),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in options.models:
            model = name
            if name != "nano":
                model = str(work / name)
                measure([sys.executable, "-m", "bench.random_model", name, model])
            # Random weights never end an answer, so that the larger ones take minutes over the questions.
            shape = find_model(model, Path()).shape
            runs: list[tuple[int, str]] = [(8, ""), (2, "")] if name in ("nano", "small") else [(8, "")]
            if name == "nano":
                write_long_rows(work / "long.jsonl")
                runs += [(8, f"--config {config}") for config in ("qlora-8bit", "lora")]
                runs += [(8, "--replay 64"), (8, "--data long.jsonl"), (8, "--data long.jsonl --config lora")]
            for micro_batch, options in runs:
                typed = options.replace("long.jsonl", str(work / "long.jsonl")).split()
                estimated, measured = compare(model, micro_batch, work, *typed)
                lines.append(
                    f"| {name} | {shape.parameters / 1e6:.0f} M | {micro_batch} | {options and f'`{options}`'} "
                    f"| {estimated / GIB:.2f} | {measured / GIB:.2f} | {estimated / measured:.2f} |"
                )
                print(lines[-1], flush=True)
    write(DOCS / "memory.md", "Memory", "memory", [*lines, "", *section()])


if __name__ == "__main__":
    main()
