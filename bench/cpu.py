"""Precision and attention of training on a CPU, in turn: `make bench-cpu`. Writes docs/bench-cpu.md.

The same steps on nano in each way that hardware.py chooses between; what counts is the Trainer's own loop.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from bench.pages import DOCS, MACHINE, table, write
from bench.train import by_yi_tune, gpu, run_folder, training
from yi_tune.hardware import cpu_has_bf16

WAYS = {
    "bf16, SDPA": ("bf16=true", "flash_attn=auto"),
    "neither bf16 nor fp16, SDPA": ("bf16=false", "flash_attn=auto"),
    "neither bf16 nor fp16, plain attention": ("bf16=false", "flash_attn=disabled"),
}
ROUNDS, STEPS = 3, 24


def main() -> None:
    if gpu("name"):
        sys.exit("There is a GPU here: this is about training without one.")
    loops: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train = [*training("nano", work), "--set", f"max_steps={STEPS}"]
        for _ in range(ROUNDS):
            for way, assignments in WAYS.items():
                run = by_yi_tune(
                    [*train, *(part for one in assignments for part in ("--set", one))], run_folder("nano", work)
                )
                assert run.loop is not None  # noqa: S101 (for the type checker)
                loops[way].append(run.loop)
                print(way, run.loop, flush=True)
    medians = {way: statistics.median(seconds) for way, seconds in loops.items()}
    first = next(iter(medians.values()))
    lines = [
        f"nano, {STEPS} steps of 8 rows with their evaluations, {ROUNDS} rounds in turn; {MACHINE},",
        f"a CPU with {'' if cpu_has_bf16() else 'no '}bf16 of its own. With it yi-tune trains as in the first row,",
        "without it as in the last. On another machine only the ratios hold.",
        "",
        *table("", "the Trainer's seconds, each round", "median", "ratio"),
        *(
            f"| {way} | {', '.join(f'{one:.1f}' for one in loops[way])} | {median:.1f} | {median / first:.2f} |"
            for way, median in medians.items()
        ),
    ]
    write(DOCS / "bench-cpu.md", "Training on a CPU", "cpu", lines)


if __name__ == "__main__":
    main()
