"""The bitsandbytes trap: an evaluation in mid-training must not take the gradients away."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from yi_tune import train as training
from yi_tune.data.identity import Identity
from yi_tune.plan.plan import plan

Losses = Callable[[str, str], list[float]]


@pytest.fixture
def losses(tmp_path: Path) -> Losses:
    """A function that trains a short run, evaluating as told, to its loss at every step."""

    def train(run: str, eval_strategy: str) -> list[float]:
        short = ["max_samples=60", "num_train_epochs=1", "eval_steps=1", f"eval_strategy={eval_strategy}"]
        planned = plan(Identity("小易", "李雷"), model="nano", overrides=short, run=run, workspace=tmp_path)
        training.run(planned, fresh=False)
        state = json.loads((planned.run.folder / "trainer_state.json").read_text())
        return [log["loss"] for log in state["log_history"] if "loss" in log]

    return train


def test_an_evaluation_leaves_training_as_it_was(losses: Losses, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = losses("undisturbed", "no")
    assert len(undisturbed) > 5
    assert losses("evaluated", "steps") == undisturbed

    from bitsandbytes.nn.modules import has_avx512bf16

    if has_avx512bf16():  # only such CPUs pack; should bitsandbytes ever mend it, the handling can go
        monkeypatch.setattr("yi_tune.engine.trainer.keep_trainable", lambda model: None)
        assert losses("unhandled", "steps") != undisturbed
