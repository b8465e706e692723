"""The estimate of memory beside what `yi-tune train` takes as a whole process on a CPU: `make bench-memory`.

nano and random models of three other sizes, some steps each, that with the longest rows first. Writes docs/memory.md.
A GPU's memory is bench/gpu.py's.
"""

import argparse
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import yaml

from bench.random_model import NANO
from bench.train import ROOT, measure, training
from yi_tune.planning.memory import Estimate, estimate
from yi_tune.planning.shapes import read_shape

PAGE = ROOT / "docs" / "memory.md"
MODELS = ("nano", "small", "medium", "large")
GIB = 2**30
# In a process of its own: how large a child was counts from how large its parent is.
_LONGEST = """
import sys
from yi_tune.engine.tokens import token_lengths
from yi_tune.identity import Identity, identity_rows, render
rows = render(identity_rows(), Identity("小易", "李雷"))
print(f"\\n{max(token_lengths(rows, {'model_name_or_path': sys.argv[1], 'template': 'yi'}))}")
"""


@cache
def longest() -> int:
    """Tokens of the longest identity row, by nano's tokenizer, which the random models have too."""
    done = subprocess.run([sys.executable, "-c", _LONGEST, str(NANO)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def compare(model: str, micro_batch: int, work: Path) -> tuple[Estimate, float]:
    """The estimate for four steps of training, and how large the process was, in bytes."""
    train = [*training(model, work), "--set", "use_cpu=true", "--set", f"per_device_train_batch_size={micro_batch}"]
    train += ["--set", "max_steps=4", "--set", "train_sampling_strategy=group_by_length"]
    measured = measure([*train, "--fresh"]).memory * GIB
    (written,) = work.glob(f"saves/{Path(model).name}/*/train.yaml")
    config = yaml.safe_load(written.read_text(encoding="utf-8"))
    return estimate(read_shape(Path(config["model_name_or_path"])), config, longest(), "cpu"), measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    options = parser.parse_args()
    lines = [
        "# Memory",
        "",
        "Written by `make bench-memory` (bench/memory.py); not by hand.",
        "",
        "What planning/memory.py estimates, beside the largest that the process of `yi-tune train` was, in GiB: 4-bit",
        "QLoRA on a CPU, four steps on the longest identity rows, an evaluation and the questions after training.",
        "",
        "| model | parameters | micro-batch | estimate | measured | estimate / measured |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in options.models:
            model = name
            if name != "nano":
                model = str(work / name)
                measure([sys.executable, "-m", "bench.random_model", name, model])
            # Random weights never end an answer, so that the larger ones take minutes over the questions.
            for micro_batch in (8, 2) if name in ("nano", "small") else (8,):
                estimated, measured = compare(model, micro_batch, work)
                shape = read_shape(NANO if name == "nano" else Path(model))
                lines.append(
                    f"| {name} | {shape.parameters / 1e6:.0f} M | {micro_batch} | {estimated.total / GIB:.2f} "
                    f"| {measured / GIB:.2f} | {estimated.total / measured:.2f} |"
                )
                print(lines[-1], flush=True)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
