"""Own data of 10,000 and of 100,000 rows: time and memory of a training of one step, and of the same once more.

python -m bench.own_data        writes docs/bench-data.md
"""

import json
import random
import tempfile
from pathlib import Path

from bench.pages import DOCS, MACHINE, table, write
from bench.train import YI_TUNE, measure

SIZES = (10_000, 100_000)
WORDS = [*map(str, range(60)), "the", "sun", "gives", "light", "太阳", "是", "一颗", "恒星"]
SETTINGS = ("max_steps=1", "cutoff_len=512", "val_size=0.001")


def write_rows(file: Path, rows: int) -> None:
    """Rows of 20 words asked and 20 to 200 answered, all different."""
    draw = random.Random(rows)  # noqa: S311
    with file.open("w", encoding="utf-8") as lines:
        for number in range(rows):
            asked = " ".join(draw.choices(WORDS, k=20))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(20, 200)))
            lines.write(json.dumps({"instruction": f"{number} {asked}", "output": answer}, ensure_ascii=False) + "\n")


def main() -> None:
    lines = [f"yi-tune train on nano with {', '.join(SETTINGS)}: whole processes on {MACHINE}.", ""]
    lines += table("rows", "file, MB", "", "seconds", "peak memory, GiB")
    for rows in SIZES:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "rows.jsonl"
            write_rows(file, rows)
            train = [*YI_TUNE, "train", "--model", "nano", "--no-identity", "--data", str(file), "--workspace", name]
            train += [part for setting in SETTINGS for part in ("--set", setting)]
            for which in ("first", "again"):
                run = measure([*train, "--fresh"])
                size = file.stat().st_size / 1e6
                lines.append(f"| {rows:,} | {size:.0f} | {which} | {run.seconds:.1f} | {run.memory:.2f} |")
                print(lines[-1], flush=True)
    write(DOCS / "bench-data.md", "Own data", "own_data", lines)


if __name__ == "__main__":
    main()
