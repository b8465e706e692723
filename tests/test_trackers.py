from typing import Any

import pytest

from yi_tune.plan import trackers
from yi_tune.plan.trackers import Tracker, tracker_problems, tracker_settings


@pytest.mark.parametrize("config", [{}, {"report_to": None}, {"report_to": "none"}, {"report_to": ["none"]}])
def test_nothing_is_reported_unasked(config: dict[str, Any]) -> None:
    assert tracker_problems(config) == []


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    assert tracker_problems({"report_to": ["wandb", "mlflow"]}) == [
        "report_to: wandb is not installed: pip install wandb"
    ]
    assert tracker_problems({"report_to": "tensorboard"}) == []


@pytest.mark.parametrize("asked", ["all", "tensorbord", ["wandb ", "mlflow"]])
def test_unknown_tracker(asked: str | list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    (problem,) = tracker_problems({"report_to": asked})
    assert "is not one of tensorboard, wandb, swanlab, mlflow" in problem


@pytest.mark.parametrize("key", ["swanlab_api_key", "swanlab_lark_secret", "hub_token", "hf_hub_token"])
def test_secret_is_not_kept(key: str) -> None:
    (problem,) = tracker_problems({key: "hunter2", "skip_special_tokens": True})
    assert problem.startswith(f"{key}: ")
    assert "hunter2" not in problem


def test_settings() -> None:
    assert tracker_settings([Tracker.TENSORBOARD, Tracker.WANDB], "nano/a") == {
        "report_to": (["tensorboard", "wandb"], "--report-to"),
        "run_name": ("nano/a", "what the tracker calls the run"),
    }
    assert {key: value for key, (value, _) in tracker_settings([Tracker.SWANLAB], "nano/a").items()} == {
        "use_swanlab": True,
        "swanlab_run_name": "nano/a",
    }


def test_llamafactorys_own_swanlab_needs_the_package_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert tracker_problems({"use_swanlab": True}) == ["report_to: swanlab is not installed: pip install swanlab"]
