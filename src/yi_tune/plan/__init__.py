"""Everything that a run will be, decided before anything heavy starts; here the keys that options decide."""

from enum import StrEnum
from typing import Any


class Tracker(StrEnum):
    """The experiment trackers that LLaMA-Factory sends a run's figures to: `--report-to`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    SWANLAB = "swanlab"
    MLFLOW = "mlflow"


# `--early-stop`: the keys with value and reason.
EARLY_STOP: dict[str, tuple[Any, str]] = {
    "early_stopping_steps": (3, "--early-stop: after three evaluations that were no better than the best"),
    "metric_for_best_model": ("eval_loss", "--early-stop"),
    "load_best_model_at_end": (True, "--early-stop: the adapter that is kept is the best, not the last"),
    "restore_callback_states_from_checkpoint": (True, "--early-stop: a resumed run knows how long it has waited"),
    "eval_strategy": ("steps", "--early-stop"),
    "eval_steps": (0.05, "--early-stop: twenty times a run, for it to stop before much is wasted"),
    "save_strategy": ("steps", "--early-stop"),
    "save_steps": (0.05, "--early-stop: the adapter of each evaluation has to be there to go back to"),
    "save_total_limit": (3, "--early-stop: the best, the newest, and one more in case that one is cut short"),
}


def report_to(trackers: list[Tracker], run: str) -> dict[str, tuple[Any, str]]:
    """The keys of a config that has `run` reported to these trackers, with value and reason."""
    settings: dict[str, tuple[Any, str]] = {}
    if Tracker.SWANLAB in trackers:
        # By LLaMA-Factory, with SwanLab's own callback: transformers 5.6's does not work with SwanLab 0.10 (seen).
        settings["use_swanlab"] = (True, "--report-to swanlab")
        settings["swanlab_run_name"] = (run, "the run's name in SwanLab")
    if others := [tracker.value for tracker in trackers if tracker is not Tracker.SWANLAB]:
        settings["report_to"] = (others, "--report-to")
        settings["run_name"] = (run, "the run's name in the tracker")
    return settings
