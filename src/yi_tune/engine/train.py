"""One training run through LLaMA-Factory's own `run_exp`, in this process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitsandbytes.nn.modules import Linear4bit
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from yi_tune.config import Config
from yi_tune.engine.assistant import Assistant, load_without_adapter
from yi_tune.progress import Progress


class KeepTrainable(TrainerCallback):
    """Keeps 4-bit layers in the form that training needs.

    On CPUs with AVX512-BF16, bitsandbytes packs a Linear4bit for inference in its first forward pass in
    eval mode, as an evaluation makes, and never unpacks it: from then on no gradient passes through.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for module in kwargs["model"].modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False


class Reporter(TrainerCallback):
    """Passes the Trainer's events on to the progress display, and the user's Ctrl-C back to the Trainer."""

    def __init__(self, progress: Progress) -> None:
        self.model: Any = None
        self.tokenizer: Any = None
        self.losses: list[float] = []
        self.interrupted = False
        self._progress = progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.model = kwargs["model"]
        self.tokenizer = kwargs["processing_class"]
        self._progress.start(state.max_steps, state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self._progress.loss(logs["loss"], logs["learning_rate"])
        if "eval_loss" in logs:
            self._progress.eval_loss(logs["eval_loss"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.step(state.global_step)
        if self.interrupted:
            control.should_save = True
            control.should_evaluate = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # From the history, which survives a resume; the Trainer's own mean counts only the last leg.
        self.losses = [log["loss"] for log in state.log_history if "loss" in log]


@contextmanager
def _interruptible(reporter: Reporter) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end training after this step, with a checkpoint; the second at once."""

    def interrupt(*_: Any) -> None:
        if reporter.interrupted or reporter.model is None:
            raise KeyboardInterrupt
        reporter.interrupted = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    config: Config, checkpoint: Path | None, progress: Progress, base: Config | None
) -> tuple[Assistant, float | None]:
    """Train as `config` says, from `checkpoint` if given; returns the tuned model and its mean loss, None if
    it logged none. `base` is what to load for the base where training leaves none of it.

    Raises KeyboardInterrupt, after saving a checkpoint, when the user stops it.
    """
    # Lines in the log instead of a bar, which would also draw itself anew when the process ends.
    args = {**config, "resume_from_checkpoint": str(checkpoint) if checkpoint else None, "disable_tqdm": True}
    reporter = Reporter(progress)
    with _interruptible(reporter):
        run_exp(args, [KeepTrainable(), reporter])
    if reporter.interrupted:  # after the last step
        raise KeyboardInterrupt
    mean_loss = sum(reporter.losses) / len(reporter.losses) if reporter.losses else None
    before = load_without_adapter(base)[0] if base else None
    return Assistant(reporter.model, reporter.tokenizer, config["template"], before), mean_loss
