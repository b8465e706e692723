"""A run that has overfitted stops, and keeps its best adapter; it reports to TensorBoard, to save a run for that."""

import json
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Done, Workspace

# 80 rows in batches of 8, four times: 40 steps, evaluated every 2; at such a learning rate it is lost after a few.
OVERFIT = ("--early-stop", "--set", "learning_rate=5e-2", "--set", "max_samples=100", "--set", "val_size=20")
COMMAND = (*OVERFIT, "--set", "num_train_epochs=4", "--report-to", "tensorboard")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Done]:
    """A run that was killed once, after its best step, and what the second command printed."""
    workspace = Workspace(tmp_path_factory.mktemp("early"))
    assert workspace.train_until(9, signal.SIGKILL, *COMMAND).status == -signal.SIGKILL
    return workspace, workspace.train(*COMMAND)


def state(run: Path) -> dict[str, Any]:
    """The Trainer's state at the end."""
    return json.loads((run / "trainer_state.json").read_text())


def test_best_adapter_is_kept_over_a_kill(killed: tuple[Workspace, Done]) -> None:
    workspace, resumed = killed
    assert resumed.status == 0, resumed.err
    assert "Going on with the run 'identity' from checkpoint-" in resumed.err
    end = state(workspace.run)
    evals = {log["step"]: log["eval_loss"] for log in end["log_history"] if "eval_loss" in log}
    best = min(evals, key=lambda step: evals[step])
    # It had waited for some of its three evaluations when it was killed, and has not begun to wait anew.
    assert max(evals) == end["global_step"] == best + 3 * 2 < end["max_steps"]
    assert f"stopped early, after step {end['global_step']} of 40: kept is step {best}," in resumed.out
    kept, newest = (workspace.run / f"checkpoint-{step}" / "adapter_model.safetensors" for step in (best, max(evals)))
    adapter = (workspace.run / "adapter_model.safetensors").read_bytes()
    assert adapter == kept.read_bytes()
    assert adapter != newest.read_bytes()
    listed = workspace.runs()["identity"]
    assert (listed["state"], listed["step"], listed["eval_loss"]) == ("finished", end["global_step"], evals[best])


def test_tensorboard(killed: tuple[Workspace, Done]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workspace, _ = killed
    read: dict[str, dict[int, float]] = defaultdict(dict)
    for folder in (workspace.run / "runs").iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                # The first of a step: when all is done the best adapter is evaluated once more.
                read[tag].setdefault(event.step, event.value)
    logged = state(workspace.run)["log_history"]
    for tag, key in (("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("eval/loss", "eval_loss")):
        wanted = {log["step"]: log[key] for log in logged if key in log}
        assert {step: read[tag][step] for step in wanted} == pytest.approx(wanted)
    assert all(speed > 0 for speed in read["train/train_tokens_per_second"].values())
    record = json.loads((workspace.run / "run.json").read_text())
    assert (record["config"]["report_to"], record["config"]["run_name"]) == (["tensorboard"], "nano/identity")
