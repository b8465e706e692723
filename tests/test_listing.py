import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from yi_tune.runs.folder import Run, all_runs
from yi_tune.runs.listing import list_runs, print_runs

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


def log(run: Run, best: int | None = None, **evaluations: float) -> None:
    """As many losses as there are steps, four, and some evaluations."""
    losses = [{"step": step, "loss": 4.0 / step} for step in range(1, 5)]
    evals = [{"step": int(step[1:]), "eval_loss": loss} for step, loss in evaluations.items()]
    history = {"log_history": [*losses, *evals], "best_global_step": best}
    run.write("trainer_state.json", json.dumps({"global_step": 4, "max_steps": 8} | history))


def test_states(tmp_path: Path) -> None:
    make(tmp_path, "interrupted", created=1)
    make(tmp_path, "failed", created=2).record_failure("The GPU is out of memory.")
    finished = make(tmp_path, "finished", created=3)
    finished.write("report.json", '{"recall": 0.975, "loss": 0.4}')
    running = make(tmp_path, "running", created=4)
    broken = make(tmp_path, "broken", created=5)
    broken.write("run.json", '{"model": "na')
    with running.lock():
        listed = {run.run: run for run in list_runs(all_runs(tmp_path))}
    assert {name: run.state for name, run in listed.items()} == {name: name for name in listed}
    assert len(listed) == 5
    assert listed["failed"].why == "The GPU is out of memory."
    assert "no readable run.json" in listed["broken"].why
    assert listed["finished"].recall == 0.975
    assert listed["finished"].ended
    assert listed["interrupted"].recall is None


def test_figures(tmp_path: Path) -> None:
    last = make(tmp_path, "last")
    log(last, s2=0.5, s4=0.75)
    log(make(tmp_path, "best"), best=2, s2=0.5, s4=0.75)
    listed = {run.run: run for run in list_runs(all_runs(tmp_path))}
    assert (listed["last"].step, listed["last"].steps, listed["last"].eval_loss) == (4, 8, 0.75)
    assert listed["best"].eval_loss == 0.5
    assert listed["last"].loss == pytest.approx(1.1, abs=0.1)


def test_newest_is_last(tmp_path: Path) -> None:
    for name, created in (("a", 3), ("b", 1), ("c", 2)):
        make(tmp_path, name, created=created)
    assert [run.run for run in list_runs(all_runs(tmp_path))] == ["b", "c", "a"]


def test_no_runs(tmp_path: Path) -> None:
    assert list_runs(all_runs(tmp_path)) == []


@pytest.mark.parametrize("report", ["", "{", "[]", "null"])
def test_broken_report(tmp_path: Path, report: str) -> None:
    make(tmp_path, "a").write("report.json", report)
    (listed,) = list_runs(all_runs(tmp_path))
    assert listed.recall is None


def test_keys_are_stable(tmp_path: Path) -> None:
    make(tmp_path, "a")
    (listed,) = list_runs(all_runs(tmp_path))
    assert list(json.loads(json.dumps(vars(listed)))) == [
        *("run", "model", "name", "author", "state", "why", "step", "steps"),
        *("loss", "eval_loss", "recall", "created", "ended", "folder"),
    ]


def test_printed(tmp_path: Path) -> None:
    log(make(tmp_path, "identity"), s4=0.75)
    make(tmp_path, "b", model="Yi-1.5-6B-Chat", created=2, identity=IDENTITY | {"name": "[bold]Ada"}).record_failure(
        "The disk is full."
    )
    file = io.StringIO()
    print_runs(list_runs(all_runs(tmp_path)), Console(file=file, width=40))
    header, first, second, why = file.getvalue().splitlines()
    assert header.split() == ["run", "model", "name", "state", "step", "loss", "eval_loss", "recall", "when"]
    assert first.split()[:7] == ["identity", "nano", "小易", "interrupted", "4/8", first.split()[5], "0.7500"]
    assert second.split()[:5] == ["b", "Yi-1.5-6B-Chat", "[bold]Ada", "failed", "-"]
    # Columns are aligned in cells, of which a Chinese character takes two.
    assert header.index("state") == second.index("failed") == first.index("interrupted") + 2
    assert why == "b: The disk is full."


@pytest.mark.parametrize("odd", [{"identity": []}, {"config": None}, {"created": "yesterday"}, {"created": None}])
def test_odd_record_is_listed(tmp_path: Path, odd: dict[str, Any]) -> None:
    make(tmp_path, "a", **odd)
    (listed,) = list_runs(all_runs(tmp_path))
    assert listed.state == ("interrupted" if "created" in odd else "broken")
    file = io.StringIO()
    print_runs([listed], Console(file=file, width=200))
    assert file.getvalue().splitlines()[1].startswith("a ")
