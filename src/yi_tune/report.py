"""What came of a training: its scores and what they mean, its history, and the list of all runs."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from gettext import gettext as _
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from yi_tune.config import Config
from yi_tune.data.heldout import Score, lowest_recall
from yi_tune.errors import YiTuneError
from yi_tune.language import Text, english, told
from yi_tune.output import TextConsole, percent, print_table, spell
from yi_tune.runs import Run

# Below this share of identity questions a run is said to have failed at what it is for.
LOW_RECALL = 0.8
# What `lang` is called in tables.
LANGUAGES = {"zh": english("Chinese"), "en": english("English")}

_MISSES = 5
_SHARES = ("recall", "recall_zh", "recall_en", "base_recall", "leak", "kept")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


def print_changes(settings: Mapping[str, tuple[Any, str, Text]], console: TextConsole) -> None:
    """The settings of a plan that are not simply the tutorial's: values, where each is from, and why."""
    rows = [
        (key, str(value), told(source), told(why))
        for key, (value, source, why) in settings.items()
        if source != "template" or why
    ]
    # A path may be longer than all else.
    print_table(console, [(_("key"), _("value"), _("from"), _("why")), *rows], most=32)


def print_answers(answers: Iterable[dict[str, Any]], console: TextConsole) -> None:
    """Questions and the answers of base and tuned model, side by side."""
    names = (_("question"), _("base"), _("tuned"))
    table = Table(*(Column(name, overflow="fold") for name in names), show_lines=True)
    for answer in answers:
        texts = (answer["messages"][-1]["content"], answer["base"], answer["tuned"])
        table.add_row(*(escape(text.strip()) for text in texts))
    console.print(table)


def print_advice(score: Score, config: Config, console: TextConsole) -> None:
    """When the recall is low, what to try instead of `config`: said before anything else is."""
    recall = lowest_recall(score)
    if recall is None or recall >= LOW_RECALL:
        return
    epochs, rate = config.get("num_train_epochs", 3.0), config.get("learning_rate", 5e-5)
    said = _("It does not know its name yet: zh {zh}, en {en} of the identity questions are right.")
    said = said.format(zh=percent(score["recall_zh"]), en=percent(score["recall_en"]))
    console.print(said, style="bold red")
    advice = _(
        "Try more epochs, --set num_train_epochs={epochs:g}, then a higher learning rate, "
        "--set learning_rate={rate:g}; with --fresh."
    )
    console.print(advice.format(epochs=epochs * 2, rate=rate * 3))


def print_score(score: Score, console: TextConsole) -> None:
    """Recall by language and kind, a line of all, and examples of misses; of an exported model no base, no misses."""
    shown = ("tuned",) if "unfinished" in score else ("base", "tuned")
    rows = [(_("language"), _("kind"), _("asked"), *map(_, shown))]
    for row in score["kinds"]:
        shares = (percent(row[which] / row["asked"]) for which in shown)
        rows.append((_(LANGUAGES[row["lang"]]), _(row["kind"]), str(row["asked"]), *shares))
    print_table(console, rows, right=range(2, len(rows[0])))
    console.print(f"\n{summary(score)}")
    misses = [answer for answer in score["answers"] if not answer["right"] or answer["leaks"]]
    if misses and "unfinished" not in score:
        console.print("\n" + _("Missed ({count} in all):").format(count=len(misses)))
        print_answers(misses[:_MISSES], console)


def summary(score: Score) -> str:
    """The score in a line; that of an exported model tells how many of its replies are `unfinished`."""
    shares = {key: percent(score[key]) for key in _SHARES if key in score}
    end = _("plain answers kept: {kept}").format(**shares)
    if not score["identity"]:
        return _("no identity was trained (--no-identity), so nothing is asked about it") + f"   {end}"
    right = _("identity questions right: {recall} (zh {recall_zh}, en {recall_en}; base {base_recall})")
    if "unfinished" in score:
        right = _("identity questions right: {recall} (zh {recall_zh}, en {recall_en})")
        end = _("replies without an end: {count} of {all}").format(count=score["unfinished"], all=len(score["answers"]))
    return "   ".join([right.format(**shares), _("name in plain answers: {leak}").format(**shares), end])


def took(seconds: float, estimated: float | None) -> str:
    """How long training took, beside the forecast if there was one, in seconds."""
    said = _("Training took {seconds}; {estimated} were estimated.") if estimated else _("Training took {seconds}.")
    return said.format(seconds=spell(seconds), estimated=spell(estimated or 0))


def general_summary(general: dict[str, Any]) -> str:
    """What became of the answers to general prompts, in a line."""
    kl = "-" if general["kl"] is None else _("{kl:.4f} nats a token").format(kl=general["kl"])
    mentions = _("name or author unasked: {share} (base {base})")
    return "   ".join(
        [
            _("general prompts: {count}").format(count=len(general["answers"])),
            mentions.format(share=percent(general["mentions"]), base=percent(general["base_mentions"])),
            _("KL of tuned from base: {kl}").format(kl=kl),
        ]
    )


def read_history(folder: Path) -> dict[str, Any]:
    """Where the training of the run in `folder` stands: `step` of `steps`, as `loss` the mean of the last ten, the
    `eval_loss` of the adapter that is kept, and in `early_stop` how it ended early; `losses` and `eval_losses` are all
    of them, as pairs of step and loss. Nothing before its first step.

    Until training has ended they are from LLaMA-Factory's log, then from the Trainer's state.
    """
    logs: list[dict[str, Any]] = []
    step, steps, best = 0, 0, None
    with suppress(*_UNREADABLE):  # a line that a killed process left half is the last
        for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines():
            log = json.loads(line)
            step, steps = log["current_steps"], log["total_steps"]
            logs.append(log | {"step": step})
    with suppress(*_UNREADABLE):
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        step, steps, logs = state["global_step"], state["max_steps"], state["log_history"]
        best = state.get("best_global_step")
    if not logs:
        return {}
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
            early_stop = _(
                "stopped early, after step {step} of {steps}: kept is step {best}, eval_loss {eval_loss:.4f}"
            ).format(step=step, steps=steps, best=best, eval_loss=eval_loss)
    told = {"step": step, "steps": steps, "loss": loss, "eval_loss": eval_loss, "early_stop": early_stop}
    return {**told, "losses": list(losses.items()), "eval_losses": list(evals.items())}


def list_runs(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The rows of `yi-tune runs --json`, the newest last; None for what is not known, or not yet. Times are in UTC."""
    return sorted(map(listed, runs), key=lambda row: str(row["created"] or ""))


def listed(run: Run) -> dict[str, Any]:
    """The row of a run."""
    report: dict[str, Any] = {}
    record, ended, why = {}, None, run.failure
    try:
        record = run.record
        state = english("finished") if run.finished else english("failed") if why else english("interrupted")
    except YiTuneError as error:
        state, why = english("broken"), error.message
    if run.finished:
        for file in (run.report, run.check):  # the latter asks all questions, the former a few
            with suppress(*_UNREADABLE):
                report |= json.loads(file.read_text(encoding="utf-8"))
        ended = datetime.fromtimestamp(run.report.stat().st_mtime, UTC).isoformat(timespec="seconds")
    identity, history = record.get("identity", {}), read_history(run.folder)
    return {
        "run": run.name,
        "model": record.get("model", run.folder.parent.name),
        "name": identity.get("name"),
        "author": identity.get("author"),
        "state": english("running") if run.running else state,
        "why": why,
        **{key: history.get(key) for key in ("step", "steps", "loss", "eval_loss")},
        "recall": report.get("recall"),
        "created": record.get("created"),
        "ended": ended,
        "folder": str(run.folder),
    }


def print_runs(rows: list[dict[str, Any]], console: TextConsole) -> None:
    """A line a run, its times by this machine's clock, and under them what went wrong."""
    cells = [(_("run"), _("model"), _("name"), _("state"), _("step"), "loss", "eval_loss", _("recall"), _("when"))]
    for row in rows:
        step = "-" if row["step"] is None else f"{row['step']}/{row['steps']}"
        loss, eval_loss = ("-" if row[key] is None else f"{row[key]:.4f}" for key in ("loss", "eval_loss"))
        time = row["ended"] or row["created"]
        when = f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M}" if time else "-"
        names = (row["run"], row["model"], row["name"] or "-", _(row["state"]))
        cells.append((*names, step, loss, eval_loss, percent(row["recall"]), when))
    print_table(console, cells)
    for row in rows:
        if row["why"]:
            console.print(f"{row['run']}: {row['why']}")
