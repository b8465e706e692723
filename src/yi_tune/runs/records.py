"""run.json: what a run records of itself, and which differences make it another run."""

import importlib.metadata
from datetime import UTC, datetime
from typing import Any

from yi_tune.config import Config
from yi_tune.models import LocalModel

_PACKAGES = ("yi-tune", "llamafactory", "torch", "transformers", "peft", "bitsandbytes")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Keys that may change between two commands: where a run lies, where it is reported, and how its steps are divided for
# the memory that is free, since their product is the same training.
_FREE = {
    *("model_name_or_path", "adapter_name_or_path", "dataset_dir", "tokenized_path", "output_dir"),
    *("report_to", "run_name", "use_swanlab", "swanlab_run_name"),
    *(*_BATCH, "per_device_eval_batch_size", "disable_gradient_checkpointing", "flash_attn"),
    "preprocessing_num_workers",
}


def record(
    config: Config,
    local: LocalModel,
    identity: dict[str, str],
    data: dict[str, str],
    *,
    replay: int = 0,
    from_run: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The content of run.json; `data` has the file of each dataset, whose name tells its content, `replay` is how many
    prompts the base answers first, and `from_run` the adapter that it starts from.
    """
    return {
        "model": local.model.name,
        "model_path": str(local.path),
        "weights": local.weights_digest,
        "from_run": from_run,
        "identity": identity,
        "data": data,
        "replay": replay,
        "config": config,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of two run.json would train otherwise, as `key: old -> new`."""
    before, after = _trained(old), _trained(new)
    if not (before["weights"] and after["weights"]):  # of weights that nobody has hashed nothing is known
        before["weights"] = after["weights"]
    keys = {**before, **after}
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def _trained(content: dict[str, Any]) -> dict[str, Any]:
    """All of a run.json that decides the training, by name."""
    config, start = content["config"], content["from_run"]
    # The first runs had one dataset.
    data = content["data"] if isinstance(content["data"], dict) else {"identity": content["data"]}
    return {
        **{key: content[key] for key in ("model", "weights", "replay")},
        **({"from_run": f"{start['run']} ({start['adapter'][:12]})"} if start else {}),
        **{f"data {name}": file for name, file in data.items()},
        **content["identity"],
        **{key: value for key, value in config.items() if key not in _FREE},
        "effective batch": config.get(_BATCH[0], 8) * config.get(_BATCH[1], 1),
    }
