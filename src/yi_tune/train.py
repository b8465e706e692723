"""The way through a training run that is planned: run folder, engine, report."""

import json
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from gettext import gettext as _
from gettext import ngettext
from pathlib import Path
from typing import TYPE_CHECKING

from yi_tune import launch
from yi_tune.checkpoints import broken, newest_whole
from yi_tune.config import Config
from yi_tune.data.general import REPLAY, replay_dataset, replay_prompts
from yi_tune.data.heldout import Score, one_of_each, questions, score
from yi_tune.data.identity import Dataset, read_jsonl, to_jsonl, write_datasets
from yi_tune.errors import YiTuneError, is_out_of_memory
from yi_tune.files import disk_full, write_whole
from yi_tune.hardware import uses_ray
from yi_tune.language import Text, kept, told
from yi_tune.meeting import Nodes, meet
from yi_tune.output import engine_output_to, err, log_folder, out
from yi_tune.plan.fit import smaller
from yi_tune.plan.settings import TrainPlan
from yi_tune.plan.sharding import environment
from yi_tune.progress import Progress
from yi_tune.report import print_advice, print_answers, read_history, summary, took
from yi_tune.runs import outdated, prepare, write_configs
from yi_tune.sharing import write_page

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


def run(planned: TrainPlan, *, fresh: bool, command: str = "") -> "Assistant":
    """Train, ask a few held-out questions, write the report and print it; returns the tuned model. The run folder keeps
    the `command` that goes on with it.

    Raises YiTuneError when the run folder is taken, other machines do not come (both leave the folder as it was), or
    training fails, KeyboardInterrupt when it is stopped; in all cases the same command can go on with the folder.
    """
    if planned.local.model.huggingface is None:  # a folder of the user's own, which no download has corrected
        from yi_tune.engine.tokenizer import warn_of_tokenizer

        warn_of_tokenizer(planned.local.path, err)
    # Asked to end while it loads or asks, it ends as by Ctrl-C; while it trains, engine/trainer.py sees to it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = planned.run
    try:
        with folder.lock():
            old, common = outdated(folder, planned.record, fresh=fresh), None
            if planned.nodes:
                with engine_output_to(log_folder() / "meet.log") as console, Progress(console) as progress:
                    planned, common = _meet(planned, planned.nodes, progress, old)
            prepare(folder, planned.record | {"command": command}, old)
            try:
                with engine_output_to(folder.log) as console, Progress(console) as progress:
                    assistant, scored = _train(planned, common, progress)
                history = read_history(folder.folder)
                estimated = planned.fit.seconds and planned.fit.seconds * progress.share
                times = {"seconds": progress.seconds, "estimated_seconds": estimated}
                report = {"loss": history.get("loss"), **times, **scored}
                folder.write("report.json", json.dumps(report, ensure_ascii=False, indent=2))
            except Exception as error:
                failed = _explain(error, planned)
                folder.record_failure(failed)
                with suppress(OSError):
                    write_page(folder)
                raise failed from error
    finally:
        signal.signal(signal.SIGTERM, before)
    print_advice(scored, planned.config, out)
    print_answers(scored["answers"], out)
    out.print(summary(scored))
    if report["loss"] is not None:
        out.print("\n" + _("training loss: {loss:.4f}, the mean of the last ten steps").format(loss=report["loss"]))
    if progress.seconds:
        out.print(took(progress.seconds, estimated))
    if history.get("early_stop"):
        out.print(history["early_stop"])
    if (plot := folder.folder / "training_loss.png").exists():
        out.print(_("loss plot:      {plot}").format(plot=plot))
    out.print(_("report:         {page}").format(page=write_page(folder)))
    return assistant


def _train(planned: TrainPlan, common: Path | None, progress: Progress) -> tuple["Assistant", Score]:
    """The part whose output goes to train.log, tracebacks included. With replay the score tells the `target_tokens`.
    Several machines go on from the checkpoint that they have in `common`.
    """
    folder = planned.run
    try:
        newest = newest_whole(folder.folder, progress.say)
        if checkpoint := common if planned.nodes else newest:
            progress.say(
                _("Going on with the run {name!r} from {checkpoint}.").format(
                    name=folder.name, checkpoint=checkpoint.name
                )
            )
        datasets = planned.datasets
        targets: dict[str, int] = {}
        if planned.replay:
            replayed, targets = _replay(planned, progress)
            datasets = (*datasets, replayed)
        write_datasets(datasets, folder.data, resumed=checkpoint is not None)
        assistant = train_within_memory(planned, checkpoint, progress)
        progress.stage(_("Asking who it is"))
        asked = one_of_each(questions())
        scored = score(asked, planned.identity, assistant.base_reply_all, assistant.reply_all)
        return assistant, {"target_tokens": targets, **scored}
    except Exception:
        traceback.print_exc()
        raise


def _replay(planned: TrainPlan, progress: Progress) -> tuple[Dataset, dict[str, int]]:
    """What replay_dataset makes of the base's answers. The run folder keeps all of them: a resumed run trains on the
    same.
    """
    kept = planned.run.folder / REPLAY
    if not kept.exists():
        progress.stage(_("Asking the base model {replay} general prompts").format(replay=planned.replay))
        base = {key: value for key, value in planned.chat_config.items() if key != "adapter_name_or_path"}
        asked = replay_prompts(planned.replay), planned.config.get("cutoff_len", 2048)  # LLaMA-Factory's own default
        if planned.fit.hardware.count > 1:
            said = launch.ask(planned.fit.hardware, base, "base_answers", *asked)
        else:
            from yi_tune.engine.divergence import ask_base

            said = ask_base(base, *asked)
        write_whole(kept, to_jsonl(said))
    answers = read_jsonl(kept)
    identity = next((dataset for dataset in planned.datasets if dataset.name == "identity"), None)
    most = planned.config.get("max_samples")
    dataset, targets = replay_dataset(answers, planned.local.path, identity, most)
    beside = _(" beside the identity's {identity:,}").format(identity=targets["identity"]) if identity else ""
    progress.say(
        _("Training on {rows} of the base's {answers} answers: {replay:,} target tokens{beside}.").format(
            rows=dataset.rows, answers=len(answers), replay=targets["replay"], beside=beside
        )
    )
    return dataset, targets


def train_within_memory(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> "Assistant":
    """Train as planned; out of memory, in half the micro-batch from the newest whole checkpoint on, and so on, as long
    as there are smaller steps. The run folder is told of each change. After the loss of a worker, training goes on from
    there too, unless that is where the last one was lost. Raises as engine.trainer.train does.
    """
    hardware, folder, lost = planned.fit.hardware, planned.run.folder, None
    while True:
        variables = environment(planned.fit.sharding, hardware)
        write_configs(planned.run, planned.record, planned.chat_config, variables)
        if uses_ray():
            launch.check_ray(planned)
        progress.stage(_("Loading LLaMA-Factory and the model"))
        from yi_tune.engine.trainer import OutOfMemoryError, train

        try:
            if hardware.total == 1 and not uses_ray():
                return train(planned.config, checkpoint, progress)
            launch.train(planned, checkpoint, progress)
            from yi_tune.engine.assistant import load_assistant

            progress.stage(_("Loading the tuned model"))
            return load_assistant(planned.chat_config)
        except launch.WorkerLostError:
            checkpoint = newest_whole(folder, progress.say)
            start = _from(checkpoint)
            if lost == start:
                raise YiTuneError(
                    "One of {gpus} workers was lost twice, each time when it had gone on {start}.",
                    "Was it killed, for the memory that it took? Did a GPU fail (dmesg)? See also {log}",
                    gpus=hardware.total,
                    start=start,
                    log=planned.run.log,
                ) from None
            lost = start
            progress.say(_("A worker was lost. Going on {start}.").format(start=told(start)))
        except OutOfMemoryError:
            if not (changes := smaller(planned.config)):
                raise
            planned = _divided(planned, changes, kept("memory ran out with more"))
            checkpoint = newest_whole(folder, progress.say)
            changed = ", ".join(f"{key} {value}" for key, value in changes.items())
            start = told(_from(checkpoint))
            progress.say(_("Out of memory. Going on {start} with {told}.").format(start=start, told=changed))
        if planned.nodes:
            before = planned
            planned, checkpoint = _meet(planned, planned.nodes, progress)
            lost = lost if planned is before else None


def _meet(
    planned: TrainPlan, nodes: Nodes, progress: Progress, old: Sequence[Path] = ()
) -> tuple[TrainPlan, Path | None]:
    """Meet the other machines: the plan whose steps fit all, and the newest whole checkpoint that all have, of those
    that are not `old`. Raises as meeting.meet does. The run folder stays as it is.
    """
    folder = planned.run.folder
    said = ngettext("Meeting {n} more machine at {host}", "Meeting {n} more machines at {host}", nodes.count - 1)
    progress.stage(said.format(n=nodes.count - 1, host=nodes.host))
    whole = {path.name for path in folder.glob("checkpoint-*") if path not in old and not broken(path)}
    name, division = meet(nodes, planned.record, whole)
    if not division.items() <= planned.config.items():
        planned = _divided(planned, division, kept("fits the machine with the least memory"))
    return planned, folder / name if name else None


def _from(checkpoint: Path | None) -> Text:
    return kept("from {checkpoint}", checkpoint=checkpoint.name) if checkpoint else kept("from the start")


def _divided(planned: TrainPlan, changes: Config, why: Text) -> TrainPlan:
    settings = {key: (value, "hardware", why) for key, value in changes.items()}
    return replace(planned, settings={**planned.settings, **settings})


def _explain(error: Exception, planned: TrainPlan) -> YiTuneError:
    """What a failure of the engine means for the user."""
    if isinstance(error, YiTuneError):
        return error
    if full := disk_full(error, planned.run.folder):
        return full
    if is_out_of_memory(error):
        return YiTuneError(
            "Out of memory: {error}",
            "Free some (what else runs on this machine?), then type the same command, without --fresh: it goes on "
            "where it stopped. Or take a shorter cutoff (--set cutoff_len=...) or a smaller model (yi-tune models).",
            error=error,
        )
    return YiTuneError(
        "Training failed: {kind}: {error}",
        "The whole story is in {log}",
        kind=type(error).__name__,
        error=error,
        log=planned.run.log,
    )
