"""The finished run whose adapter another run starts from: `yi-tune train --from-run NAME`."""

import json
from dataclasses import dataclass
from pathlib import Path

from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel, read_header, sha256
from yi_tune.runs import Run, find_run, train_run

# LLaMA-Factory's keys that give an adapter its shape, and PEFT's. When it goes on with an adapter, LLaMA-Factory
# takes them from adapter_config.json, and ignores its own config.
_SHAPE = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
# adapter_config.json has these as the modules that they came to; here are their values where a config has none.
_MODULES = {"lora_target": "all", "additional_target": None}


@dataclass(frozen=True)
class Start:
    """An adapter to start from: the run that trained it, its folder and sha256, and the keys of the config that it
    fixes.
    """

    run: str
    folder: Path
    adapter: str
    shape: Config

    @property
    def record(self) -> dict[str, str]:
        """Its entry in run.json."""
        return {"run": self.run, "adapter": self.adapter}

    @property
    def settings(self) -> Config:
        """The keys of a config that give the adapter's shape."""
        return {key: value for key, value in self.shape.items() if value is not None}

    def check(self, config: Config) -> None:
        """Raise YiTuneError when `config` asks for another shape than the adapter has."""
        clashes = [
            f"{key}: {config[key]}, where the adapter of the run {self.run!r} has {value}"
            for key, value in self.shape.items()
            if key in config and config[key] != value
        ]
        if clashes:
            raise YiTuneError(f"{'; '.join(clashes)}.", "An adapter keeps its shape: drop that, or --from-run.")


def find_start(workspace: Path, name: str, local: LocalModel, target: Run) -> Start:
    """The adapter of the finished run `name` of the model `local`, for the run `target` to start from.

    Raises YiTuneError when there is no such run, or its adapter is not one to these very weights, or is the one that
    `target` would replace.
    """
    run = train_run(workspace, local, name)
    if run == target:
        raise YiTuneError(
            f"The run {name!r} cannot start from itself: it would replace its own start.",
            "Train beside it, with another --run NAME.",
        )
    if not run.finished:
        other = find_run(workspace, name).record["model"]  # raises where none of any model is finished
        raise YiTuneError(
            f"The run {name!r} was trained on {other}, not on {local.model.name}.",
            f"An adapter fits only the model that it was trained on: --model {other}",
        )
    record, weights = run.record, local.weights_digest
    same = weights == record["weights"] if weights and record["weights"] else record["model"] == local.model.name
    if not same:
        raise YiTuneError(
            f"The run {name!r} was trained on other weights of {record['model']} than those in {local.path}.",
            "An adapter fits only the weights that it was trained on: train that run anew first, with --fresh.",
        )
    file = run.folder / "adapter_model.safetensors"
    try:
        read_header(file)
        adapter = json.loads((run.folder / "adapter_config.json").read_text(encoding="utf-8"))
        shape = {key: adapter[theirs] for key, theirs in _SHAPE.items()}
        digest = sha256(file)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise YiTuneError(
            f"The adapter in {run.folder} is missing or broken ({error}).", "Train that run anew first, with --fresh."
        ) from None
    return Start(name, run.folder, digest, shape | {key: record["config"].get(key, _MODULES[key]) for key in _MODULES})
