"""A training run, decided before anything heavy starts; every value of its config knows where it came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from yi_tune.config import Config, fill, find_config, parse_overrides, placeholders, read_config, reasons
from yi_tune.data.dataset import Dataset, dataset_of
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import Identity, identity_rows, render
from yi_tune.data.own import OwnData, prepare_own
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, detect
from yi_tune.hubs.download import use_cached
from yi_tune.hubs.tokenizer import warn_of_tokenizer
from yi_tune.models import DEFAULT_MODEL, LocalModel, check_model, find_model
from yi_tune.output import err
from yi_tune.plan import EARLY_STOP, Tracker, report_to
from yi_tune.plan.adapters import Start, find_start
from yi_tune.plan.checks import check_validation, is_trainable, missing_speedups, problems
from yi_tune.plan.memory import MICRO, Fit, answering, choose_fit, longest_row, refuse
from yi_tune.runs.folder import Run, train_run
from yi_tune.runs.records import record

Source = Literal["template", "model", "hardware", "data", "run", "flag"]
Decided = tuple[Any, Source, str]

# The keys that yi-tune itself decides, and the option to set each by.
_OWNED = {
    "model_name_or_path": "--model",
    "adapter_name_or_path": "--from-run",
    "output_dir": "--run or --workspace",
    "dataset": "--name, --data and --no-identity",
    "dataset_dir": "--name, --data and --no-identity",
    "tokenized_path": "--data",
    "resume_from_checkpoint": "the same command again, which resumes an unfinished run",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks to be trained: the options of `yi-tune train`, in its own terms."""

    identity: Identity | None  # None: only the user's own data
    data: list[str] = field(default_factory=list)
    data_dir: Path | None = None
    skip_bad_rows: bool = False
    model: str = DEFAULT_MODEL
    config: str = "qlora"
    overrides: list[str] = field(default_factory=list)
    run: str = "identity"
    replay: int | None = None  # None: the model's own
    from_run: str | None = None
    report_to: list[Tracker] = field(default_factory=list)
    early_stop: bool = False
    workspace: Path


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
    # The rows of the dataset `own`.
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
        settings = {setting.key: setting for setting in self.settings}
        settings |= {key: Setting(key, value, "hardware", why) for key, value in values.items()}
        return replace(self, settings=tuple(settings.values()))

    def fitted(self, length: int) -> "TrainPlan":
        """The same plan for rows of at most `length` tokens, once it is known how long they are."""
        fit = self.fit.for_rows_of(length)
        open_keys = {setting.key for setting in self.settings if setting.source == "hardware"}
        changes = {key: fit.division[key] for key in fit.division.keys() & open_keys}
        return replace(self.changed(changes, f"the longest row has {length} tokens"), fit=fit)

    @property
    def chat_config(self) -> Config:
        """The config that loads what this plan trains: base and tuned model from one copy of the base."""
        paths = {"model_path": str(self.local.path), "adapter_path": str(self.run.folder)}
        config = fill(read_config(find_config("chat")), paths) | {"template": self.config["template"]}
        return config | answering(self.fit.shape, self.fit.hardware, self.config.get("quantization_bit"))

    @property
    def base_config(self) -> Config:
        """The config that loads the model as it is before training."""
        return {key: value for key, value in self.chat_config.items() if key != "adapter_name_or_path"}

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json."""
        data = {dataset.name: dataset.file_name for dataset in self.datasets}
        identity = vars(self.identity) if self.identity else {}
        start = self.start.record if self.start else None
        return record(self.config, self.local, identity, data, replay=self.replay, from_run=start)


def plan(request: Request, *, dry_run: bool = False) -> TrainPlan:
    """Decide all of a run, render its dataset and check the user's own. Raises YiTuneError for whatever would make it
    fail later.

    With `dry_run` the model and the GPU may be missing.
    """
    local = find_model(request.model, request.workspace)
    path = find_config(request.config)
    template, flags = read_config(path), parse_overrides(request.overrides)
    run = train_run(request.workspace, local, request.run)
    if run.running and not dry_run:
        raise run.busy
    config = {**template, **flags, "model_name_or_path": str(local.path)}
    replay = local.model.replay if request.replay is None else request.replay
    prompts = replay_prompts(replay)
    start = None if request.from_run is None else find_start(request.workspace, request.from_run, local, run)
    conversations = render(identity_rows(), request.identity) if request.identity else []
    datasets = [dataset_of("identity", conversations)] if conversations else []
    on_cpu = config.get("use_cpu") is True
    with err.status("Looking at the machine"):
        hardware = detect(cpu_only=on_cpu)
    use_cached(local, err)
    try:
        _check_trainable(local, hardware, forced=on_cpu)
    except YiTuneError as error:
        _refuse(error, dry_run)
    own = None
    if request.data:
        own = prepare_own(
            request.data, request.data_dir, config, request.workspace, skip_bad_rows=request.skip_bad_rows
        )
        datasets.append(own.dataset)
    if not datasets:
        raise YiTuneError("--no-identity leaves nothing to train on.", "Name your own data: --data FILE")
    with err.status("Counting tokens"):
        length = longest_row(local, config, conversations, own, prompts)
    fit = choose_fit(local.shape, config | (start.settings if start else {}), length, hardware)
    planned = plan_train(
        template,
        reasons(path),
        flags,
        local=local,
        identity=request.identity,
        datasets=tuple(datasets),
        own=own,
        fit=fit,
        run=run,
        replay=replay,
        start=start,
        options=report_to(request.report_to, f"{run.folder.parent.name}/{run.name}")
        | (EARLY_STOP if request.early_stop else {}),
    )
    if local.downloaded and local.model.huggingface is None:
        warn_of_tokenizer(local.path, err)
    with err.status("Looking at the config"):
        wrong = problems(planned.config)
    if wrong:
        raise YiTuneError("This config cannot be trained:\n  " + "\n  ".join(wrong), f"Mend --set or {path}.")
    check_validation(planned.config, [dataset.rows for dataset in datasets])
    if not fit.fits:
        too_large = refuse(fit, local.model.name, replay=bool(prompts))
        too_large.hint += f" To try all the same: --set {MICRO}={fit.micro_batch}"
        _refuse(too_large, dry_run or MICRO in flags)
    longest = " The base's answers may be shorter than is counted here." if prompts and fit.estimate else ""
    err.print(fit.summary + longest)
    return planned


def _refuse(error: YiTuneError, insisted: bool) -> None:
    """Raise the error, or tell it to a user who insists."""
    if not insisted:
        raise error
    err.print(f"Note: {error.message} {error.hint}")


def _check_trainable(local: LocalModel, hardware: Hardware, *, forced: bool) -> None:
    """Raise YiTuneError when this machine cannot train the model."""
    if local.needs_gpu and hardware.gpu is None and not forced:
        raise YiTuneError(
            f"{local.model.name} needs a CUDA GPU to train, and torch sees none.",
            "Try the embedded model, which does not: --model nano   (or insist, for days: --set use_cpu=true)",
        )
    check_model(local)


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
    if start:
        start.check({**template, **overrides})
    elif "adapter_name_or_path" in template:
        raise YiTuneError(
            f"The config starts from the adapter {template['adapter_name_or_path']}.",
            "Drop that line; an earlier run's is started from with --from-run RUN.",
        )
    model, hardware = local.model, fit.hardware
    rows = sum(dataset.rows for dataset in datasets)
    # What fills the placeholders of the template.
    decided: dict[str, Decided] = {
        "model_path": (str(local.path), "model", f"where {model.name} lies"),
        "dataset_dir": (str(run.data), "data", _origins(datasets, identity, replay)),
        "output_dir": (str(run.folder), "run", "the run folder"),
        "preprocessing_num_workers": (max(1, min(os.cpu_count() or 1, rows // 1000)), "data", f"{rows} rows"),
        "learning_rate": (model.learning_rate, "model", f"{model.name}'s own"),
        "num_train_epochs": (model.num_train_epochs, "model", f"{model.name}'s own"),
        **{key: (value, "hardware", why) for key, (value, why) in (fit.settings | hardware.settings).items()},
        "use_cpu": (hardware.gpu is None, "hardware", f"training is on {hardware.device}"),
    }
    filled = fill(template, {name: value for name, (value, _, _) in decided.items()})
    settings: dict[str, Decided] = {}
    for key, value in filled.items():
        name = min(placeholders(template).get(key, ()), default="")
        _, source, why = decided.get(name, (value, "template", reasons.get(key, "")))
        settings[key] = (value, source, why)
    # A config written for LLaMA-Factory itself names its own paths; yi-tune's replace them.
    settings.pop("tokenized_path", None)
    settings["model_name_or_path"] = decided["model_path"]
    settings |= {key: decided[key] for key in ("dataset_dir", "output_dir")}
    names = ",".join([*(dataset.name for dataset in datasets), *(["replay"] if replay else [])])
    if template.get("dataset") != names and is_trainable(template.get("dataset")):
        settings["dataset"] = (names, "data", "what there is to train on")
    if start:
        settings["adapter_name_or_path"] = (str(start.folder), "run", f"the adapter of the run {start.run}")
        why = f"the adapter of the run {start.run} has it"
        settings |= {key: (value, "run", why) for key, value in start.settings.items()}
    settings |= {key: (value, "flag", why) for key, (value, why) in (options or {}).items()}
    settings |= {key: (value, "flag", "--set") for key, value in overrides.items()}
    if own:
        why = "LLaMA-Factory keeps the rows in tokens there, for a resumed run"
        settings["tokenized_path"] = (str(run.tokenized), "data", why)
    merged = tuple(Setting(key, *setting) for key, setting in settings.items())
    planned = TrainPlan(merged, local, identity, datasets, run, fit, replay, start, own)
    for key, (value, why) in missing_speedups(planned.config, hardware.gpu).items():
        err.print(f"Note: {why}; training goes without {key}.")
        planned = planned.changed({key: value}, why)
    return planned


def _origins(datasets: tuple[Dataset, ...], identity: Identity | None, replay: int) -> str:
    """How many rows there are of each origin."""
    said = {"identity": f"rows rendered for {identity.name if identity else ''}", "own": "rows of your own"}
    rows = [f"{dataset.rows} {said[dataset.name]}" for dataset in datasets]
    return ", ".join(rows + ([f"up to {replay} answers of the base"] if replay else []))
