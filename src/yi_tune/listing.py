"""`yi-tune runs`: what has been trained in a workspace, and how it went."""

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from yi_tune.errors import YiTuneError
from yi_tune.output import TextConsole, percent, print_table
from yi_tune.runs import Run

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


def read_history(folder: Path) -> dict[str, Any]:
    """Where the training of the run in `folder` stands; nothing before its first step.

    `step` of `steps`, as `loss` the mean of the last ten, the last `eval_loss`, or that of the adapter that is kept,
    and as `early_stop` a sentence on a training that ended before its last step. Until training has ended they are
    those of LLaMA-Factory's log, which begins anew with every resume, then the Trainer's.
    """
    with suppress(*_UNREADABLE):
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return _history(state["global_step"], state["max_steps"], state["log_history"], state.get("best_global_step"))
    logs: list[dict[str, Any]] = []
    with suppress(*_UNREADABLE):  # a line that a killed process left half is the last
        for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines():
            log = json.loads(line)
            logs.append(log | {"step": log["current_steps"], "steps": log["total_steps"]})
    return _history(logs[-1]["step"], logs[-1]["steps"], logs) if logs else {}


def _history(step: int, steps: int, logs: list[dict[str, Any]], best: int | None = None) -> dict[str, Any]:
    # A training that diverged has losses that are no numbers, and JSON has no word for them.
    losses, evals = (
        {log["step"]: log[name] for log in logs if math.isfinite(log.get(name, math.nan))}
        for name in ("loss", "eval_loss")
    )
    loss, eval_loss = fmean(list(losses.values())[-10:]) if losses else None, evals[max(evals)] if evals else None
    early_stop = ""
    if best in evals:
        eval_loss = evals[best]
        if step < steps:
            early_stop = f"stopped early, after step {step} of {steps}: kept is step {best}, eval_loss {eval_loss:.4f}"
    return {"step": step, "steps": steps, "loss": loss, "eval_loss": eval_loss, "early_stop": early_stop}


def list_runs(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of `yi-tune runs --json`, the newest last; None for what is not known, or not yet. Times are in UTC."""
    return sorted(map(_listed, runs), key=lambda row: row["created"] or "")


def _listed(run: Run) -> dict[str, Any]:
    record, report, ended, why = {}, {}, None, run.failure
    try:
        record = run.record
        state = "finished" if run.finished else "failed" if why else "interrupted"
    except YiTuneError as error:
        state, why = "broken", error.message
    if run.finished:
        report = json.loads(run.report.read_text(encoding="utf-8"))
        ended = datetime.fromtimestamp(run.report.stat().st_mtime, UTC).isoformat(timespec="seconds")
    identity, history = record.get("identity", {}), read_history(run.folder)
    return {
        "run": run.name,
        "model": record.get("model", run.folder.parent.name),
        "name": identity.get("name"),
        "author": identity.get("author"),
        "state": "running" if run.running else state,
        "why": why,
        **{key: history.get(key) for key in ("step", "steps", "loss", "eval_loss")},
        "recall": report.get("recall"),
        "created": record.get("created"),
        "ended": ended,
        "folder": str(run.folder),
    }


def print_runs(rows: list[dict[str, Any]], console: TextConsole) -> None:
    """A line a run, its times by this machine's clock, and under them what went wrong."""
    cells = [("run", "model", "name", "state", "step", "loss", "eval_loss", "recall", "when")]
    for row in rows:
        step = "-" if row["step"] is None else f"{row['step']}/{row['steps']}"
        loss, eval_loss = ("-" if row[key] is None else f"{row[key]:.4f}" for key in ("loss", "eval_loss"))
        time = row["ended"] or row["created"]
        when = f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M}" if time else "-"
        names = (row["run"], row["model"], row["name"] or "-", row["state"])
        cells.append((*names, step, loss, eval_loss, percent(row["recall"]), when))
    print_table(console, cells)
    for row in rows:
        if row["why"]:
            console.print(f"{row['run']}: {row['why']}")
