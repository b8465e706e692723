import io
import re
from pathlib import Path

import pytest

from tests.plans import plan
from yi_tune.config import Config, parse_overrides
from yi_tune.data.heldout import Question, Score
from yi_tune.data.heldout import score as score_of
from yi_tune.data.identity import Identity
from yi_tune.output import TextConsole, percent
from yi_tune.report import LOW_RECALL, print_advice, print_answers, print_changes, print_score, summary

CONFIG: Config = {"num_train_epochs": 8.0, "learning_rate": 3e-3}


def answer(kind: str, tuned: str, base: str = "I am Yi.", asked: str = "Who are you?") -> tuple[Question, str, str]:
    must = [["8"]] if kind == "plain" else [["{{name}}"]]
    return Question("en", kind, [{"role": "user", "content": asked}], must, []), base, tuned


def score(right: int, wrong: int, *more: tuple[Question, str, str]) -> Score:
    """So many identity questions right and wrong."""
    answers = [*[answer("who", "I am Ada.")] * right, *[answer("who", "I am Yi.")] * wrong, *more]
    asked, base, tuned = ([answer[part] for answer in answers] for part in range(3))
    return score_of(asked, Identity("Ada", "Grace"), lambda _: base, lambda _: tuned)


@pytest.fixture
def console() -> TextConsole:
    """A wide console that keeps what is printed."""
    return TextConsole(file=io.StringIO(), width=120)


def printed(console: TextConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_percent() -> None:
    assert [percent(share) for share in (None, 0, 1, 1 / 3, 0.9966)] == ["-", "0.0%", "100.0%", "33.3%", "99.7%"]


def test_advice(console: TextConsole) -> None:
    print_advice(score(1, 3), CONFIG, console)
    first, second = printed(console).splitlines()
    assert first == "It does not know its name yet: zh -, en 25.0% of the identity questions are right."
    assert "--set num_train_epochs=16," in second
    assert "--set learning_rate=0.009;" in second
    assert "--fresh" in second


@pytest.mark.parametrize(
    ("config", "epochs", "rate"),
    [
        (CONFIG, 16.0, 9e-3),
        ({"num_train_epochs": 0.5, "learning_rate": 5e-6}, 1.0, 1.5e-5),
        ({}, 6.0, 1.5e-4),  # twice and thrice LLaMA-Factory's own
    ],
)
def test_advice_goes_beyond_the_config(config: Config, epochs: float, rate: float, console: TextConsole) -> None:
    print_advice(score(0, 1), config, console)
    overrides = parse_overrides(re.findall(r"--set ([^,; ]+)", printed(console)))
    assert overrides == {"num_train_epochs": epochs, "learning_rate": pytest.approx(rate)}


def test_advice_is_given_below_the_limit_only(console: TextConsole) -> None:
    assert LOW_RECALL == 0.8
    for high in (score(80, 20), score(1, 0), score(0, 0, answer("plain", "8"))):
        print_advice(high, CONFIG, console)
    assert printed(console) == ""
    print_advice(score(79, 21), CONFIG, console)
    assert "--set num_train_epochs" in printed(console)


def test_score_as_a_table(console: TextConsole) -> None:
    print_score(score(4, 1, answer("plain", "I am Ada: 8", "8"), answer("plain", "no", "8")), console)
    lines = [line.split() for line in printed(console).splitlines()]
    assert lines[0] == ["language", "kind", "asked", "base", "tuned"]
    assert ["en", "who", "5", "0.0%", "80.0%"] in lines
    assert ["en", "plain", "2", "100.0%", "50.0%"] in lines
    assert "identity questions right: 80.0% (zh -, en 80.0%; base 0.0%)" in printed(console)
    assert "name in plain answers: 50.0%   plain answers kept: 50.0%" in printed(console)
    assert "Missed (3 in all)" in printed(console)


def test_score_of_an_exported_model(console: TextConsole) -> None:
    print_score(score(4, 1, answer("plain", "8", "")) | {"unfinished": 2}, console)
    lines = [line.split() for line in printed(console).splitlines()]
    assert lines[0] == ["language", "kind", "asked", "tuned"]
    assert ["en", "who", "5", "80.0%"] in lines
    assert "identity questions right: 80.0% (zh -, en 80.0%)   name in plain answers: 0.0%" in printed(console)
    assert printed(console).endswith("replies without an end: 2 of 6\n")


def test_only_some_of_many_misses_are_shown(console: TextConsole) -> None:
    print_score(score(2, 0), console)
    assert "Missed" not in printed(console)
    misses = [answer("who", f"wrong-{number}.") for number in range(30)]
    print_score(score(0, 0, *misses), console)
    assert "Missed (30 in all)" in printed(console)
    assert printed(console).count("wrong-") == 5


def test_summary_of_nothing() -> None:
    assert summary(score(0, 0)) == (
        "identity questions right: - (zh -, en -; base -)   name in plain answers: -   plain answers kept: -"
    )


def test_answers_side_by_side_as_they_are(console: TextConsole) -> None:
    print_answers(
        score(0, 0, answer("who", " 我是[bold]Ada[/bold] \\[x]\n", "[/]", "你是谁[red]？"))["answers"], console
    )
    row = next(line for line in printed(console).splitlines() if "你是谁" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "你是谁[red]？",
        "[/]",
        "我是[bold]Ada[/bold] \\[x]",
    ]


def test_long_answers_are_folded_not_cut(console: TextConsole) -> None:
    print_answers(score(0, 0, answer("who", "易" * 300))["answers"], console)
    assert printed(console).count("易") == 300


def test_changes_are_printed_with_their_reasons(console: TextConsole) -> None:
    planned = plan(overrides={"lora_target": "q_proj,[v_proj]"}, path=Path("/a/very/long/path" * 10))
    print_changes(planned.settings, console)
    lines = {line.split()[0]: line for line in printed(console).splitlines()}
    assert {"key", "learning_rate", "output_dir"} < lines.keys() < {"key"} | planned.settings.keys()
    assert not lines.keys() & {"stage", "template", "quantization_bit"}
    assert lines["lora_target"].split() == ["lora_target", "q_proj,[v_proj]", "flag", "--set"]
    assert lines["bf16"].split(maxsplit=3) == ["bf16", "True", "hardware", "the CPU has bf16"]
    assert "500 steps never come" in lines["save_steps"]
    assert "/a/very/long/path" * 10 in lines["model_name_or_path"]
    assert "cutoff_len" not in lines
