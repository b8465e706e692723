"""Everything that a run will be, decided before anything heavy starts."""

from enum import StrEnum


class Tracker(StrEnum):
    """The experiment trackers that LLaMA-Factory sends a run's figures to: `--report-to`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    SWANLAB = "swanlab"
    MLFLOW = "mlflow"
