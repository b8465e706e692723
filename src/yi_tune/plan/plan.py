"""What a training run will do, decided before anything starts: every value knows where it came from.

Pure: no file is written and no heavy package imported here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from yi_tune.config import Config, fill, placeholders
from yi_tune.data.dataset import Dataset
from yi_tune.data.identity import Identity
from yi_tune.data.own import OwnData
from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel
from yi_tune.plan.adapters import Start
from yi_tune.plan.checks import is_trainable
from yi_tune.plan.memory import Fit, answering
from yi_tune.runs.folder import Run

Source = Literal["template", "model", "hardware", "data", "run", "flag"]

# What yi-tune itself decides, and the option that is meant by setting it.
_OWNED = {
    "model_name_or_path": "--model",
    "adapter_name_or_path": "--from-run",
    "output_dir": "--run or --workspace",
    "dataset": "--name, --data and --no-identity",
    "dataset_dir": "--name, --data and --no-identity",
    "tokenized_path": "--data",
    "resume_from_checkpoint": "the same command again, which resumes an unfinished run",
}


@dataclass(frozen=True)
class Setting:
    """One key of the config, and why it has this value."""

    key: str
    value: Any
    source: Source
    why: str


@dataclass(frozen=True)
class TrainPlan:
    """All of a run: the config for LLaMA-Factory, the model, the identity, the data and the folder."""

    settings: tuple[Setting, ...]
    local: LocalModel
    identity: Identity | None
    datasets: tuple[Dataset, ...]
    run: Run
    # How its steps are divided for the memory that is free, unless the config says so itself.
    fit: Fit
    # How many general prompts the base answers first; its answers become a dataset of their own.
    replay: int = 0
    start: Start | None = None
    # The rows of the dataset `own`, tokenised.
    own: OwnData | None = None

    @property
    def config(self) -> Config:
        """The effective config, as LLaMA-Factory takes it."""
        return {setting.key: setting.value for setting in self.settings}

    @property
    def departures(self) -> list[Setting]:
        """The settings that are not simply the tutorial's: changed here, or in the template with a reason."""
        return [setting for setting in self.settings if setting.source != "template" or setting.why]

    def changed(self, values: Config, why: str) -> "TrainPlan":
        """The same plan with other values that the machine has made necessary."""
        settings = [
            Setting(setting.key, values[setting.key], "hardware", why) if setting.key in values else setting
            for setting in self.settings
        ]
        added = [Setting(key, value, "hardware", why) for key, value in values.items() if key not in self.config]
        return replace(self, settings=(*settings, *added))

    def fitted(self, length: int) -> "TrainPlan":
        """The same plan for rows of at most `length` tokens, once it is known how long they are."""
        fit, sources = self.fit.for_rows_of(length), {setting.key: setting.source for setting in self.settings}
        changes = {
            key: value
            for key, value in fit.division.items()
            if sources.get(key) == "hardware" and value != self.config[key]
        }
        return replace(self.changed(changes, f"the longest row has {length} tokens"), fit=fit)

    def chat_config(self, template: Config) -> Config:
        """The config that loads what this plan trains; `template` is configs/chat.yaml.

        Base and tuned model can be had from one copy of the base, in what precision that ever is.
        """
        config = self.config
        filled = fill(template, {"model_path": str(self.local.path), "adapter_path": str(self.run.folder)})
        filled["template"] = config["template"]
        return filled | answering(self.fit.shape, self.fit.hardware, config.get("quantization_bit"))

    def base_config(self, template: Config) -> Config:
        """The config that loads the model as it is before training; `template` as for `chat_config`."""
        config = self.chat_config(template) | {"model_name_or_path": str(self.local.path)}
        return {key: value for key, value in config.items() if key != "adapter_name_or_path"}


def plan_train(
    template: Config,
    reasons: dict[str, str],
    overrides: Config,
    *,
    local: LocalModel,
    identity: Identity | None,
    datasets: tuple[Dataset, ...],
    fit: Fit,
    run: Run,
    replay: int = 0,
    start: Start | None = None,
    options: Mapping[str, tuple[Any, str]] | None = None,
    own: OwnData | None = None,
) -> TrainPlan:
    """Merge template, model, machine and flags, the later ones winning; `start` is the adapter to start from.

    `options` are the keys that an option of yi-tune's decides, with value and reason; `overrides` those of --set.
    Raises YiTuneError for an override of what yi-tune decides, or what does not fit the adapter to start from.
    """
    if owned := [f"{key} (use {_OWNED[key]})" for key in overrides if key in _OWNED]:
        raise YiTuneError(f"--set cannot change {', '.join(owned)}.", "Drop that --set.")
    if start and (clashes := start.clashes({**template, **overrides})):
        raise YiTuneError(f"{'; '.join(clashes)}.", "An adapter keeps its shape: drop that, or --from-run.")
    model, hardware = local.model, fit.hardware
    rows = sum(dataset.rows for dataset in datasets)
    decided: dict[str, tuple[Any, Source, str]] = {
        "model_path": (str(local.path), "model", f"where {model.name} lies"),
        "dataset_dir": (str(run.data), "data", _origins(datasets, identity, replay)),
        "output_dir": (str(run.folder), "run", "the run folder"),
        "preprocessing_num_workers": (max(1, min(os.cpu_count() or 1, rows // 1000)), "data", f"{rows} rows"),
        "learning_rate": (model.learning_rate, "model", f"{model.name}'s own"),
        "num_train_epochs": (model.num_train_epochs, "model", f"{model.name}'s own"),
        **{key: (value, "hardware", why) for key, (value, why) in (fit.settings | hardware.settings).items()},
        "use_cpu": (hardware.gpu is None, "hardware", f"training is on {hardware.device}"),
    }
    # A config written for LLaMA-Factory itself names its own paths; yi-tune's replace them.
    own_paths = {
        "model_name_or_path": "${model_path}",
        "dataset_dir": "${dataset_dir}",
        "output_dir": "${output_dir}",
    }
    if start:
        own_paths["adapter_name_or_path"] = "${adapter_path}"
        decided["adapter_path"] = (str(start.folder), "run", f"where the adapter of the run {start.run} lies")
    elif "adapter_name_or_path" in template:
        raise YiTuneError(
            f"The config starts from the adapter {template['adapter_name_or_path']}.",
            "Drop that line; an earlier run's is started from with --from-run RUN.",
        )
    template = {key: value for key, value in template.items() if key != "tokenized_path"} | own_paths
    names = ",".join([*(dataset.name for dataset in datasets), *(["replay"] if replay else [])])
    if template.get("dataset") != names and is_trainable(template.get("dataset")):
        template["dataset"] = "${dataset}"
        decided["dataset"] = (names, "data", "what there is to train on")
    # What nothing fills stays as it is, for problems() to report with all the rest.
    unknown = {name: f"${{{name}}}" for names in placeholders(template).values() for name in names - decided.keys()}
    filled = fill(template, {name: value for name, (value, _, _) in decided.items()} | unknown)
    settings = {}
    for key, value in filled.items():
        name = min(placeholders(template).get(key, ()), default="")
        from_template: tuple[Any, Source, str] = (value, "template", reasons.get(key, ""))
        _, source, why = decided.get(name, from_template)
        settings[key] = Setting(key, value, source, why)
    if start:
        why = f"the adapter of the run {start.run} has it"
        settings |= {key: Setting(key, value, "run", why) for key, value in start.settings.items()}
    for key, (value, why) in (options or {}).items():
        settings[key] = Setting(key, value, "flag", why)
    for key, value in overrides.items():
        settings[key] = Setting(key, value, "flag", "--set")
    if own:
        why = "LLaMA-Factory keeps the rows in tokens there, for a resumed run"
        settings["tokenized_path"] = Setting("tokenized_path", str(run.tokenized), "data", why)
    return TrainPlan(tuple(settings.values()), local, identity, datasets, run, fit, replay, start, own)


def _origins(datasets: tuple[Dataset, ...], identity: Identity | None, replay: int) -> str:
    """How many rows there are of what."""
    said = {"identity": f"rows rendered for {identity.name if identity else ''}", "own": "rows of your own"}
    rows = [f"{dataset.rows} {said[dataset.name]}" for dataset in datasets]
    return ", ".join(rows + ([f"up to {replay} answers of the base"] if replay else []))
