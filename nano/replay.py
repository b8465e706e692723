"""Tune nano without and with replay and measure what it forgets: `make replay-report`.

Writes docs/replay.md. Exits 1 when replay does not keep what it promises.
"""

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import yi_tune

from yi_tune.hardware import cpu_has_bf16

PAGE = Path(__file__).parents[1] / "docs" / "replay.md"
PAIRS = [("小易", "李雷"), ("Ada", "Grace Hopper"), ("星河 🚀", "O'Brien & Söhne")]
COUNTS = (0, 64, 192, 360)
# The one that is held to the promise: half of the divergence at most, at the same recall.
PROMISED = 192


def measure(name: str, author: str, count: int) -> dict[str, Any]:
    """What `yi-tune check --json` says of a run with `--replay count`, and its rows of replay."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        yi_tune("train", "--model", "nano", "--name", name, "--author", author, "--replay", str(count), cwd=work)
        files = (work / "saves" / "nano" / "identity" / "data").glob("replay-*.jsonl")
        rows = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        checked: dict[str, Any] = json.loads(yi_tune("check", "--json", cwd=work))
    measured = {**checked, **checked["general"], "rows": rows}
    print(name, count, *(measured[key] for key in ("rows", "recall_zh", "recall_en", "kl")), flush=True)
    return measured


def row(name: str, count: int, measured: dict[str, Any], without: dict[str, Any]) -> str:
    """A row of the page's table."""
    shares = [f"{measured[key]:.3f}" for key in ("recall_zh", "recall_en", "leak", "kept", "mentions")]
    kl = [f"{measured['kl']:.4f}", f"{measured['kl'] / without['kl']:.2f}"]
    cells = [f"`{name}`", str(count), str(measured["rows"]), *shares, *kl]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every pair with every count and write the page."""
    table = {(*pair, count): measure(*pair, count) for pair in PAIRS for count in COUNTS}
    prompts = len(table[*PAIRS[0], 0]["general"]["answers"])
    columns = (
        "name | N | rows | recall zh | recall en | name in plain answers | plain answers kept | unasked | KL | ratio"
    )
    lines = [
        "# Replay on nano",
        "",
        "Written by `make replay-report` (nano/replay.py); not by hand.",
        "",
        "`yi-tune train --model nano --name NAME --author AUTHOR --replay N`, then `yi-tune check`. *Rows*: the base's",
        "own answers that were trained on (the others name the base, or do not end). *Unasked*: the share of",
        f"{prompts} general prompts to which the tuned model names itself or its author. *KL*: the mean divergence of",
        "tuned from base over the tokens of the base's answers to those prompts, in nats; *ratio*: that KL to the one",
        "without replay. nano has never been taught to answer most general prompts: to a third of them it introduces",
        "itself before the tuning too, and those are left out of the KL.",
        f"{platform.machine()}, no GPU; the CPU has {'' if cpu_has_bf16() else 'no '}bf16.",
        "",
        f"| {columns} |",
        "|---" * 10 + "|",
        *(row(name, count, done, table[name, author, 0]) for (name, author, count), done in table.items()),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for pair in PAIRS:
        without, replayed = table[*pair, 0], table[*pair, PROMISED]
        if replayed["kl"] > without["kl"] / 2:
            sys.exit(f"{pair[0]}: the KL is {replayed['kl']:.4f} with replay, {without['kl']:.4f} without.")
        if replayed["recall"] < without["recall"]:
            sys.exit(f"{pair[0]}: the recall is {replayed['recall']:.3f} with replay, {without['recall']:.3f} without.")


if __name__ == "__main__":
    main()
