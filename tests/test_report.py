import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.plans import plan
from yi_tune.config import Config
from yi_tune.data.heldout import Question, Score
from yi_tune.data.heldout import score as score_of
from yi_tune.data.identity import Identity
from yi_tune.errors import YiTuneError
from yi_tune.output import TextConsole
from yi_tune.report import (
    LOW_RECALL,
    list_runs,
    print_advice,
    print_answers,
    print_changes,
    print_runs,
    print_score,
    read_history,
    summary,
)
from yi_tune.runs import Run, all_runs

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


def test_advice(console: TextConsole) -> None:
    print_advice(score(1, 3), CONFIG, console)
    first, second = printed(console).splitlines()
    assert first == "It does not know its name yet: zh -, en 25.0% of the identity questions are right."
    assert "--set num_train_epochs=16," in second
    assert "--set learning_rate=0.009;" in second
    assert "--fresh" in second
    print_advice(score(1, 3), {}, console)
    assert "--set num_train_epochs=6," in printed(console)  # twice LLaMA-Factory's own


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
    assert ["English", "who", "5", "0.0%", "80.0%"] in lines
    assert ["English", "plain", "2", "100.0%", "50.0%"] in lines
    assert "identity questions right: 80.0% (zh -, en 80.0%; base 0.0%)" in printed(console)
    assert "name in plain answers: 50.0%   plain answers kept: 50.0%" in printed(console)
    assert "Missed (3 in all)" in printed(console)


def test_score_of_an_exported_model(console: TextConsole) -> None:
    print_score(score(4, 1, answer("plain", "8", "")) | {"unfinished": 2}, console)
    lines = [line.split() for line in printed(console).splitlines()]
    assert lines[0] == ["language", "kind", "asked", "tuned"]
    assert ["English", "who", "5", "80.0%"] in lines
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
    # The columns stand where they would without the long path.
    assert lines["key"].index("from") == lines["bf16"].index("hardware") < 64
    assert "/a/very/long/path" * 10 in lines["model_name_or_path"]
    assert "cutoff_len" not in lines


# The list of runs

IDENTITY = {"name": "小易", "author": "李雷", "name_en": "小易", "author_en": "李雷"}


def make(workspace: Path, name: str, *, model: str = "nano", created: int = 1, **record: Any) -> Run:
    """A run that was begun."""
    run = Run(workspace / "saves" / model / name)
    run.folder.mkdir(parents=True)
    content = {
        "model": model,
        "model_path": "/m",
        "identity": IDENTITY,
        "data": "identity-0.jsonl",
        "config": {},
        "created": f"2026-01-0{created}T12:00:00+00:00",
    }
    run.write("run.json", json.dumps(content | record))
    return run


def listed(workspace: Path) -> dict[str, dict[str, Any]]:
    """The rows of the list by the run's name."""
    return {row["run"]: row for row in list_runs(all_runs(workspace))}


def test_states(tmp_path: Path) -> None:
    make(tmp_path, "interrupted", created=1)
    make(tmp_path, "failed", created=2).record_failure(YiTuneError("The GPU is out of memory."))
    finished = make(tmp_path, "finished", created=3)
    finished.write("report.json", '{"recall": 0.975, "loss": 0.4}')
    running = make(tmp_path, "running", created=4)
    broken = make(tmp_path, "broken", created=5)
    broken.write("run.json", '{"model": "na')
    with running.lock():
        rows = listed(tmp_path)
    assert {name: row["state"] for name, row in rows.items()} == {name: name for name in rows}
    assert len(rows) == 5
    assert rows["failed"]["why"] == "The GPU is out of memory."
    assert "no readable run.json" in rows["broken"]["why"]
    assert rows["finished"]["recall"] == 0.975
    assert rows["finished"]["ended"]
    assert rows["interrupted"]["recall"] is None


def test_newest_is_last(tmp_path: Path) -> None:
    assert list_runs(all_runs(tmp_path)) == []
    for name, created in (("a", 3), ("b", 1), ("c", 2)):
        make(tmp_path, name, created=created)
    assert list(listed(tmp_path)) == ["b", "c", "a"]


def test_keys_are_stable(tmp_path: Path) -> None:
    make(tmp_path, "a")
    assert list(json.loads(json.dumps(listed(tmp_path)["a"]))) == [
        *("run", "model", "name", "author", "state", "why", "step", "steps"),
        *("loss", "eval_loss", "recall", "created", "ended", "folder"),
    ]


def test_printed(tmp_path: Path) -> None:
    write_log(make(tmp_path, "identity").folder)
    ada = IDENTITY | {"name": "[bold]Ada"}
    make(tmp_path, "b", model="Yi-1.5-6B-Chat", created=2, identity=ada).record_failure(
        YiTuneError("The disk is full.")
    )
    file = io.StringIO()
    print_runs(list_runs(all_runs(tmp_path)), TextConsole(file=file, width=40))
    header, first, second, why = file.getvalue().splitlines()
    assert header.split() == ["run", "model", "name", "state", "step", "loss", "eval_loss", "recall", "when"]
    assert first.split()[:7] == ["identity", "nano", "小易", "interrupted", "2/4", "2.5000", "2.5000"]
    assert second.split()[:5] == ["b", "Yi-1.5-6B-Chat", "[bold]Ada", "failed", "-"]
    assert why == "b: The disk is full."


def test_record_of_an_old_run(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    run.write("run.json", json.dumps({key: value for key, value in run.record.items() if key != "created"}))
    file = io.StringIO()
    print_runs(list_runs(all_runs(tmp_path)), TextConsole(file=file))
    assert file.getvalue().splitlines()[1].split() == ["a", "nano", "小易", "interrupted", *"-----"]


# The history

LOG = [
    {"current_steps": 1, "total_steps": 4, "loss": 3.0, "lr": 1e-3},
    {"current_steps": 2, "total_steps": 4, "loss": 2.0, "lr": 1e-3},
    {"current_steps": 2, "total_steps": 4, "eval_loss": 2.5},
]
LOGGED = {"step": 2, "steps": 4, "loss": 2.5, "eval_loss": 2.5, "early_stop": ""}
LOGGED |= {"losses": [(1, 3.0), (2, 2.0)], "eval_losses": [(2, 2.5)]}


def write_log(folder: Path, end: str = "") -> None:
    """LLaMA-Factory's log of a run that trains."""
    (folder / "trainer_log.jsonl").write_text("".join(f"{json.dumps(log)}\n" for log in LOG) + end)


def test_history_of_a_run_that_trains(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
    (tmp_path / "trainer_log.jsonl").write_bytes(b"\xff\xfe")
    assert read_history(tmp_path) == {}
    write_log(tmp_path)
    assert read_history(tmp_path) == LOGGED


@pytest.mark.parametrize("best", [None, 2, 1])
def test_history_of_a_run_that_has_trained(tmp_path: Path, best: int | None) -> None:
    write_log(tmp_path)
    losses = [{"step": step, "loss": float(step)} for step in range(1, 21)]
    evals = [{"step": 2, "eval_loss": 0.25}, {"step": 20, "eval_loss": 0.5}, {"step": 20, "train_loss": 2.0}]
    state = {"global_step": 20, "max_steps": 40, "log_history": [*losses, *evals], "best_global_step": best}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    # Of the last ten losses the mean; of the evaluations that of the adapter that is kept.
    said = "stopped early, after step 20 of 40: kept is step 2, eval_loss 0.2500"
    kept = {"eval_loss": 0.25, "early_stop": said} if best == 2 else {"eval_loss": 0.5, "early_stop": ""}
    curves = {"losses": [(step, float(step)) for step in range(1, 21)], "eval_losses": [(2, 0.25), (20, 0.5)]}
    assert read_history(tmp_path) == {"step": 20, "steps": 40, "loss": 15.5, **kept, **curves}


@pytest.mark.parametrize("state", ["", "{", "[]", '{"global_step": 1}', "\xff"])
@pytest.mark.parametrize("end", ['{"current_st', "[]", "3", "\x00\x00", '{"loss": 1}'])
def test_half_written_history(tmp_path: Path, state: str, end: str) -> None:
    (tmp_path / "trainer_state.json").write_bytes(state.encode("latin-1"))
    write_log(tmp_path, end)
    assert read_history(tmp_path) == LOGGED


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    write_log(tmp_path, json.dumps({"current_steps": 2, "total_steps": 4, "loss": math.nan, "eval_loss": math.inf}))
    assert read_history(tmp_path) == LOGGED
