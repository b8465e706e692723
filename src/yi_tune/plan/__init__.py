"""Everything that a run will be, decided before anything heavy starts; here the keys that options decide."""

from typing import Any

# The experiment trackers that LLaMA-Factory sends a run's figures to.
TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow")
# `--early-stop`: twenty evaluations a run, the end after three that were no better than the best, and the best adapter
# kept. Each evaluation has a checkpoint to go back to; the best is kept, the newest, and one more in case that one is
# cut short. A resumed run knows how long it has waited.
EARLY_STOP: dict[str, Any] = {
    "early_stopping_steps": 3,
    "metric_for_best_model": "eval_loss",
    "load_best_model_at_end": True,
    "restore_callback_states_from_checkpoint": True,
    "eval_strategy": "steps",
    "eval_steps": 0.05,
    "save_strategy": "steps",
    "save_steps": 0.05,
    "save_total_limit": 3,
}


def report_to(trackers: list[str], run: str) -> dict[str, Any]:
    """`--report-to`: the keys of a config that has `run` reported to these trackers."""
    others = [tracker for tracker in trackers if tracker != "swanlab"]
    # SwanLab by LLaMA-Factory's own callback: that of transformers 5.6 does not work with SwanLab 0.10 (seen).
    swanlab = {"use_swanlab": True, "swanlab_run_name": run} if "swanlab" in trackers else {}
    return swanlab | ({"report_to": others, "run_name": run} if others else {})
