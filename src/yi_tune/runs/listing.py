"""`yi-tune runs`: what has been trained in a workspace, and how it went."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.output import percent, print_table
from yi_tune.runs.folder import Run
from yi_tune.runs.history import read_history

State = Literal["running", "interrupted", "finished", "failed", "broken"]


@dataclass(frozen=True)
class ListedRun:
    """A run of the list; None for what is not known, or not yet. Times are ISO 8601, in UTC."""

    run: str
    model: str
    name: str | None
    author: str | None
    state: State
    why: str  # what it failed of, or what is broken
    step: int | None
    steps: int | None
    loss: float | None  # of the last steps, smoothed as in the loss plot
    eval_loss: float | None  # of the adapter that is kept: the last, or with --early-stop the best
    recall: float | None
    created: str | None
    ended: str | None
    folder: str


def list_runs(runs: Iterable[Run]) -> list[ListedRun]:
    """What there is to say of each run, the newest last."""
    return sorted((_listed(run) for run in runs), key=lambda listed: listed.created or "")


def _listed(run: Run) -> ListedRun:
    record: dict[str, Any] = {}
    why = run.failure
    try:
        record = run.record
    except YiTuneError as error:
        why = error.message
    report, ended = _report(run)
    history = read_history(run.folder)
    evals = history.eval_losses if history else {}
    kept = history.best if history and history.best in evals else max(evals, default=None)
    identity = record.get("identity", {})
    return ListedRun(
        run=run.name,
        model=record.get("model", run.folder.parent.name),
        name=identity.get("name"),
        author=identity.get("author"),
        state=_state(run, record),
        why=why,
        step=history.step if history else None,
        steps=history.steps if history else None,
        loss=history.loss if history else None,
        eval_loss=None if kept is None else evals[kept],
        recall=report.get("recall"),
        created=record.get("created"),
        ended=ended,
        folder=str(run.folder),
    )


def _state(run: Run, record: dict[str, Any]) -> State:
    if run.running:
        return "running"
    if not record:
        return "broken"
    if run.finished:
        return "finished"
    return "failed" if run.failure else "interrupted"


def _report(run: Run) -> tuple[dict[str, Any], str | None]:
    """report.json, and when it was written; nothing if there is none that can be read."""
    file = run.folder / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        ended = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except (OSError, ValueError):
        return {}, None
    return (report, ended) if isinstance(report, dict) else ({}, None)


def print_runs(runs: list[ListedRun], console: Console) -> None:
    """A line a run, however wide the terminal is, and under them what went wrong."""
    lines = [("run", "model", "name", "state", "step", "loss", "eval_loss", "recall", "when")]
    for run in runs:
        step = "-" if run.step is None else f"{run.step}/{run.steps}"
        loss, eval_loss = ("-" if loss is None else f"{loss:.4f}" for loss in (run.loss, run.eval_loss))
        figures = (step, loss, eval_loss, percent(run.recall))
        lines.append((run.run, run.model, run.name or "-", run.state, *figures, _when(run)))
    print_table(console, lines)
    for run in runs:
        if run.why:
            console.print(f"{run.run}: {run.why}", markup=False, soft_wrap=True)


def _when(run: ListedRun) -> str:
    """When it ended, or else began, by this machine's clock."""
    try:
        return datetime.fromisoformat(run.ended or run.created or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return "-"
