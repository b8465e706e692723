"""`yi-tune runs`: what has been trained in a workspace, and how it went."""

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from yi_tune.errors import YiTuneError
from yi_tune.output import TextConsole, percent, print_table
from yi_tune.runs import Run

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class History:
    """Where training stands, as the Trainer and LLaMA-Factory tell it: `step` of `steps`, the mean of the last ten
    losses, and the loss on the validation rows: of step `best`, where training ended with its best, else the last.
    """

    step: int
    steps: int
    loss: float | None
    eval_loss: float | None
    best: int | None

    @property
    def early_stop(self) -> str:
        """How training ended, if it was before its last step."""
        if self.best is None or self.step == self.steps:
            return ""
        return (
            f"stopped early, after step {self.step} of {self.steps}: kept is step {self.best}, "
            f"eval_loss {self.eval_loss:.4f}"
        )


def read_history(folder: Path) -> History | None:
    """The history of the run in `folder`; None before its first step.

    Until training has ended it is that of LLaMA-Factory's log, which begins anew with every resume.
    """
    with suppress(*_UNREADABLE):
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return _history(state["global_step"], state["max_steps"], state["log_history"], state.get("best_global_step"))
    logs: list[dict[str, Any]] = []
    with suppress(*_UNREADABLE):  # a line that a killed process left half is the last
        for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines():
            log = json.loads(line)
            logs.append(log | {"step": log["current_steps"], "steps": log["total_steps"]})
    return _history(logs[-1]["step"], logs[-1]["steps"], logs) if logs else None


def _history(step: int, steps: int, logs: list[dict[str, Any]], best: int | None = None) -> History:
    # A training that diverged has losses that are no numbers, and JSON has no word for them.
    losses, evals = (
        {log["step"]: log[name] for log in logs if math.isfinite(log.get(name, math.nan))}
        for name in ("loss", "eval_loss")
    )
    best = best if best in evals else None
    loss = fmean(list(losses.values())[-10:]) if losses else None
    return History(step, steps, loss, evals[best or max(evals)] if evals else None, best)


def list_runs(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of `yi-tune runs --json`, the newest last; None for what is not known, or not yet. Times are in UTC."""
    return sorted(map(_listed, runs), key=lambda row: row["created"] or "")


def _listed(run: Run) -> dict[str, Any]:
    record: dict[str, Any] = {}
    why = run.failure
    try:
        record = run.record
        state = "finished" if run.finished else "failed" if why else "interrupted"
    except YiTuneError as error:
        state, why = "broken", error.message
    report, ended = None, None
    with suppress(OSError, ValueError):
        file = run.folder / "report.json"
        report = json.loads(file.read_text(encoding="utf-8"))
        ended = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    identity = record.get("identity", {})
    history = read_history(run.folder)
    return {
        "run": run.name,
        "model": record.get("model", run.folder.parent.name),
        "name": identity.get("name"),
        "author": identity.get("author"),
        "state": "running" if run.running else state,
        "why": why,
        **{key: getattr(history, key, None) for key in ("step", "steps", "loss", "eval_loss")},
        "recall": report.get("recall") if isinstance(report, dict) else None,
        "created": record.get("created"),
        "ended": ended,
        "folder": str(run.folder),
    }


def print_runs(rows: list[dict[str, Any]], console: TextConsole) -> None:
    """A line a run, and under them what went wrong."""
    cells = [("run", "model", "name", "state", "step", "loss", "eval_loss", "recall", "when")]
    for row in rows:
        step = "-" if row["step"] is None else f"{row['step']}/{row['steps']}"
        loss, eval_loss = ("-" if row[key] is None else f"{row[key]:.4f}" for key in ("loss", "eval_loss"))
        figures = (step, loss, eval_loss, percent(row["recall"]), _when(row["ended"] or row["created"]))
        cells.append((row["run"], row["model"], row["name"] or "-", row["state"], *figures))
    print_table(console, cells)
    for row in rows:
        if row["why"]:
            console.print(f"{row['run']}: {row['why']}")


def _when(time: str | None) -> str:
    """A time by this machine's clock."""
    try:
        return datetime.fromisoformat(time or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return "-"
