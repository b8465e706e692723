"""Own data of 10,000 and of 100,000 rows: memory and time to check, tokenise and mix, and when that was done before.

python -m bench.own_data        writes docs/bench-data.md
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "bench-data.md"
SIZES = (10_000, 100_000)
WORDS = [*map(str, range(60)), "the", "sun", "gives", "light", "太阳", "是", "一颗", "恒星"]


def write_rows(file: Path, rows: int) -> None:
    """Rows of 20 words asked and 20 to 200 answered, all different."""
    draw = random.Random(rows)  # noqa: S311
    with file.open("w", encoding="utf-8") as lines:
        for number in range(rows):
            asked = " ".join(draw.choices(WORDS, k=20))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(20, 200)))
            lines.write(json.dumps({"instruction": f"{number} {asked}", "output": answer}, ensure_ascii=False) + "\n")


def measure(workspace: Path) -> None:
    """Prepare `rows.jsonl` in the workspace as `train` does, and print seconds and peak memory as JSON."""
    began = time.monotonic()
    import yi_tune.engine.mixture  # noqa: F401  (what every training run imports)
    from yi_tune.data.own import mix, prepare_own
    from yi_tune.resources import DATA

    imported = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = {"model_name_or_path": str(DATA / "nano"), "template": "yi", "cutoff_len": 512, "val_size": 0.1}
    own = prepare_own([str(workspace / "rows.jsonl")], None, config, workspace, skip_bad_rows=False, tokens=True)
    prepared = time.monotonic()
    run = workspace / f"run-{time.monotonic_ns()}"
    run.mkdir()
    mix((own.dataset,), own, config, run / "tokenized")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {
        "import s": imported - began,
        "prepare s": prepared - imported,
        "mix s": time.monotonic() - prepared,
        "before MB": before / 1024,
        "peak MB": peak / 1024,
    }
    print(json.dumps(figures))


def main() -> None:
    lines = [
        "| rows | file, MB | | prepare, s | mix, s | memory before, MB | peak of any process, MB |",
        "|---" * 7 + "|",
    ]
    for rows in SIZES:
        with tempfile.TemporaryDirectory() as name:
            workspace = Path(name)
            write_rows(workspace / "rows.jsonl", rows)
            size = (workspace / "rows.jsonl").stat().st_size / 1e6
            for which in ("first", "again"):
                done = subprocess.run(
                    [sys.executable, "-m", "bench.own_data", str(workspace)], capture_output=True, text=True, check=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                lines.append(
                    f"| {rows:,} | {size:.0f} | {which} | {found['prepare s']:.1f} | {found['mix s']:.1f} | "
                    f"{found['before MB']:.0f} | {found['peak MB']:.0f} |"
                )
                print(lines[-1], flush=True)
    PAGE.write_text(
        "# Own data\n\nWritten by `make bench-data`, on nano's tokenizer, cutoff_len 512. Before: what importing the "
        "engine takes.\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    measure(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
