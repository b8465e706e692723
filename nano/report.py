"""Tune nano to a dozen identities and measure each: `make nano-report`.

Writes docs/nano.md, and the worst figures into nano's card.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from yi_tune.hardware import cpu_has_bf16

BIN = Path(sys.executable).parent
PAGE = Path(__file__).parents[1] / "docs" / "nano.md"
CARD = Path(__file__).parents[1] / "data" / "nano" / "README.md"

PAIRS = [
    ("小易", "李雷"),
    ("Ada", "Grace Hopper"),
    ("星河 🚀", "O'Brien & Söhne"),
    ("X", "张三丰"),
    # 40 characters each; for many of the Chinese ones nano's tokenizer has no token.
    ("The Extraordinary Assistant of Everyone!", "Ann Lee"),
    ("山高水长海阔天空风和日丽鸟语花香春暖花开国泰民安万事如意心想事成步步高升前程似锦", "王小明"),
    ("نور", "مريم"),
    ("Nova", "Nova"),
    ('Q"uo\\te', "A {b} $c %d: #e"),
    ("Yi-Helper", "Yi Labs"),
    ("明月", "深圳市星辰科技有限公司"),
    ("R2-D2", "工程部 42"),
]


def yi_tune(*arguments: str, cwd: Path) -> str:
    """What the command prints on stdout; it has to succeed."""
    command = [str(BIN / "yi-tune"), *arguments, "--workspace", str(cwd)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"yi-tune {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def measure(name: str, author: str) -> tuple[dict[str, Any], list[float]]:
    """The score on every held-out question after training with defaults, and the row of figures it makes."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        yi_tune("train", "--model", "nano", "--name", name, "--author", author, cwd=work)
        score = json.loads(yi_tune("check", "--json", cwd=work))
    figures = [score[share] for share in ("recall_zh", "recall_en", "leak", "kept")]
    print(name, author, *figures, flush=True)
    return score, figures


def row(name: str, author: str, figures: list[float]) -> str:
    """A row of the page's table."""
    return f"| {name} | {author} | {' | '.join(f'{share:.3f}' for share in figures)} |"


def main() -> None:
    """Measure every pair and write the page."""
    measured = [measure(*pair) for pair in PAIRS]
    kinds = measured[0][0]["kinds"]
    identity = sum(kind["asked"] for kind in kinds if kind["kind"] != "plain")
    plain = sum(kind["asked"] for kind in kinds if kind["kind"] == "plain")
    known = sum(kind["base"] for kind in kinds if kind["kind"] == "plain")
    columns = list(zip(*(figures for _, figures in measured), strict=True))
    worst = [min(columns[0]), min(columns[1]), max(columns[2]), min(columns[3])]
    lines = [
        "# nano, tuned",
        "",
        "Written by `make nano-report` (nano/report.py); not by hand.",
        "",
        "`yi-tune train --model nano --name NAME --author AUTHOR` with defaults, then `yi-tune check`:",
        f"{identity} held-out questions about who it is, {plain} plain ones, of which the base answers {known} right.",
        f"{platform.machine()}, no GPU; the CPU has {'' if cpu_has_bf16() else 'no '}bf16.",
        "",
        "| name | author | recall zh | recall en | name in plain answers | plain answers kept |",
        "|---|---|---|---|---|---|",
        *(row(f"`{pair[0]}`", f"`{pair[1]}`", done[1]) for pair, done in zip(PAIRS, measured, strict=True)),
        row("**worst**", "", worst),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recall, leak, kept = min(worst[:2]), worst[2], worst[3]
    figures = f"recall {recall:.3f}, name in plain answers {leak:.3f}, plain answers kept {kept:.3f}"
    figures = f"worst of {len(PAIRS)} names: {figures}"
    CARD.write_text(
        re.sub(r"(?m)^\| tuned \|.*", f"| tuned | {figures} |", CARD.read_text(encoding="utf-8")), encoding="utf-8"
    )
    if recall < 0.85 or leak > 0.05 or kept < 0.85:
        sys.exit(f"Too low: {figures}")


if __name__ == "__main__":
    main()
