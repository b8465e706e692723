"""Scores as tables, and what they mean."""

from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from yi_tune.config import Config
from yi_tune.data.heldout import Answer, Score
from yi_tune.output import TextConsole, percent, print_table
from yi_tune.plan.plan import TrainPlan

# Below this share of identity questions a run is said to have failed at what it is for.
LOW_RECALL = 0.8

_MISSES = 5


def print_changes(plan: TrainPlan, console: TextConsole) -> None:
    """The settings that are not simply the tutorial's, and why."""
    for key, (value, source, why) in {"key": ("value", "from", "why"), **plan.settings}.items():
        if source != "template" or why:
            console.print(f"{key:32} {value!s:24} {source:9} {why}")


def print_answers(answers: Iterable[Answer], console: TextConsole) -> None:
    """Questions and the answers of base and tuned model, side by side."""
    table = Table(*(Column(name, overflow="fold") for name in ("question", "base", "tuned")), show_lines=True)
    for answer in answers:
        question = answer.question.messages[-1]["content"]
        table.add_row(*(escape(text.strip()) for text in (question, answer.base, answer.tuned)))
    console.print(table)


def print_advice(score: Score, config: Config, console: TextConsole) -> None:
    """When the recall is low, what to try instead of `config`: said before anything else is."""
    recall = score.lowest_recall
    if recall is None or recall >= LOW_RECALL:
        return
    epochs, rate = config.get("num_train_epochs", 3.0), config.get("learning_rate", 5e-5)
    right = f"zh {percent(score.recall('zh'))}, en {percent(score.recall('en'))}"
    console.print(f"It does not know its name yet: {right} of the identity questions are right.", style="bold red")
    console.print(
        f"Try more epochs, --set num_train_epochs={epochs * 2:g}, then a higher learning rate, "
        f"--set learning_rate={rate * 3:g}; with --fresh."
    )


def print_score(score: Score, console: TextConsole, *, unfinished: int | None = None) -> None:
    """Recall by language and kind, what leaked and what was kept, and examples of misses.

    `unfinished` is for an exported model, which has no base beside it: how many of its replies do not come to an end.
    """
    shown = ("base", "tuned") if unfinished is None else ("tuned",)
    rows = [("language", "kind", "asked", *shown)]
    for row in score.kinds:
        shares = (percent(row[which] / row["asked"]) for which in shown)
        rows.append((row["lang"], row["kind"], str(row["asked"]), *shares))
    print_table(console, rows, right=range(2, len(rows[0])))
    console.print(f"\n{summary(score, unfinished)}")
    if score.misses and unfinished is None:
        console.print(f"\nMissed ({len(score.misses)} in all):")
        print_answers(score.misses[:_MISSES], console)


def summary(score: Score, unfinished: int | None = None) -> str:
    """The score in a line."""
    base, end = f"; base {percent(score.recall(which='base'))}", f"plain answers kept: {percent(score.kept)}"
    if score.identity is None:
        return f"no identity was trained (--no-identity), so nothing is asked about it   {end}"
    if unfinished is not None:
        base, end = "", f"replies without an end: {unfinished} of {len(score.answers)}"
    zh, en = (percent(score.recall(lang)) for lang in ("zh", "en"))
    return (
        f"identity questions right: {percent(score.recall())} (zh {zh}, en {en}{base})   "
        f"name in plain answers: {percent(score.leak)}   {end}"
    )


def general_summary(general: dict[str, Any]) -> str:
    """What became of the answers to general prompts, in a line."""
    kl = "-" if general["kl"] is None else f"{general['kl']:.4f} nats a token"
    return (
        f"general prompts: {len(general['answers'])}   name or author unasked: {percent(general['mentions'])} "
        f"(base {percent(general['base_mentions'])})   KL of tuned from base: {kl}"
    )
