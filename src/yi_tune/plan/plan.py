"""A training run, decided before anything heavy starts; every value of its config knows where it came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from gettext import gettext as _
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yi_tune import __version__
from yi_tune.config import Config, find_config, left_open, parse_overrides, read_config, reasons, shipped
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import EVAL, Dataset, Identity, dataset_of, draw, render
from yi_tune.data.own import prepare_own
from yi_tune.errors import YiTuneError
from yi_tune.hardware import detect, uses_ray
from yi_tune.hubs.download import use_cached
from yi_tune.meeting import Nodes
from yi_tune.models import DEFAULT_MODEL, LocalModel, check_model, find_model
from yi_tune.output import err
from yi_tune.plan.checks import is_trainable, problems, trackers, unfit_validation
from yi_tune.plan.memory import ACCUMULATION, EFFECTIVE_BATCH, MICRO, Fit, answering, choose_fit, refuse, row_lengths
from yi_tune.plan.sharding import Sharding, keys, unfit
from yi_tune.runs import Run, Start, find_start, train_run

# `--early-stop`: twenty evaluations a run, each with a checkpoint, and the end after three that were no better than the
# best. Kept are the best checkpoint, the newest, and one more in case that one is cut short.
EARLY_STOP: Config = {
    "early_stopping_steps": 3,
    "metric_for_best_model": "eval_loss",
    "load_best_model_at_end": True,
    "restore_callback_states_from_checkpoint": True,
    "eval_strategy": "steps",
    "eval_steps": 0.05,
    "save_strategy": "steps",
    "save_steps": 0.05,
    "save_total_limit": 3,
}
# The value of a key of the config, its source (template, model, hardware, data, run or flag), and the reason.
Setting = tuple[Any, str, str]
_PACKAGES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# The keys that yi-tune itself decides.
_OWNED = (
    *("model_name_or_path", "adapter_name_or_path", "output_dir", "dataset", "dataset_dir", "tokenized_path"),
    *("resume_from_checkpoint", "ray_num_workers"),
)
_PATHS = ("output_dir", "dataset_dir", "tokenized_path")


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


def plan(
    identity: Identity | None,
    *,
    workspace: Path,
    model: str | None = None,
    config: str = "qlora",
    overrides: list[str] | None = None,
    data: list[str] | None = None,
    eval_data: list[str] | None = None,
    data_dir: Path | None = None,
    skip_bad_rows: bool = False,
    run: str = "identity",
    replay: int | None = None,
    from_run: str | None = None,
    report_to: list[str] | None = None,
    early_stop: bool = False,
    device: str = "auto",
    gpus: int | None = 1,
    nodes: Nodes | None = None,
    fresh: bool = False,
    shard: Sharding | None = None,
    dry_run: bool = False,
) -> TrainPlan:
    """Decide all of a run by the options of `yi-tune train`, render its dataset and check the user's own.

    Raises YiTuneError for whatever would make the run fail later; with `dry_run` the model and the GPU may be missing.
    """
    path = find_config(config)
    template, flags = read_config(path), parse_overrides(overrides or [])
    named = template.get("model_name_or_path")
    if model is None and isinstance(named, str) and not left_open(template, "model_name_or_path"):
        model = named
    local = find_model(DEFAULT_MODEL if model is None else model, workspace)
    target = train_run(workspace, local, run)
    on_device: Config = {"use_cpu": True} if device == "cpu" else {}
    wanted = {**template, **flags, **on_device, "model_name_or_path": str(local.path)}
    on_cpu = wanted.get("use_cpu") is True
    if replay is None:
        replay = local.model.replay
        if replay and on_cpu and local.needs_gpu:
            err.print(
                _(
                    "No replay: on the CPU the base takes too long to answer. --replay {replay} asks it all the same."
                ).format(replay=replay)
            )
            replay = 0
    if nodes and replay:
        raise YiTuneError(
            "The base's answers may differ from machine to machine, and all have to train on the same rows.",
            "With --nodes, leave out the replay: --replay 0",
        )
    prompts = replay_prompts(replay)
    start = None if from_run is None else find_start(workspace, from_run, local, target)
    conversations = render(identity) if identity else []
    most = wanted.get("max_samples")
    if isinstance(most, int) and 0 < most < len(conversations):  # LLaMA-Factory would take the first: all Chinese
        err.print(
            _("max_samples: {most} of the {conversations} identity rows are trained on, drawn by lot.").format(
                most=most, conversations=len(conversations)
            )
        )
        conversations = draw(most, conversations)
    datasets = [dataset_of("identity", conversations)] if conversations else []
    hardware = replace(detect(cpu_only=on_cpu, gpus=gpus), nodes=nodes.count if nodes else 1)
    use_cached(local, err)
    try:
        if local.needs_gpu and hardware.gpu is None and not on_cpu:
            raise YiTuneError(
                "{model} needs a CUDA GPU to train, and torch sees none.",
                "yi-tune doctor looks for the reason. Without one: --device cpu, which takes hours, or --model nano.",
                model=local.model.name,
            )
        check_model(local)
    except YiTuneError as error:
        _refuse(error, dry_run)
    own_lengths: list[int] = []
    # A run that goes on takes the hubs' datasets at the commits that it began with.
    begun = not fresh and (target.folder / "run.json").is_file()
    prepare = partial(
        prepare_own,
        data_dir=data_dir,
        config=wanted,
        skip_bad_rows=skip_bad_rows,
        workspace=workspace,
        pinned=target.record.get("commits") if begun else None,
    )
    if data:
        own, own_lengths = prepare(data)
        datasets.append(own)
    if not datasets:
        raise YiTuneError("--no-identity leaves nothing to train on.", "Name your own data: --data FILE")
    if eval_data:
        evaluated, eval_lengths = prepare(eval_data, name=EVAL)
        datasets.append(evaluated)
        own_lengths = [*own_lengths, max(eval_lengths)]
    with err.status(_("Counting tokens")):
        lengths = row_lengths(local, wanted, conversations, prompts, own_lengths)
    if left_open(wanted, "num_train_epochs"):
        wanted["num_train_epochs"] = local.model.num_train_epochs
    fit = choose_fit(local.shape, wanted | (start.shape if start else {}), lengths, hardware, shard)
    if hardware.total > 1 and fit.rows != EFFECTIVE_BATCH and not {MICRO, ACCUMULATION} <= flags.keys():
        raise YiTuneError(
            "{gpus} x {micro_batch} x {accumulation} makes {rows} rows a step, not {usual}: that would be another "
            "training than with one GPU.",
            "Take --gpus 2, 4 or 8, and let yi-tune divide the rows. Or decide what each GPU has: --set "
            "{rows_key}=... --set {steps_key}=...",
            gpus=hardware.total,
            micro_batch=fit.micro_batch,
            accumulation=fit.accumulation,
            rows=fit.rows,
            usual=EFFECTIVE_BATCH,
            rows_key=MICRO,
            steps_key=ACCUMULATION,
        )
    options = {
        "--report-to": trackers(report_to or [], f"{target.folder.parent.name}/{target.name}"),
        "--early-stop": EARLY_STOP if early_stop else {},
        "--eval-data": {"eval_dataset": EVAL, "val_size": 0.0} if eval_data else {},
        "--set": flags,
        "--device": on_device,
    }
    planned = TrainPlan(local, identity, tuple(datasets), target, fit, replay, start, nodes)
    planned = merge(planned, template, reasons(path), options)
    with err.status(_("Looking at the config")):
        rows = {dataset.name: dataset.rows for dataset in datasets}
        found = [*unfit(shard, planned.config, hardware), *problems(planned.config)]
        wrong = found or list(unfit_validation(planned.config, rows))
    if wrong:
        mend = _("Mend the options.") if path in shipped().values() else _("Mend --set or {path}.").format(path=path)
        raise YiTuneError(_("This config cannot be trained:\n  ") + "\n  ".join(wrong), mend)
    if shard:
        settings = {key: (value, "flag", "--shard") for key, value in keys(shard, planned.config).items()}
        planned = replace(planned, settings={**planned.settings, **settings})
    replaced = [key for key in _PATHS if template.get(key) and not left_open(template, key)]
    if named not in (None, model) and not left_open(template, "model_name_or_path"):
        replaced.append("model_name_or_path")
    if replaced:
        err.print(
            _("Not used of {path}: {replaced}. The options decide that.").format(
                path=path, replaced=", ".join(replaced)
            )
        )
    if not fit.fits:
        _refuse(refuse(fit, local.model.name), dry_run or MICRO in flags)
    err.print(fit.summary)
    err.print(fit.forecast)
    return planned


def _refuse(error: YiTuneError, insisted: bool) -> None:
    """Raise the error, or tell it to a user who insists."""
    if not insisted:
        raise error
    err.print(_("Note: {message} {hint}").format(message=error.message, hint=error.hint))


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
    trained = [dataset for dataset in datasets if dataset.name != EVAL]
    rows = sum(dataset.rows for dataset in trained)
    origins = ", ".join(_("{rows} rows of {name}").format(**vars(dataset)) for dataset in datasets)
    own = _("{model}'s own").format(model=model.name)
    fills: dict[str, Setting] = {
        "model_name_or_path": (str(planned.local.path), "model", _("where {model} lies").format(model=model.name)),
        "dataset_dir": (str(run.data), "data", origins),
        "output_dir": (str(run.folder), "run", _("the run folder")),
        "preprocessing_num_workers": (
            max(1, min(os.cpu_count() or 1, rows // 1000)),
            "data",
            _("{rows} rows").format(rows=rows),
        ),
        "learning_rate": (model.learning_rate, "model", own),
        "num_train_epochs": (model.num_train_epochs, "model", own),
        "use_cpu": (hardware.gpu is None, "hardware", _("training is on {device}").format(device=hardware.device)),
    }
    machine = planned.fit.settings | hardware.settings
    fills |= {key: (value, "hardware", why) for key, (value, why) in machine.items()}
    settings = {key: (value, "template", reasons.get(key, "")) for key, value in template.items()}
    settings |= {key: fills[key] for key in fills if left_open(template, key)}
    # A config written for LLaMA-Factory itself names its own paths; yi-tune's replace them.
    settings.pop("tokenized_path", None)
    settings |= {key: fills[key] for key in ("model_name_or_path", "dataset_dir", "output_dir")}
    names = ",".join([*(dataset.name for dataset in trained), *(["replay"] if planned.replay else [])])
    if template.get("dataset") != names and ("dataset" not in template or is_trainable(template["dataset"])):
        settings["dataset"] = (names, "data", _("all the rows there are"))
    settings |= {"ray_num_workers": (hardware.count, "run", "USE_RAY")} if uses_ray() else {}
    if planned.nodes:
        settings["save_on_each_node"] = (True, "run", _("each machine goes on from its own checkpoints"))
    if start:
        settings["adapter_name_or_path"] = (
            str(start.folder),
            "run",
            _("the adapter of the run {run}").format(run=start.run),
        )
        why = _("the adapter of the run {run} has it").format(run=start.run)
        settings |= {key: (value, "run", why) for key, value in shape.items() if value is not None}
    for option, values in options.items():
        settings |= {key: (value, "flag", option) for key, value in values.items()}
    if any(dataset.name == "own" for dataset in trained):
        why = _("LLaMA-Factory keeps the rows in tokens there, for a resumed run")
        settings["tokenized_path"] = (str(run.data / "tokenized"), "data", why)
    return replace(planned, settings=settings)
