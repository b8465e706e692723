"""The finished run whose adapter another run starts from: `yi-tune train --from-run NAME`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel, read_header, sha256
from yi_tune.runs.folder import Run, find_run, train_run

# LLaMA-Factory's keys that give an adapter its shape, and PEFT's. When it goes on with an adapter, LLaMA-Factory
# takes them from adapter_config.json, and does not hear what its own config says of them.
_SHAPE = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
# Of these adapter_config.json has the modules that they came to; their values where a config does not say.
_MODULES = {"lora_target": "all", "additional_target": None}


@dataclass(frozen=True)
class Start:
    """An adapter to start from: whose it is, where, its sha256, and the keys of the config that it fixes."""

    run: str
    folder: Path
    adapter: str
    shape: Config

    @property
    def record(self) -> dict[str, str]:
        """What run.json says of it."""
        return {"run": self.run, "adapter": self.adapter}

    @property
    def settings(self) -> Config:
        """What a config says of the adapter's shape; nothing of what it leaves out."""
        return {key: value for key, value in self.shape.items() if value is not None}

    def clashes(self, config: Config) -> list[str]:
        """What `config` wants otherwise than the adapter is."""
        return [
            f"{key}: {config[key]}, where the adapter of the run {self.run!r} has {value}"
            for key, value in self.shape.items()
            if key in config and config[key] != value
        ]


def find_start(workspace: Path, name: str, local: LocalModel, target: Run) -> Start:
    """The adapter of the finished run `name` of the model `local`, for the run `target` to start from.

    Raises YiTuneError when there is no such run, or its adapter is not one to these very weights, or is the one that
    `target` would replace.
    """
    run = train_run(workspace, local, name)
    if run == target:
        raise YiTuneError(
            f"The run {name!r} cannot start from itself: it would replace what it starts from.",
            "Train beside it, with another --run NAME.",
        )
    if not run.finished:
        other = find_run(workspace, name).record["model"]  # raises where none of any model is finished
        raise YiTuneError(
            f"The run {name!r} was trained on {other}, not on {local.model.name}.",
            f"An adapter fits only the model that it was trained on: --model {other}",
        )
    record = run.record
    weights = local.weights_digest
    same = weights == record["weights"] if weights and record["weights"] else record["model"] == local.model.name
    if not same:
        raise YiTuneError(
            f"The run {name!r} was trained on other weights of {record['model']} than those in {local.path}.",
            "An adapter fits only the weights that it was trained on: train that run anew first, with --fresh.",
        )
    digest, adapter = _read(run.folder)
    shape = {key: adapter[theirs] for key, theirs in _SHAPE.items()}
    return Start(name, run.folder, digest, shape | {key: record["config"].get(key, _MODULES[key]) for key in _MODULES})


def _read(folder: Path) -> tuple[str, dict[str, Any]]:
    """The sha256 of the adapter's weights, and its adapter_config.json."""
    weights = folder / "adapter_model.safetensors"
    try:
        read_header(weights)
        digest = sha256(weights)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if missing := _SHAPE.values() - config.keys():
            raise ValueError(f"adapter_config.json lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise YiTuneError(
            f"The adapter in {folder} is missing or broken ({error}).", "Train that run anew first, with --fresh."
        ) from None
    return digest, config
