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


def text(title: str, script: str, lines: Iterable[str]) -> str:
    """A page of docs/. `script` is the file's name in bench/, and make's target for it."""
    target = {"train": "bench", "own_data": "bench-data"}.get(script, f"bench-{script.replace('_', '-')}")
    head = [f"# {title}", "", f"Written by `make {target}` (bench/{script}.py); not by hand.", ""]
    return "\n".join([*head, *lines, ""])


def write(page: Path, title: str, script: str, lines: Iterable[str]) -> None:
    """Write a page of docs/, and print it."""
    content = text(title, script, lines)
    page.write_text(content, encoding="utf-8")
    print(content, f"wrote {page.name}", sep="\n")
