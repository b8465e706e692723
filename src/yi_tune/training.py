"""The way through a training run: plan, run folder, engine, report."""

import json
import shutil
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yi_tune.adapters import find_start
from yi_tune.chart import print_end
from yi_tune.checkpoints import newest_whole
from yi_tune.config import find_config, parse_overrides, read_config, reasons
from yi_tune.dataset import Dataset, dataset_of, write_datasets
from yi_tune.download import use_cached
from yi_tune.early_stop import SETTINGS, check_validation
from yi_tune.errors import YiTuneError
from yi_tune.fit import choose_fit, longest_row, refuse
from yi_tune.hardware import Hardware, detect
from yi_tune.heldout import Score, one_of_each, questions, score
from yi_tune.history import read_history
from yi_tune.identity import Identity, identity_rows, render
from yi_tune.models import DEFAULT_MODEL, LocalModel, check_model, find_model
from yi_tune.output import engine_output_to
from yi_tune.plan import TrainPlan, plan_train, problems
from yi_tune.progress import Progress
from yi_tune.recovery import train_within_memory
from yi_tune.replay import choose_prompts, keep_answers, kept_answers, replay_dataset
from yi_tune.report import print_advice, print_answers, summary
from yi_tune.runs import Run, prepare, record, train_run, write_configs
from yi_tune.screen import err, out
from yi_tune.speedups import without_missing
from yi_tune.tokenizer import warn_of_tokenizer
from yi_tune.trackers import Tracker, tracker_settings

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

# A disk with less than this left, in bytes, is why a save failed.
_FULL = 10_000_000
# Every weight is trained of models with this many parameters at most: nano, with room for its like.
_FULL_LIMIT = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks to be trained: the options of `yi-tune train`, in its own terms."""

    identity: Identity
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
    """Decide all of a run, and render its dataset. Raises YiTuneError for whatever would make it fail later.

    With `dry_run` the model and the GPU may be missing.
    """
    local = find_model(request.model, request.workspace)
    path = find_config(request.config)
    template = read_config(path)
    flags = parse_overrides(request.overrides)
    folder = train_run(request.workspace, local, request.run)
    config = {**template, **flags}
    replay = local.model.replay if request.replay is None else request.replay
    choose_prompts(replay)
    if config.get("finetuning_type") == "full":
        _check_full(local)
    start = None if request.from_run is None else find_start(request.workspace, request.from_run, local, folder)
    conversations = render(identity_rows(), request.identity)
    datasets = (dataset_of("identity", conversations),)
    on_cpu = config.get("use_cpu") is True
    with err.status("Looking at the machine"):
        hardware = detect(cpu_only=on_cpu)
    use_cached(local, err)
    usable = _check_trainable(local, hardware, forced=on_cpu, dry_run=dry_run)
    with err.status("Counting tokens"):
        length = longest_row(local, config, conversations, usable=usable)
    fit = choose_fit(local.shape, config, length, hardware)
    planned = plan_train(
        template,
        reasons(path),
        flags,
        local=local,
        identity=request.identity,
        datasets=datasets,
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
        from yi_tune.engine.arguments import known_keys

        known = known_keys()
    if local.downloaded and local.model.huggingface is None:
        warn_of_tokenizer(local.path, err)
    if wrong := problems(planned.config, known):
        raise YiTuneError("This config cannot be trained:\n  " + "\n  ".join(wrong), f"Mend --set or {path}.")
    check_validation(planned.config, [dataset.rows for dataset in datasets])
    if local.shape and not fit.fits:
        error = refuse(fit, local.shape, config, length, local.model.name)
        if not dry_run and "per_device_train_batch_size" not in flags:
            raise error
        err.print(f"Note: {error.message} {error.hint}", markup=False, soft_wrap=True)
    err.print(fit.summary, markup=False, soft_wrap=True)
    return planned


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


def run(planned: TrainPlan, *, fresh: bool) -> "Assistant":
    """Train, ask a few held-out questions, write the report and print it; returns the tuned model.

    Raises YiTuneError when the run folder is taken or training fails, KeyboardInterrupt when it is
    stopped; in both cases the folder can be gone on with.
    """
    # Asked to end while it loads or asks, it ends as by Ctrl-C; while it trains, engine/train.py sees to it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = planned.run
    data = {dataset.name: dataset.file_name for dataset in planned.datasets}
    new = record(
        planned.config,
        planned.local,
        vars(planned.identity),
        data,
        replay=planned.replay,
        start=planned.start,
    )
    with folder.lock():
        try:
            prepare(folder, new, fresh=fresh)
            checkpoint = newest_whole(folder.folder, err)
            if checkpoint:
                err.print(f"Going on with the run {folder.name!r} from {checkpoint.name}.", markup=False)
            write_datasets((*planned.datasets, *_replay(planned)), folder.data)
            write_configs(folder, planned.config, planned.chat_config(read_config(find_config("chat"))))
            with engine_output_to(folder.log) as console, Progress(console) as progress:
                assistant, loss, scored = _train(planned, checkpoint, progress)
            report = {"loss": loss, **scored.to_dict()}
            folder.write("report.json", json.dumps(report, ensure_ascii=False, indent=2))
        except OSError as error:
            raise _explain(error, planned) from error
        finally:
            signal.signal(signal.SIGTERM, before)
    print_advice(scored, planned.config, out)
    print_answers(scored.answers, out)
    out.print(summary(scored), markup=False, soft_wrap=True)
    if loss is not None:
        out.print(f"\nmean training loss: {loss:.4f}", markup=False)
    if history := read_history(folder.folder):
        print_end(history, out)
    if (plot := folder.folder / "training_loss.png").exists():
        out.print(f"loss plot:      {plot}", markup=False, soft_wrap=True)
    return assistant


def _replay(planned: TrainPlan) -> list[Dataset]:
    """The base's own answers as a dataset; none where the plan wants none."""
    if not planned.replay:
        return []
    with engine_output_to(planned.run.log) as console, Progress(console) as progress:
        try:
            answers = kept_answers(planned.run)
            if answers is None:
                progress.stage(f"Asking the base model {planned.replay} general prompts")
                from yi_tune.engine.replay import ask_base

                base = planned.base_config(read_config(find_config("chat")))
                cutoff_len = planned.config.get("cutoff_len", 2048)  # LLaMA-Factory's own default
                answers = ask_base(base, choose_prompts(planned.replay), cutoff_len)
                keep_answers(planned.run, answers)
            dataset = replay_dataset(answers)
        except Exception as error:
            traceback.print_exc()
            raise _explain(error, planned) from error
        note = f"Training on {dataset.rows} of the base's {len(answers)} answers"
        console.print(f"{note}: those that come to an end, and do not say who it was.", markup=False, soft_wrap=True)
    return [dataset]


def _train(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> tuple["Assistant", float | None, Score]:
    """The part whose output goes to train.log, tracebacks included."""
    try:
        progress.stage("Loading LLaMA-Factory and the model")
        assistant, loss = train_within_memory(planned, checkpoint, progress)
        progress.stage("Asking who it is")
        asked = one_of_each(questions())
        return assistant, loss, score(asked, planned.identity, assistant.base_reply_all, assistant.reply_all)
    except Exception as error:
        traceback.print_exc()
        explained = _explain(error, planned)
        planned.run.record_failure(explained.message)
        raise explained from error


def _explain(error: Exception, planned: TrainPlan) -> YiTuneError:
    """What a failure of the engine means for the user."""
    folder = planned.run.folder
    if isinstance(error, YiTuneError):
        return error
    if shutil.disk_usage(folder).free < _FULL:
        return YiTuneError(
            f"The disk of {folder} is full.",
            "Free some space, then type the same command, without --fresh: it goes on where it stopped.",
        )
    return YiTuneError(f"Training failed: {type(error).__name__}: {error}", f"The whole story is in {planned.run.log}")
