"""A training run, decided before anything heavy starts; every value of its config knows where it came from."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from gettext import gettext as _
from pathlib import Path

from yi_tune.config import Config, find_config, left_open, parse_overrides, read_config, reasons, shipped
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import EVAL, Identity, ambiguous, dataset_of, draw, render
from yi_tune.data.own import prepare_own
from yi_tune.errors import YiTuneError
from yi_tune.hardware import detect
from yi_tune.hubs.download import use_cached
from yi_tune.meeting import Nodes
from yi_tune.models import DEFAULT_MODEL, find_model
from yi_tune.output import err
from yi_tune.plan.checks import problems, trackers, unfit_validation
from yi_tune.plan.fit import EFFECTIVE_BATCH, choose_fit, refuse, row_lengths
from yi_tune.plan.memory import ACCUMULATION, MICRO
from yi_tune.plan.settings import TrainPlan, merge
from yi_tune.plan.sharding import Sharding, keys, unfit
from yi_tune.runs import find_start, train_run
from yi_tune.weights import check_model

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
_PATHS = ("output_dir", "dataset_dir", "tokenized_path")


def plan(
    identity: Identity | Callable[[], Identity] | None,
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
    """Decide all of a run by the options of `yi-tune train`, render its dataset and check the user's own. An `identity`
    to be asked for is called once the model and the machine are known to do.

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
    identity = identity() if callable(identity) else identity
    conversations = render(identity) if identity else []
    if identity and (words := ambiguous(identity)):
        said = _(
            "Note: a reply may hold {words} as an ordinary word, and the score takes it for the name or the author. "
            "A longer one can be told apart."
        )
        err.print(said.format(words=", ".join(words)))
    most = wanted.get("max_samples")
    if isinstance(most, int) and 0 < most < len(conversations):  # LLaMA-Factory would take the first: all Chinese
        err.print(
            _("max_samples: {most} of the {conversations} identity rows are trained on, drawn by lot.").format(
                most=most, conversations=len(conversations)
            )
        )
        conversations = draw(most, conversations)
    datasets = [dataset_of("identity", conversations)] if conversations else []
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
