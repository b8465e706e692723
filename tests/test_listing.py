import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from yi_tune.output import TextConsole
from yi_tune.report import list_runs, print_runs, read_history
from yi_tune.runs import Run, all_runs

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
    make(tmp_path, "failed", created=2).record_failure("The GPU is out of memory.")
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
    make(tmp_path, "b", model="Yi-1.5-6B-Chat", created=2, identity=ada).record_failure("The disk is full.")
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
    assert read_history(tmp_path) == {"step": 20, "steps": 40, "loss": 15.5, **kept}


@pytest.mark.parametrize("state", ["", "{", "[]", '{"global_step": 1}', "\xff"])
@pytest.mark.parametrize("end", ['{"current_st', "[]", "3", "\x00\x00", '{"loss": 1}'])
def test_half_written_history(tmp_path: Path, state: str, end: str) -> None:
    (tmp_path / "trainer_state.json").write_bytes(state.encode("latin-1"))
    write_log(tmp_path, end)
    assert read_history(tmp_path) == LOGGED


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    write_log(tmp_path, json.dumps({"current_steps": 2, "total_steps": 4, "loss": math.nan, "eval_loss": math.inf}))
    assert read_history(tmp_path) == LOGGED
