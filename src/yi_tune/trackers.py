"""`--report-to`: the experiment trackers that a run's figures can be sent to, by transformers' own callbacks."""

from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yi_tune.config import Config


class Tracker(StrEnum):
    """Those that LLaMA-Factory names for `report_to`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    SWANLAB = "swanlab"
    MLFLOW = "mlflow"


def tracker_problems(config: "Config") -> list[str]:
    """What is wrong with a config's `report_to`, and every secret that the run folder would keep."""
    asked = config.get("report_to") or []
    names = asked if isinstance(asked, list) else [asked]
    found = [f"{key}: a run folder keeps its config, and is no place for a secret." for key in config if _secret(key)]
    for name in names:
        if name not in [*Tracker, "none"]:
            found.append(f"report_to: {name!r} is not one of {', '.join(Tracker)}.")
        elif name != "none" and find_spec(name) is None:
            found.append(f"report_to: {name} is not installed: pip install {name}")
    return found


def _secret(key: str) -> bool:
    return key.endswith(("_token", "_api_key", "_secret", "_webhook_url"))
