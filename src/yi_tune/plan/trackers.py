"""`--report-to`: the experiment trackers that LLaMA-Factory sends a run's figures to."""

from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yi_tune.config import Config


class Tracker(StrEnum):
    """Those that LLaMA-Factory names for `report_to`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    SWANLAB = "swanlab"
    MLFLOW = "mlflow"


def tracker_settings(trackers: list[Tracker], run: str) -> dict[str, tuple[Any, str]]:
    """The keys of a config that has `run` reported to these trackers, with value and reason."""
    settings: dict[str, tuple[Any, str]] = {}
    if Tracker.SWANLAB in trackers:
        # By LLaMA-Factory, with SwanLab's own callback: transformers 5.6's does not work with SwanLab 0.10 (seen).
        settings["use_swanlab"] = (True, "--report-to swanlab")
        settings["swanlab_run_name"] = (run, "what SwanLab calls the run")
    if others := [tracker.value for tracker in trackers if tracker is not Tracker.SWANLAB]:
        settings["report_to"] = (others, "--report-to")
        settings["run_name"] = (run, "what the tracker calls the run")
    return settings


def tracker_problems(config: "Config") -> list[str]:
    """What is wrong with the trackers of a config, and every secret that the run folder would keep."""
    asked = config.get("report_to") or []
    names = asked if isinstance(asked, list) else [asked]
    packages = [name for name in names if name != "none"] + (["swanlab"] if config.get("use_swanlab") else [])
    found = [f"{key}: a run folder keeps its config, and is no place for a secret." for key in config if _secret(key)]
    for name in packages:
        if name not in list(Tracker):
            found.append(f"report_to: {name!r} is not one of {', '.join(Tracker)}.")
        elif find_spec(name) is None:
            found.append(f"report_to: {name} is not installed: pip install {name}")
    return found


def _secret(key: str) -> bool:
    return key.endswith(("_token", "_api_key", "_secret", "_webhook_url"))
