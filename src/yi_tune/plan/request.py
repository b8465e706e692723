"""Decides all of a training run before anything heavy starts: what `plan.py` is to merge, and whether it can be."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yi_tune.config import find_config, parse_overrides, read_config, reasons
from yi_tune.data.dataset import dataset_of
from yi_tune.data.identity import Identity, identity_rows, render
from yi_tune.data.own import prepare_own
from yi_tune.data.replay import choose_prompts
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, detect
from yi_tune.hubs.download import use_cached
from yi_tune.hubs.tokenizer import warn_of_tokenizer
from yi_tune.models import DEFAULT_MODEL, LocalModel, check_model, find_model
from yi_tune.plan import Tracker
from yi_tune.plan.adapters import find_start
from yi_tune.plan.checks import check_validation, problems
from yi_tune.plan.memory import choose_fit, longest_row, refuse
from yi_tune.plan.plan import TrainPlan, plan_train
from yi_tune.runs.folder import Run, train_run
from yi_tune.screen import err

_OFTEN = "--early-stop: twenty times a run, for it to stop before much is wasted"
EARLY_STOP: dict[str, tuple[Any, str]] = {
    "early_stopping_steps": (3, "--early-stop: after three evaluations that were no better than the best"),
    "metric_for_best_model": ("eval_loss", "--early-stop"),
    "load_best_model_at_end": (True, "--early-stop: the adapter that is kept is the best, not the last"),
    "restore_callback_states_from_checkpoint": (True, "--early-stop: a resumed run knows how long it has waited"),
    "eval_strategy": ("steps", "--early-stop"),
    "eval_steps": (0.05, _OFTEN),
    "save_strategy": ("steps", "--early-stop"),
    "save_steps": (0.05, "--early-stop: the adapter of each evaluation has to be there to go back to"),
    "save_total_limit": (3, "--early-stop: the best, the newest, and one more in case that one is cut short"),
}
# Speed-ups of other packages: what asks for one, the module that it takes, and the value that does without it.
_SPEEDUPS = (
    ("enable_liger_kernel", True, "liger_kernel", False),
    ("flash_attn", "fa2", "flash_attn", "auto"),
    ("use_unsloth", True, "unsloth", False),
)


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


def plan(request: Request, *, dry_run: bool = False) -> TrainPlan:
    """Decide all of a run, render its dataset and check the user's own. Raises YiTuneError for whatever would make it
    fail later.

    With `dry_run` the model and the GPU may be missing.
    """
    local = find_model(request.model, request.workspace)
    path = find_config(request.config)
    template = read_config(path)
    flags = parse_overrides(request.overrides)
    folder = train_run(request.workspace, local, request.run)
    if folder.running and not dry_run:
        raise folder.busy
    config = {**template, **flags, "model_name_or_path": str(local.path)}
    replay = local.model.replay if request.replay is None else request.replay
    prompts = choose_prompts(replay)
    start = None if request.from_run is None else find_start(request.workspace, request.from_run, local, folder)
    conversations = render(identity_rows(), request.identity) if request.identity else []
    datasets = [dataset_of("identity", conversations)] if conversations else []
    on_cpu = config.get("use_cpu") is True
    with err.status("Looking at the machine"):
        hardware = detect(cpu_only=on_cpu)
    use_cached(local, err)
    _check_trainable(local, hardware, forced=on_cpu, dry_run=dry_run)
    own = None
    if request.data:
        own = prepare_own(
            request.data,
            request.data_dir,
            config,
            request.workspace,
            skip_bad_rows=request.skip_bad_rows,
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
        run=folder,
        replay=replay,
        start=start,
        options=_options(request, folder),
    )
    planned = without_missing(planned)
    if local.downloaded and local.model.huggingface is None:
        warn_of_tokenizer(local.path, err)
    with err.status("Looking at the config"):
        wrong = problems(planned.config)
    if wrong:
        raise YiTuneError("This config cannot be trained:\n  " + "\n  ".join(wrong), f"Mend --set or {path}.")
    check_validation(planned.config, [dataset.rows for dataset in datasets])
    if not fit.fits:
        error = refuse(fit, local.model.name, replay=bool(prompts))
        if not (dry_run or "per_device_train_batch_size" in flags):
            raise YiTuneError(
                error.message, f"{error.hint} To try all the same: --set per_device_train_batch_size={fit.micro_batch}"
            )
        err.print(f"Note: {error.message} {error.hint}", markup=False, soft_wrap=True)
    longest = " The base's answers may be shorter than is counted here." if prompts and fit.estimate else ""
    err.print(fit.summary + longest, markup=False, soft_wrap=True)
    return planned


def _options(request: Request, folder: Run) -> dict[str, tuple[Any, str]]:
    """The keys of the config that an option decides, with value and reason."""
    options: dict[str, tuple[Any, str]] = {}
    if request.report_to:
        options |= report_to(request.report_to, f"{folder.folder.parent.name}/{folder.name}")
    if request.early_stop:
        options |= EARLY_STOP
    return options


def report_to(trackers: list[Tracker], run: str) -> dict[str, tuple[Any, str]]:
    """The keys of a config that has `run` reported to these trackers, with value and reason."""
    settings: dict[str, tuple[Any, str]] = {}
    if Tracker.SWANLAB in trackers:
        # By LLaMA-Factory, with SwanLab's own callback: transformers 5.6's does not work with SwanLab 0.10 (seen).
        settings["use_swanlab"] = (True, "--report-to swanlab")
        settings["swanlab_run_name"] = (run, "what SwanLab calls the run")
    if others := [tracker.value for tracker in trackers if tracker is not Tracker.SWANLAB]:
        settings["report_to"] = (others, "--report-to")
        settings["run_name"] = (run, "what the tracker calls the run")
    return settings


def without_missing(planned: TrainPlan) -> TrainPlan:
    """The plan without the speed-ups that cannot work on this machine; the user is told of each."""
    gpu = planned.fit.hardware.gpu
    for key, asked, module, without in _SPEEDUPS:
        if planned.config.get(key) == asked and not (gpu and find_spec(module)):
            why = f"{module} is not installed" if gpu else f"{module} needs a GPU"
            planned = planned.changed({key: without}, why)
            err.print(f"Note: {why}; training goes without {key}.", markup=False, soft_wrap=True)
    return planned


def _check_trainable(local: LocalModel, hardware: Hardware, *, forced: bool, dry_run: bool) -> None:
    """Refuse what cannot be trained here; a dry run is only told."""
    try:
        if local.needs_gpu and hardware.gpu is None and not forced:
            raise YiTuneError(
                f"{local.model.name} needs a CUDA GPU to train, and torch sees none.",
                "Try the embedded model, which does not: --model nano   (or insist, for days: --set use_cpu=true)",
            )
        check_model(local)
    except YiTuneError as error:
        if not dry_run:
            raise
        err.print(f"Note: {error.message} {error.hint}", markup=False, soft_wrap=True)
