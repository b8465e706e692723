"""Keeps what the engine prints out of the user's sight, and in a log."""

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from yi_tune.errors import YiTuneError


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
    try:
        log.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        return f"no file, for {error}; YI_TUNE_DEBUG=1 shows it."
    return str(log)


@contextmanager
def _no_input() -> Iterator[None]:
    """Let whoever asks a question, which only the log would show, find no terminal, and fail instead of wait."""
    try:
        saved = os.dup(0)
    except OSError:  # it is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


@contextmanager
def engine_output_to(log: Path) -> Iterator[Console]:
    """Send all output of this process and its children to `log`; yields a console on the real stderr.

    It acts on the file descriptors: LLaMA-Factory, transformers and bitsandbytes print, log and warn
    by every way there is. Raises YiTuneError when the log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise YiTuneError(f"{log} cannot be written: {error.strerror}.", "Free or choose another place.") from None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace") as terminal:
            for descriptor in saved:
                os.dup2(target, descriptor)
            os.close(target)
            with _no_input():
                yield Console(file=terminal, highlight=False, emoji=False)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # the log's disk is full: what the engine said is lost, the user's output is not
                pass
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)
