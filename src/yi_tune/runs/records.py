"""run.json: what a run records of itself, and which differences make it another run."""

import importlib.metadata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from yi_tune.config import Config
from yi_tune.models import LocalModel

if TYPE_CHECKING:
    from yi_tune.plan.adapters import Start

_PACKAGES = ("yi-tune", "llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# Where a run lies and what is told of it may change between two commands; what it trains may not.
_PLACES = ("model_name_or_path", "adapter_name_or_path", "dataset_dir", "tokenized_path", "output_dir")
_REPORTS = ("report_to", "run_name", "use_swanlab", "swanlab_run_name")
# Nor how its steps are divided for the memory that is free: their product is the same training.
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_MEMORY = (
    *(*_BATCH, "per_device_eval_batch_size", "disable_gradient_checkpointing", "flash_attn"),
    "preprocessing_num_workers",
)


def record(
    config: Config,
    local: LocalModel,
    identity: dict[str, str],
    data: dict[str, str],
    *,
    replay: int = 0,
    start: "Start | None" = None,
) -> dict[str, Any]:
    """The content of run.json; `data` has the file of each dataset, whose name tells its content, `replay` is how many
    prompts the base answers first, and `start` the adapter that it starts from.
    """
    return {
        "model": local.model.name,
        "model_path": str(local.path),
        "weights": local.weights_digest,
        "from_run": start and start.record,
        "identity": identity,
        "data": data,
        "replay": replay,
        "config": config,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of two run.json would train otherwise, as `key: old -> new`."""

    def trains(content: dict[str, Any]) -> dict[str, Any]:
        given = content["config"]
        config = {key: value for key, value in given.items() if key not in (*_PLACES, *_REPORTS, *_MEMORY)}
        config["effective batch"] = given.get(_BATCH[0], 8) * given.get(_BATCH[1], 1)
        same = {key: content[key] for key in ("model", "weights", "replay")}
        if start := content["from_run"]:
            same["from_run"] = f"{start['run']} ({start['adapter'][:12]})"
        # The first runs had one dataset.
        data = content["data"] if isinstance(content["data"], dict) else {"identity": content["data"]}
        return {**same, **{f"data {name}": file for name, file in data.items()}, **content["identity"], **config}

    before, after = trains(old), trains(new)
    if not (before["weights"] and after["weights"]):  # of weights that nobody has hashed nothing is known
        before["weights"] = after["weights"]
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
