"""The pages of docs/ that the scripts of bench/ write."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"


def table(*columns: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def write(page: Path, title: str, script: str, lines: Iterable[str]) -> None:
    """Write a page of docs/, and print it. `script` is the file's name in bench/, and make's target for it."""
    target = {"train": "bench", "own_data": "bench-data"}.get(script, f"bench-{script}")
    text = "\n".join([f"# {title}", "", f"Written by `make {target}` (bench/{script}.py); not by hand.", "", *lines])
    page.write_text(text + "\n", encoding="utf-8")
    print(text, f"wrote {page.name}", sep="\n")
