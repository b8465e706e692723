import json
from pathlib import Path

import pytest

from yi_tune.runs.history import History, read_history, smooth

LOG = [
    {"current_steps": 1, "total_steps": 4, "loss": 3.0, "lr": 1e-3},
    {"current_steps": 2, "total_steps": 4, "loss": 2.0, "lr": 1e-3},
    {"current_steps": 2, "total_steps": 4, "eval_loss": 2.5},
]


def test_of_a_run_that_trains(tmp_path: Path) -> None:
    assert read_history(tmp_path) is None
    (tmp_path / "trainer_log.jsonl").write_text("".join(f"{json.dumps(log)}\n" for log in LOG))
    assert read_history(tmp_path) == History(2, 4, {1: 3.0, 2: 2.0}, {2: 2.5})


def test_of_a_run_that_has_trained(tmp_path: Path) -> None:
    (tmp_path / "trainer_log.jsonl").write_text(json.dumps(LOG[0]))
    history = [{"step": 1, "loss": 3.0}, {"step": 3, "loss": 1.0, "grad_norm": 2}, {"step": 3, "eval_loss": 0.5}]
    state = {"global_step": 3, "max_steps": 4, "log_history": [*history, {"step": 3, "train_loss": 2.0}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert read_history(tmp_path) == History(3, 4, {1: 3.0, 3: 1.0}, {3: 0.5})


@pytest.mark.parametrize("state", ["", "{", "[]", '{"global_step": 1}', "\xff"])
@pytest.mark.parametrize("end", ['{"current_st', "[]", "3", "\x00\x00", '{"loss": 1}'])
def test_half_written(tmp_path: Path, state: str, end: str) -> None:
    (tmp_path / "trainer_state.json").write_bytes(state.encode("latin-1"))
    (tmp_path / "trainer_log.jsonl").write_text("".join(f"{json.dumps(log)}\n" for log in LOG) + end)
    assert read_history(tmp_path) == History(2, 4, {1: 3.0, 2: 2.0}, {2: 2.5})


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe"])
def test_nothing_that_can_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_log.jsonl").write_bytes(text.encode("latin-1"))
    assert read_history(tmp_path) is None


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    logs = [*LOG, {"current_steps": 3, "total_steps": 4, "loss": float("nan"), "eval_loss": float("inf")}]
    (tmp_path / "trainer_log.jsonl").write_text("\n".join(json.dumps(log) for log in logs))
    assert read_history(tmp_path) == History(3, 4, {1: 3.0, 2: 2.0}, {2: 2.5})


def test_loss_is_the_smoothed_one() -> None:
    losses = [4.0, 1.0, 3.0]
    assert History(3, 3, dict(enumerate(losses)), {}).loss == smooth(losses)[-1]
    assert History(3, 3, {}, {}).loss is None


@pytest.mark.parametrize("count", [0, 1, 2, 18, 180])
def test_smoothed_as_llamafactory_does(count: int) -> None:
    from llamafactory.extras.ploting import smooth as theirs

    losses = [4 / (step + 1) + step % 3 for step in range(count)]
    assert smooth(losses) == pytest.approx(theirs(losses))
