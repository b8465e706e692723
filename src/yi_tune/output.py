"""Where things are printed: results on stdout, all else on stderr, and the engine's own output in a log."""

import os
import sys
import tempfile
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from gettext import gettext as _
from pathlib import Path
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console


class TextConsole(Console):
    """A console that prints text as it is: no markup, no emoji for colons, no line breaks of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(printed, str) for printed in objects):
            options = {"markup": False, "soft_wrap": True, **options}
        super().print(*objects, **options)


out = TextConsole()
err = TextConsole(stderr=True)


def print_table(
    console: Console, rows: Iterable[Sequence[str]], right: Collection[int] = (), *, most: int = sys.maxsize
) -> None:
    """Print a line for each row of cells, however wide the terminal is. Columns are aligned, those in `right` to the
    right; a Chinese character takes two cells of a terminal. A cell wider than `most` widens no line but its own.
    """
    rows = list(rows)
    widths = [max(width for width in map(cell_len, column) if width <= most) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (padded(cell, widths[at], right=at in right) for at, cell in enumerate(row))
        console.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """The text with spaces to so many cells of a terminal; with `right` they stand before it."""
    spaces = " " * (width - cell_len(text))
    return spaces + text if right else text + spaces


def percent(share: float | None) -> str:
    """A share for people: "97.3%", or "-" when nothing was asked."""
    return "-" if share is None else f"{share:.1%}"


def spell(seconds: float) -> str:
    """A time for people: "40 s", "9 min" or "2.5 h"."""
    if seconds < 90:
        return _("{seconds:.0f} s").format(seconds=seconds)
    if seconds < 5400:
        return _("{minutes:.0f} min").format(minutes=seconds / 60)
    return _("{hours:.1f} h").format(hours=seconds / 3600)


def log_folder() -> Path:
    """Where logs go that belong to no run: the user's configuration folder, or where that cannot be, a new one."""
    folder = Path(typer.get_app_dir("yi-tune"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="yi-tune-"))
    return folder


def log_traceback() -> str:
    """Write the traceback of the exception being handled to a log; returns where it is, for people."""
    log = log_folder() / "error.log"
    with suppress(OSError):  # the disk is full
        log.write_text(traceback.format_exc(), encoding="utf-8")
    return str(log)


@contextmanager
def engine_output_to(log: Path) -> Iterator[TextConsole]:
    """Send all output of this process and its children to `log`; yields a console on the real stderr.

    It acts on the file descriptors: LLaMA-Factory, transformers and bitsandbytes print, log and warn by every way there
    is. A question, which only the log would show, finds no terminal, and fails instead of waiting for an answer.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        Path(os.devnull).open() as nothing,
        log.open("a") as target,
        os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace") as terminal,
    ):
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [os.dup(descriptor) for descriptor in range(3)]
        try:
            for descriptor, file in enumerate((nothing, target, target)):
                os.dup2(file.fileno(), descriptor)
            yield TextConsole(file=terminal)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # the log's disk is full: the engine's output is lost, the user's is not
                    stream.flush()
            for descriptor, copy in enumerate(saved):
                os.dup2(copy, descriptor)
                os.close(copy)
