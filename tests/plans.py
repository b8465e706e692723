"""Plans of runs that no machine and no model is asked for."""

from pathlib import Path
from typing import Any

from yi_tune.config import Config, find_config, read_config, reasons
from yi_tune.data.identity import Dataset, Identity
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel, Model
from yi_tune.plan.fit import Fit
from yi_tune.plan.settings import TrainPlan, merge
from yi_tune.runs import Run

CPU = Hardware(None, bf16=True, free=20_000_000_000)
IDENTITY = (Dataset("identity", 398, ""),)


def plan(
    template: str | Config = "qlora",
    overrides: Config | None = None,
    *,
    model: Model = CATALOGUE["nano"],
    path: Path = Path("/models/m"),
    run: Path = Path("/ws/saves/m/identity"),
    hardware: Hardware = CPU,
    fit: Fit | None = None,
    datasets: tuple[Dataset, ...] = IDENTITY,
    options: dict[str, Config] | None = None,
    **more: Any,
) -> TrainPlan:
    """The plan for a shipped config, or one given."""
    why = {}
    if isinstance(template, str):
        file = find_config(template)
        template, why = read_config(file), reasons(file)
    local, fit = LocalModel(model, path), fit or Fit(8, 1, False, hardware)
    empty = TrainPlan(local, Identity("小易", "李雷"), datasets, Run(run), fit, **more)
    return merge(empty, template, why, {**(options or {}), "--set": overrides or {}})


def record(
    config: Config, local: LocalModel, identity: dict[str, str], data: Any, from_run: dict[str, str] | None = None
) -> dict[str, Any]:
    """The run.json of such a run."""
    decided = {"weights": local.weights_digest, "identity": identity, "data": data, "from_run": from_run}
    return plan().record | decided | {"model": local.model.name, "model_path": str(local.path), "config": config}
