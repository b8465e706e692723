"""A training run with its config, each value of which knows where it came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from yi_tune import __version__
from yi_tune.config import Config, find_config, left_open, read_config
from yi_tune.data.identity import EVAL, Dataset, Identity
from yi_tune.errors import YiTuneError
from yi_tune.hardware import uses_ray
from yi_tune.language import Text, english, kept
from yi_tune.meeting import Nodes
from yi_tune.models import LocalModel
from yi_tune.plan.checks import is_trainable
from yi_tune.plan.fit import Fit
from yi_tune.plan.memory import answering
from yi_tune.runs import Run, Start

# The value of a key of the config, its source (template, model, hardware, data, run or flag), and the reason.
Setting = tuple[Any, str, Text]
_PACKAGES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# The keys that yi-tune itself decides.
_OWNED = (
    *("model_name_or_path", "adapter_name_or_path", "output_dir", "dataset", "dataset_dir", "tokenized_path"),
    *("resume_from_checkpoint", "ray_num_workers"),
)


@dataclass(frozen=True)
class TrainPlan:
    """All of a run: the model, the identity, the data, the folder, and the config for LLaMA-Factory by its keys."""

    local: LocalModel
    identity: Identity | None
    datasets: tuple[Dataset, ...]
    run: Run
    # How its steps are divided for the memory that is free, unless the config says so itself.
    fit: Fit
    # How many general prompts the base answers first; its answers become a dataset of their own.
    replay: int = 0
    start: Start | None = None
    nodes: Nodes | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def trained(self) -> list[Dataset]:
        """The datasets that are trained on; the replay's is made later."""
        return [dataset for dataset in self.datasets if dataset.name != EVAL]

    @property
    def config(self) -> Config:
        """The effective config, as LLaMA-Factory takes it."""
        return {key: value for key, (value, _, _) in self.settings.items()}

    @property
    def chat_config(self) -> Config:
        """The config that loads what this plan trains: base and tuned model from one copy of the base."""
        paths = {"model_name_or_path": str(self.local.path), "adapter_name_or_path": str(self.run.folder)}
        config = read_config(find_config("chat")) | paths | {"template": self.config["template"]}
        # What only several GPUs hold in 16 bits, one has in 4.
        bits = self.config.get("quantization_bit") or (4 if self.fit.sharding else None)
        return config | answering(self.fit.shape, self.fit.hardware, bits)

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        return {
            "model": self.local.model.name,
            "model_path": str(self.local.path),
            "weights": self.local.weights_digest,
            "from_run": {"run": self.start.run, "adapter": self.start.adapter} if self.start else None,
            "identity": vars(self.identity) if self.identity else {},
            # The name of a file tells its content.
            "data": {dataset.name: dataset.file_name for dataset in self.datasets},
            "commits": {place: commit for dataset in self.datasets for place, commit in dataset.commits.items()},
            "replay": self.replay,
            "gpus": self.fit.hardware.total,
            "sharding": self.fit.sharding,
            "config": self.config,
            "reasons": {key: [source, why] for key, (_, source, why) in self.settings.items()},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"yi-tune": __version__, **{package: version(package) for package in _PACKAGES}},
        }


def merge(planned: TrainPlan, template: Config, reasons: dict[str, str], options: Mapping[str, Config]) -> TrainPlan:
    """The plan with its config: of template, model, machine and options, the later ones winning.

    `reasons` are those of the template, and `options` has the keys that each option of yi-tune decides. Raises
    YiTuneError when `--set` is to change a key that yi-tune decides, or the shape of the adapter to start from.
    """
    flags, start, run = options.get("--set", {}), planned.start, planned.run
    owned = [key for key in flags if key in _OWNED]
    elsewhere = ("resume_from_checkpoint",) if start else ("resume_from_checkpoint", "adapter_name_or_path")
    owned += [key for key in elsewhere if template.get(key)]
    if owned:
        raise YiTuneError(
            "yi-tune itself decides {owned}: drop that from --set and the config.",
            "Use --model, --from-run, --run, --workspace, --name or --data; the same command again resumes a run.",
            owned=", ".join(owned),
        )
    asked, shape = {**template, **flags}, start.shape if start else {}
    clashes = [f"{key}={value}" for key, value in shape.items() if asked.get(key, value) != value]
    if start and clashes:
        raise YiTuneError(
            "The adapter of the run {run!r} has {clashes}, and keeps its shape.",
            "Drop --from-run, or the other value from --set and the config.",
            run=start.run,
            clashes=", ".join(clashes),
        )
    model, hardware, datasets = planned.local.model, planned.fit.hardware, planned.datasets
    trained = planned.trained
    rows = sum(dataset.rows for dataset in trained)
    origins: Text = ""
    for dataset in datasets:
        origin = kept("{rows} rows of {name}", rows=dataset.rows, name=dataset.name)
        origins = kept("{origins}, {origin}", origins=origins, origin=origin) if origins else origin
    own = kept("{model}'s own", model=model.name)
    fills: dict[str, Setting] = {
        "model_name_or_path": (str(planned.local.path), "model", kept("where {model} lies", model=model.name)),
        "dataset_dir": (str(run.data), english("data"), origins),
        "output_dir": (str(run.folder), "run", kept("the run folder")),
        "preprocessing_num_workers": (
            max(1, min(os.cpu_count() or 1, rows // 1000)),
            "data",
            kept("{rows} rows", rows=rows),
        ),
        "learning_rate": (model.learning_rate, "model", own),
        "num_train_epochs": (model.num_train_epochs, "model", own),
        "use_cpu": (hardware.gpu is None, "hardware", kept("training is on {device}", device=hardware.named)),
    }
    machine = planned.fit.settings | hardware.settings
    fills |= {key: (value, english("hardware"), why) for key, (value, why) in machine.items()}
    settings: dict[str, Setting] = {
        key: (value, english("template"), reasons.get(key, "")) for key, value in template.items()
    }
    settings |= {key: fills[key] for key in fills if left_open(template, key)}
    # A config written for LLaMA-Factory itself names its own paths; yi-tune's replace them.
    settings.pop("tokenized_path", None)
    settings |= {key: fills[key] for key in ("model_name_or_path", "dataset_dir", "output_dir")}
    names = ",".join([*(dataset.name for dataset in trained), *(["replay"] if planned.replay else [])])
    if template.get("dataset") != names and ("dataset" not in template or is_trainable(template["dataset"])):
        settings["dataset"] = (names, "data", kept("all the rows there are"))
    settings |= {"ray_num_workers": (hardware.count, "run", "USE_RAY")} if uses_ray() else {}
    if planned.nodes:
        settings["save_on_each_node"] = (True, "run", kept("each machine goes on from its own checkpoints"))
    if start:
        settings["adapter_name_or_path"] = (
            str(start.folder),
            "run",
            kept("the adapter of the run {run}", run=start.run),
        )
        why = kept("the adapter of the run {run} has it", run=start.run)
        settings |= {key: (value, "run", why) for key, value in shape.items() if value is not None}
    for option, values in options.items():
        settings |= {key: (value, english("flag"), option) for key, value in values.items()}
    if any(dataset.name == "own" for dataset in trained):
        why = kept("LLaMA-Factory keeps the rows in tokens there, for a resumed run")
        settings["tokenized_path"] = (str(run.data / "tokenized"), "data", why)
    return replace(planned, settings=settings)
