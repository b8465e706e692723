"""Decides all of a training run before anything heavy starts: what `plan.py` is to merge, and whether it can be."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yi_tune.config import find_config, parse_overrides, read_config, reasons
from yi_tune.data.dataset import dataset_of
from yi_tune.data.identity import Identity, identity_rows, render
from yi_tune.data.own import prepare_own
from yi_tune.data.packing import plan_packing
from yi_tune.data.replay import choose_prompts
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, detect
from yi_tune.hubs.download import use_cached
from yi_tune.hubs.tokenizer import warn_of_tokenizer
from yi_tune.models import DEFAULT_MODEL, LocalModel, check_model, find_model
from yi_tune.plan.adapters import find_start
from yi_tune.plan.early_stop import SETTINGS, check_validation
from yi_tune.plan.memory import choose_fit, longest_row, refuse
from yi_tune.plan.plan import TrainPlan, plan_train
from yi_tune.plan.problems import problems
from yi_tune.plan.speedups import without_missing
from yi_tune.plan.trackers import Tracker, tracker_settings
from yi_tune.runs.folder import Run, train_run
from yi_tune.screen import err

# Every weight is trained of models with this many parameters at most: nano, with room for its like.
_FULL_LIMIT = 100_000_000


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
    if config.get("finetuning_type") == "full":
        _check_full(local)
    start = None if request.from_run is None else find_start(request.workspace, request.from_run, local, folder)
    conversations = render(identity_rows(), request.identity) if request.identity else []
    datasets = [dataset_of("identity", conversations)] if conversations else []
    on_cpu = config.get("use_cpu") is True
    with err.status("Looking at the machine"):
        hardware = detect(cpu_only=on_cpu)
    use_cached(local, err)
    usable = _check_trainable(local, hardware, forced=on_cpu, dry_run=dry_run)
    own = None
    if request.data:
        own = prepare_own(
            request.data,
            request.data_dir,
            config,
            request.workspace,
            skip_bad_rows=request.skip_bad_rows,
            tokens=usable,
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
    planned, notes = without_missing(planned, hardware)
    for note in notes:
        err.print(note, markup=False, soft_wrap=True)
    with err.status("Looking at the config"):
        from yi_tune.engine.arguments import choices, known_keys

        known, words = known_keys(), choices()
    if local.downloaded and local.model.huggingface is None:
        warn_of_tokenizer(local.path, err)
    if wrong := problems(planned.config, known, words):
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
    return plan_packing(planned)


def _options(request: Request, folder: Run) -> dict[str, tuple[Any, str]]:
    """The keys of the config that an option decides, with value and reason."""
    options: dict[str, tuple[Any, str]] = {}
    if request.report_to:
        options |= tracker_settings(request.report_to, f"{folder.folder.parent.name}/{folder.name}")
    if request.early_stop:
        options |= SETTINGS
    return options


def _check_trainable(local: LocalModel, hardware: Hardware, *, forced: bool, dry_run: bool) -> bool:
    """Refuse what cannot be trained here; a dry run is only told. Returns whether the model is here and whole."""
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
        return False
    return True


def _check_full(local: LocalModel) -> None:
    """Refuse to train all the weights of a model that is larger than nano."""
    size = local.model.shape.parameters if local.model.shape else local.weight_bytes // 2
    if size > _FULL_LIMIT:
        raise YiTuneError(
            f"finetuning_type full is for nano: of {local.model.name} it takes {16 * size / 1e9:.0f} GB for weights, "
            "gradients and Adam's two moments, in 32 bits.",
            "Train an adapter: --config qlora, or --config lora with the model in 16 bits.",
        )
