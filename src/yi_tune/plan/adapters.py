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
_SHAPE = {"lora_rank": "r"} | {key: key for key in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")}
# adapter_config.json has these as the modules that they came to; here are their values where a config has none.
_MODULES = {"lora_target": "all", "additional_target": None}


@dataclass(frozen=True)
class Start:
    """An adapter to start from: its run, folder and sha256, and its shape by the keys of the config."""

    run: str
    folder: Path
    adapter: str
    shape: Config


def find_start(workspace: Path, name: str, local: LocalModel, target: Run) -> Start:
    """The adapter of the finished run `name`, for the run `target` of the model `local` to start from.

    Raises YiTuneError when there is none, or it does not fit these very weights, or `target` would replace it.
    """
    run = train_run(workspace, local, name)
    if run == target:
        raise YiTuneError(
            f"The run {name!r} cannot start from itself: it would replace its own start.",
            "Train beside it, with another --run NAME.",
        )
    if not run.finished:
        run = find_run(workspace, name)  # of another model, or it raises
    record, weights = run.record, local.weights_digest
    same = weights == record["weights"] if weights and record["weights"] else record["model"] == local.model.name
    if not same:
        raise YiTuneError(
            f"The run {name!r} was trained on other weights, {record['model']}, than those in {local.path}.",
            f"An adapter fits only its own weights: --model {record['model']}, or train that run anew with --fresh.",
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
