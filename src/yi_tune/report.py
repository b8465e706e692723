"""Scores as tables, and what they mean."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from yi_tune.config import Config
from yi_tune.data.forgetting import Forgetting
from yi_tune.data.heldout import Answer, Score
from yi_tune.output import percent
from yi_tune.plan.plan import TrainPlan

# Below this share of identity questions a run is said to have failed at what it is for.
LOW_RECALL = 0.8

_MISSES = 5


def print_changes(plan: TrainPlan, console: Console) -> None:
    """The settings that are not simply the tutorial's, and why."""
    rows = [("key", "value", "from", "why")]
    rows += [(setting.key, str(setting.value), setting.source, setting.why) for setting in plan.departures]
    for key, value, source, why in rows:
        console.print(f"{key:32} {value:24} {source:9} {why}", markup=False, soft_wrap=True)


def print_answers(answers: Iterable[Answer], console: Console) -> None:
    """Questions and what base and tuned model say, side by side."""
    table = Table(*(Column(name, overflow="fold") for name in ("question", "base", "tuned")), show_lines=True)
    for answer in answers:
        question = answer.question.messages[-1]["content"]
        table.add_row(*(escape(text.strip()) for text in (question, answer.base, answer.tuned)))
    console.print(table)


def print_advice(score: Score, config: Config, console: Console) -> None:
    """When the recall is low, what to try instead of `config`: said before anything else is."""
    recall = score.lowest_recall
    if recall is None or recall >= LOW_RECALL:
        return
    epochs, rate = config.get("num_train_epochs", 3.0), config.get("learning_rate", 5e-5)
    console.print(
        f"[bold red]It does not know its name yet:[/] zh {percent(score.recall('zh'))}, "
        f"en {percent(score.recall('en'))} of the identity questions are right.\n"
        f"Try more epochs, --set num_train_epochs={epochs * 2:g}, then a higher learning rate, "
        f"--set learning_rate={rate * 3:g}; with --fresh.",
        soft_wrap=True,
    )


def print_score(score: Score, config: Config, console: Console) -> None:
    """Recall by language and kind, what leaked and what was kept, and examples of misses."""
    print_advice(score, config, console)
    table = Table("language", "kind", "asked", "base", "tuned", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in score.rows:
        table.add_row(row.lang, row.kind, str(row.asked), percent(row.base / row.asked), percent(row.tuned / row.asked))
    console.print(table)
    console.print(f"\n{summary(score)}", soft_wrap=True)
    if score.misses:
        console.print(f"\nMissed ({len(score.misses)} in all):")
        print_answers(score.misses[:_MISSES], console)


def print_exported(score: Score, unfinished: int, console: Console) -> None:
    """The recall of an exported model by language and kind, and whether its replies come to an end."""
    table = Table("language", "kind", "asked", "right", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in score.rows:
        table.add_row(row.lang, row.kind, str(row.asked), percent(row.tuned / row.asked))
    console.print(table)
    console.print(
        f"\nidentity questions right: {percent(score.recall())} (zh {percent(score.recall('zh'))}, "
        f"en {percent(score.recall('en'))})   name in plain answers: {percent(score.leak)}   "
        f"replies without an end: {unfinished} of {len(score.answers)}",
        soft_wrap=True,
    )


def summary(score: Score) -> str:
    """The score in a line."""
    kept = f"plain answers kept: {percent(score.kept)}"
    if score.identity is None:
        return f"no identity was trained (--no-identity), so nothing is asked about it   {kept}"
    return (
        f"identity questions right: {percent(score.recall())} (zh {percent(score.recall('zh'))}, "
        f"en {percent(score.recall('en'))}; base {percent(score.recall(which='base'))})   "
        f"name in plain answers: {percent(score.leak)}   {kept}"
    )


def general_summary(general: Forgetting) -> str:
    """What became of the answers to general prompts, in a line."""
    kl = "-" if general.kl is None else f"{general.kl:.4f} nats a token"
    return (
        f"general prompts: {len(general.prompts)}   name or author unasked: {percent(general.share())} "
        f"(base {percent(general.share('base'))})   KL of tuned from base: {kl}"
    )
