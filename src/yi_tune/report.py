"""Scores as tables, and what they mean."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Column, Table

from yi_tune.config import Config
from yi_tune.data.general import Forgetting
from yi_tune.data.heldout import Answer, Score
from yi_tune.output import TextConsole, percent, print_table
from yi_tune.plan.plan import TrainPlan

# Below this share of identity questions a run is said to have failed at what it is for.
LOW_RECALL = 0.8

_MISSES = 5


def print_changes(plan: TrainPlan, console: TextConsole) -> None:
    """The settings that are not simply the tutorial's, and why."""
    rows = [(key, str(value), source, why) for key, (value, source, why) in plan.departures.items()]
    for key, value, source, why in [("key", "value", "from", "why"), *rows]:
        console.print(f"{key:32} {value:24} {source:9} {why}")


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


def _print_rows(score: Score, columns: dict[str, str], console: TextConsole) -> None:
    """The shares of right answers by language and kind; `columns` names those of a row by their heads."""
    cells = [("language", "kind", "asked", *columns)]
    for row in score.rows:
        shares = (percent(getattr(row, name) / row.asked) for name in columns.values())
        cells.append((row.lang, row.kind, str(row.asked), *shares))
    print_table(console, cells, right=range(2, len(cells[0])))


def print_score(score: Score, config: Config, console: TextConsole) -> None:
    """Recall by language and kind, what leaked and what was kept, and examples of misses."""
    print_advice(score, config, console)
    _print_rows(score, {"base": "base", "tuned": "tuned"}, console)
    console.print(f"\n{summary(score)}")
    if score.misses:
        console.print(f"\nMissed ({len(score.misses)} in all):")
        print_answers(score.misses[:_MISSES], console)


def print_exported(score: Score, unfinished: int, console: TextConsole) -> None:
    """The recall of an exported model by language and kind, and whether its replies come to an end."""
    _print_rows(score, {"right": "tuned"}, console)
    ended = f"replies without an end: {unfinished} of {len(score.answers)}"
    console.print(f"\n{_recall(score)}   {_leak(score)}   {ended}")


def _recall(score: Score, base: str = "") -> str:
    zh, en = (percent(score.recall(lang)) for lang in ("zh", "en"))
    return f"identity questions right: {percent(score.recall())} (zh {zh}, en {en}{base})"


def _leak(score: Score) -> str:
    return f"name in plain answers: {percent(score.leak)}"


def summary(score: Score) -> str:
    """The score in a line."""
    kept = f"plain answers kept: {percent(score.kept)}"
    if score.identity is None:
        return f"no identity was trained (--no-identity), so nothing is asked about it   {kept}"
    base = f"; base {percent(score.recall(which='base'))}"
    return f"{_recall(score, base)}   {_leak(score)}   {kept}"


def general_summary(general: Forgetting) -> str:
    """What became of the answers to general prompts, in a line."""
    kl = "-" if general.kl is None else f"{general.kl:.4f} nats a token"
    return (
        f"general prompts: {len(general.prompts)}   name or author unasked: {percent(general.share())} "
        f"(base {percent(general.share('base'))})   KL of tuned from base: {kl}"
    )
