"""The way through a training run that is planned: run folder, engine, report."""

import json
import signal
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from yi_tune.config import find_config, read_config
from yi_tune.data.dataset import Dataset, write_datasets
from yi_tune.data.heldout import Score, one_of_each, questions, score
from yi_tune.data.replay import choose_prompts, keep_answers, kept_answers, replay_dataset
from yi_tune.errors import YiTuneError, is_disk_full, is_out_of_memory
from yi_tune.output import engine_output_to
from yi_tune.plan.memory import longest_row
from yi_tune.plan.plan import TrainPlan
from yi_tune.progress import Progress
from yi_tune.recovery import train_within_memory
from yi_tune.report import print_advice, print_answers, summary
from yi_tune.runs.folder import newest_whole, prepare, write_configs
from yi_tune.runs.listing import read_history
from yi_tune.runs.records import record
from yi_tune.screen import out

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


def run(planned: TrainPlan, *, fresh: bool) -> "Assistant":
    """Train, ask a few held-out questions, write the report and print it; returns the tuned model.

    Raises YiTuneError when the run folder is taken or training fails, KeyboardInterrupt when it is
    stopped; in both cases the folder can be gone on with.
    """
    # Asked to end while it loads or asks, it ends as by Ctrl-C; while it trains, engine/trainer.py sees to it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = planned.run
    data = {dataset.name: dataset.file_name for dataset in planned.datasets}
    new = record(
        planned.config,
        planned.local,
        vars(planned.identity) if planned.identity else {},
        data,
        replay=planned.replay,
        start=planned.start,
    )
    try:
        with folder.lock():
            try:
                prepare(folder, new, fresh=fresh)
            except OSError as error:
                raise _explain(error, planned) from error
            try:
                with engine_output_to(folder.log) as console, Progress(console) as progress:
                    assistant, loss, scored = _train(planned, progress)
                report = {"loss": loss, **scored.to_dict()}
                folder.write("report.json", json.dumps(report, ensure_ascii=False, indent=2))
            except Exception as error:
                failed = _explain(error, planned)
                folder.record_failure(failed.message)
                raise failed from error
    finally:
        signal.signal(signal.SIGTERM, before)
    print_advice(scored, planned.config, out)
    print_answers(scored.answers, out)
    out.print(summary(scored), markup=False, soft_wrap=True)
    if loss is not None:
        out.print(f"\nmean training loss: {loss:.4f}", markup=False)
    if (history := read_history(folder.folder)) and history.early_stop:
        out.print(history.early_stop)
    if (plot := folder.folder / "training_loss.png").exists():
        out.print(f"loss plot:      {plot}", markup=False, soft_wrap=True)
    return assistant


def _train(planned: TrainPlan, progress: Progress) -> tuple["Assistant", float | None, Score]:
    """The part whose output goes to train.log, tracebacks included."""
    folder = planned.run
    try:
        if checkpoint := newest_whole(folder.folder, progress.say):
            progress.say(f"Going on with the run {folder.name!r} from {checkpoint.name}.")
        datasets = planned.datasets
        if planned.replay:
            datasets = (*datasets, _replay(planned, progress))
            planned = _fit_to_answers(planned, datasets, progress)
        write_datasets(datasets, folder.data, resumed=checkpoint is not None)
        write_configs(folder, planned.config, planned.chat_config(read_config(find_config("chat"))))
        progress.stage("Loading LLaMA-Factory and the model")
        assistant, loss = train_within_memory(planned, checkpoint, progress)
        progress.stage("Asking who it is")
        asked = one_of_each(questions())
        return assistant, loss, score(asked, planned.identity, assistant.base_reply_all, assistant.reply_all)
    except Exception:
        traceback.print_exc()
        raise


def _replay(planned: TrainPlan, progress: Progress) -> Dataset:
    """The base's own answers as a dataset."""
    answers = kept_answers(planned.run)
    if answers is None:
        progress.stage(f"Asking the base model {planned.replay} general prompts")
        from yi_tune.engine.replay import ask_base

        base = planned.base_config(read_config(find_config("chat")))
        cutoff_len = planned.config.get("cutoff_len", 2048)  # LLaMA-Factory's own default
        answers = ask_base(base, choose_prompts(planned.replay), cutoff_len)
        keep_answers(planned.run, answers)
    dataset = replay_dataset(answers)
    progress.say(
        f"Training on {dataset.rows} of the base's {len(answers)} answers: those that come to an end, and do not say "
        "who it was."
    )
    return dataset


def _fit_to_answers(planned: TrainPlan, datasets: Sequence[Dataset], progress: Progress) -> TrainPlan:
    """The plan for rows as long as they are; before the base had answered, its answers counted as long as may be."""
    rows = [row for dataset in datasets if dataset.name != "own" for row in dataset.conversations()]
    planned = planned.fitted(longest_row(planned.local, planned.config, rows, planned.own, []))
    if planned.fit.estimate:
        progress.say(planned.fit.summary)
    return planned


def _explain(error: Exception, planned: TrainPlan) -> YiTuneError:
    """What a failure of the engine means for the user."""
    folder = planned.run.folder
    if isinstance(error, YiTuneError):
        return error
    if is_disk_full(error, folder):
        return YiTuneError(
            f"The disk of {folder} is full.",
            "Free some space, then type the same command, without --fresh: it goes on where it stopped.",
        )
    if is_out_of_memory(error):
        # Training itself sees to its memory: this is a model that was to answer, before it or after.
        return YiTuneError(
            f"Out of memory while a model was asked: {error}",
            "Free some, then type the same command, without --fresh: it goes on where it stopped, and answers in fewer "
            "bits where memory is short.",
        )
    return YiTuneError(f"Training failed: {type(error).__name__}: {error}", f"The whole story is in {planned.run.log}")
