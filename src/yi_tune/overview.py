"""All that is known of a run, and what is not: for `yi-tune runs show`, `runs compare` and report.html."""

import json
import re
from contextlib import suppress
from gettext import gettext as _
from pathlib import Path
from typing import Any

from yi_tune import language
from yi_tune.errors import YiTuneError
from yi_tune.language import english
from yi_tune.models import workspace_option
from yi_tune.output import TextConsole, percent, print_table, spell
from yi_tune.report import (
    general_summary,
    listed,
    print_answers,
    print_changes,
    print_runs,
    print_score,
    read_history,
    took,
)
from yi_tune.runs import PLACES, Run, all_runs, decided

# Keys of accounts: what people share never shows them.
_SECRET = re.compile(r"(_token|api_key|secret|webhook_url)$")
# What a comparison measures, by its keys in JSON, and what people call it.
_MEASURES = {
    **{"state": english("state"), "step": english("step"), "steps": english("steps in all")},
    **{"loss": "loss", "eval_loss": "eval_loss", "seconds": english("training time")},
    **{"recall_after_training": english("recall after training"), "recall": english("recall")},
    **{"recall_zh": english("recall in Chinese"), "recall_en": english("recall in English")},
    **{"base_recall": english("recall of the base"), "leak": english("name in plain answers")},
    **{"kept": english("plain answers kept"), "mentions": english("name or author unasked")},
    "kl": english("KL from the base"),
}
# Where one of these differs, or a dataset, so do the rows that are held out.
_ROWS = {"model", "val_size", "eval_dataset", "seed", "data_seed", "max_samples", "cutoff_len", "replay"}


def overview(run: Run) -> dict[str, Any]:
    """All that the folder of a run tells, for JSON: its row of `yi-tune runs --json`, and more.

    `settings` has value, source and reason of each key of the config; `after_training` is the score of a few questions,
    `check` the result of `yi-tune check`. What is not known is None or empty; `unknown` says why, and what tells it.
    """
    row, record, history = listed(run), {}, read_history(run.folder)
    with suppress(YiTuneError):  # the row has it
        record = run.record
    report = _read(run.report) or {}
    reasons, config = record.get("reasons", {}), record.get("config", {})
    sources = {key: (source, language.told(why)) for key, (source, why) in reasons.items()}
    scored = {"identity": record.get("identity", {}), **report} if "kinds" in report else None
    files = ("adapter_model.safetensors", "train.yaml", "chat.yaml", "report.json", "check.json", "report.html")
    paths = [run.folder / file for file in (*files, "training_loss.png", "train.log", "data", "replay.jsonl")]
    told = {
        **row,
        **{key: history.get(key) for key in ("early_stop", "losses", "eval_losses")},
        **{key: report.get(key) for key in ("seconds", "estimated_seconds")},
        **{"after_training": scored, "check": _read(run.check)},
        **{key: record.get(key) for key in ("data", "replay", "from_run", "gpus", "versions")},
        "settings": {key: [config[key], *sources.get(key, ("", ""))] for key in config if not _SECRET.search(key)},
        "files": [str(path) for path in paths if path.exists()],
    }
    return told | {"unknown": _unknown(run, told)}


def _read(file: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
    return None


def _unknown(run: Run, told: dict[str, Any]) -> list[str]:
    """What is not known of a run, and how to know it."""
    workspace, gaps = run.folder.parents[2], []
    if told["state"] == "running":
        gaps.append(_("It is training now, so its score is not known yet. How far it is: yi-tune runs"))
    elif told["state"] != "finished":
        gaps.append(_("It is not finished, so its score is not known. The command that started it goes on with it."))
    elif not told["check"]:
        named = [other.name for other in all_runs(workspace)].count(run.name)
        name = run.name if named == 1 else f"{run.folder.parent.name}/{run.name}"
        command = f"yi-tune check --run {name}{workspace_option(workspace)}"
        gaps.append(
            _("The answers to all questions, and what it forgot, are not known. To know them: {command}").format(
                command=command
            )
        )
    if told["settings"] and not any(source for _, source, _ in told["settings"].values()):
        gaps.append(_("The reasons of its settings were not recorded. Those of today: yi-tune train --dry-run"))
    if not told["versions"]:
        gaps.append(_("The versions that trained it were not recorded. Only a new training tells them: --fresh"))
    return gaps


def one_of_each(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first answer of each kind in each language."""
    return list({(one["lang"], one["kind"]): one for one in reversed(answers)}.values())[::-1]


def print_overview(told: dict[str, Any], console: TextConsole) -> None:
    """An overview for people."""
    print_runs([told], console)
    if told["seconds"]:
        console.print(took(told["seconds"], told["estimated_seconds"]))
    if told["early_stop"]:
        console.print(told["early_stop"])
    if score := told["check"] or told["after_training"]:
        console.print()
        print_score(score, console)
        console.print(f"\n{general_summary(score['general'])}" if "general" in score else "")
        print_answers(one_of_each(score["answers"]), console)
    console.print()
    print_changes(told["settings"], console)
    versions = ", ".join(f"{package} {version}" for package, version in (told["versions"] or {}).items())
    for line in ("", versions, *(told["files"] or [told["folder"]]), *(f"\n{gap}" for gap in told["unknown"])):
        console.print(line)


def compare(*runs: Run) -> dict[str, Any]:
    """Two runs, for JSON: `settings` has those that differ, `measures` what came of them, both as pairs. What is not
    known is None. Raises YiTuneError when one has no readable run.json.
    """
    records, told = [run.record for run in runs], [overview(run) for run in runs]
    settings = [decided(record, {*PLACES, "run_name", "swanlab_run_name"}) | record["versions"] for record in records]
    pairs = {key: [side.get(key) for side in settings] for key in {**settings[0], **settings[1]}}
    # What an old run did not record is no difference.
    gaps = {key for key in ("weights", *records[0]["versions"], *records[1]["versions"]) if not all(pairs[key])}
    differ = {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and key not in gaps}
    return {
        "runs": [f"{run.folder.parent.name}/{run.name}" for run in runs],
        "measures": {key: [_measured(side).get(key) for side in told] for key in _MEASURES},
        "settings": {key: pair for key, pair in differ.items() if not _SECRET.search(key)},
        "why": [side["why"] for side in told],
        "unknown": [side["unknown"] for side in told],
    }


def _measured(told: dict[str, Any]) -> dict[str, Any]:
    checked = told["check"] or {"recall": None, "general": {}}
    after = (told["after_training"] or {}).get("recall")
    return {**told, "recall_after_training": after, **checked, **checked["general"]}


def print_comparison(compared: dict[str, Any], console: TextConsole) -> None:
    """Two runs side by side, for people."""

    def cell(key: str, value: Any) -> str:
        if key == "state":
            return _(value)
        if key == "seconds" and value is not None:
            return spell(value)
        if key in ("loss", "eval_loss", "kl") and value is not None:
            return f"{value:.4f}"
        return percent(value) if isinstance(value, float | None) else str(value)

    settings = {key: map(str, pair) for key, pair in compared["settings"].items()}
    measures = {_(_MEASURES[key]): [cell(key, value) for value in pair] for key, pair in compared["measures"].items()}
    for name, rows in ((_("measure"), measures), (_("setting"), settings)):
        if rows:
            print_table(console, [(name, *compared["runs"]), *((key, *rows[key]) for key in rows)])
            console.print()
    if not settings:
        console.print(_("They have the same settings."))
    if any(key in _ROWS or key.startswith("data ") for key in settings):
        console.print(_("Other rows were held out: compare recall and KL, not eval_loss."))
    for name, why, gaps in zip(compared["runs"], compared["why"], compared["unknown"], strict=True):
        for line in filter(None, (why, *gaps)):
            console.print(f"{name}: {line}")
