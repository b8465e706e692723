"""The way through a training run: plan, run folder, engine, report."""

import json
import shutil
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from yi_tune.config import find_config, parse_overrides, read_config, reasons
from yi_tune.dataset import dataset_of, write_datasets
from yi_tune.download import use_cached
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, detect
from yi_tune.heldout import Score, one_of_each, questions, score
from yi_tune.identity import Identity, identity_rows, render
from yi_tune.models import DEFAULT_MODEL, LocalModel, check_model, find_model
from yi_tune.output import engine_output_to
from yi_tune.own import mix, prepare_own
from yi_tune.packing import plan_packing
from yi_tune.plan import TrainPlan, plan_train, problems
from yi_tune.progress import Progress
from yi_tune.report import print_advice, print_answers, summary
from yi_tune.runs import prepare, record, train_run, write_configs
from yi_tune.screen import err, out
from yi_tune.tokenizer import warn_of_tokenizer

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

# A disk with less than this left, in bytes, is why a save failed.
_FULL = 10_000_000


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
    datasets = []
    if request.identity:
        datasets.append(dataset_of("identity", render(identity_rows(), request.identity)))
    config = {**template, **flags, "model_name_or_path": str(local.path)}
    on_cpu = config.get("use_cpu") is True
    with err.status("Looking at the machine"):
        hardware = detect(cpu_only=on_cpu)
    use_cached(local, err)
    _check_fit(local, hardware, forced=on_cpu, dry_run=dry_run)
    own = None
    if request.data:
        own = prepare_own(
            request.data,
            request.data_dir,
            config,
            request.workspace,
            skip_bad_rows=request.skip_bad_rows,
            tokens=local.downloaded,
        )
        datasets.append(own.dataset)
    if not datasets:
        raise YiTuneError("--no-identity leaves nothing to train on.", "Name your own data: --data FILE")
    planned = plan_train(
        template,
        reasons(path),
        flags,
        local=local,
        identity=request.identity,
        datasets=tuple(datasets),
        own=own,
        hardware=hardware,
        run=folder,
    )
    with err.status("Looking at the config"):
        from yi_tune.engine.arguments import known_keys

        known = known_keys()
    if local.downloaded and local.model.huggingface is None:
        warn_of_tokenizer(local.path, err)
    if wrong := problems(planned.config, known):
        raise YiTuneError("This config cannot be trained:\n  " + "\n  ".join(wrong), f"Mend --set or {path}.")
    return plan_packing(planned)


def _check_fit(local: LocalModel, hardware: Hardware, *, forced: bool, dry_run: bool) -> None:
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


def run(planned: TrainPlan, *, fresh: bool) -> "Assistant":
    """Train, ask a few held-out questions, write the report and print it; returns the tuned model.

    Raises YiTuneError when the run folder is taken or training fails, KeyboardInterrupt when it is
    stopped; in both cases the folder can be gone on with.
    """
    # Asked to end while it loads or asks, it ends as by Ctrl-C; while it trains, engine/train.py sees to it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = planned.run
    data = {dataset.name: dataset.file_name for dataset in planned.datasets}
    new = record(planned.config, planned.local, vars(planned.identity) if planned.identity else {}, data)
    with folder.lock():
        try:
            checkpoint = prepare(folder, new, fresh=fresh)
            if checkpoint:
                err.print(f"Going on with the run {folder.name!r} from {checkpoint.name}.", markup=False)
            datasets = planned.datasets
            write_datasets(datasets, folder.data)
            write_configs(folder, planned.config, planned.chat_config(read_config(find_config("chat"))))
            with engine_output_to(folder.log) as console, Progress(console) as progress:
                if planned.own:
                    progress.stage("Mixing your rows in")
                    mix(datasets, planned.own, planned.config, folder.tokenized)
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
    if (plot := folder.folder / "training_loss.png").exists():
        out.print(f"loss plot:      {plot}", markup=False, soft_wrap=True)
    return assistant


def _train(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> tuple["Assistant", float | None, Score]:
    """The part whose output goes to train.log, tracebacks included."""
    try:
        progress.stage("Loading LLaMA-Factory and the model")
        from yi_tune.engine.train import train

        assistant, loss = train(planned.config, checkpoint, progress)
        progress.stage("Asking who it is")
        asked = one_of_each(questions())
        return assistant, loss, score(asked, planned.identity, assistant.base_reply_all, assistant.reply_all)
    except Exception as error:
        traceback.print_exc()
        raise _explain(error, planned) from error


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
    if type(error).__name__ == "OutOfMemoryError":
        return YiTuneError(
            "The GPU is out of memory.",
            "Try smaller steps with the same result: --set per_device_train_batch_size=1 "
            "--set gradient_accumulation_steps=8 --set per_device_eval_batch_size=1 --fresh",
        )
    return YiTuneError(f"Training failed: {type(error).__name__}: {error}", f"The whole story is in {planned.run.log}")
