"""One training run through LLaMA-Factory's own `run_exp`, in this process."""

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from bitsandbytes.nn.modules import Linear4bit
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from yi_tune.config import Config
from yi_tune.engine.assistant import Assistant, load_assistant, load_without_adapter
from yi_tune.errors import is_out_of_memory
from yi_tune.progress import Progress


class OutOfMemoryError(Exception):
    """Memory ran out; what held it has been freed. `loaded`: whether it was training, or still on its way to it."""

    def __init__(self, message: str, *, loaded: bool) -> None:
        super().__init__(message)
        self.loaded = loaded


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


def _memory(device: torch.device) -> int:
    """The memory that training takes, in bytes: on a GPU the most that was allocated, else what the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class KeepBest(TrainerCallback):
    """Lets a resumed run know its best checkpoint, and that it had been stopped.

    The Trainer keeps that checkpoint's absolute path, and if nothing is there it goes by the last without an error. And
    it forgets that EarlyStoppingCallback had called for the end, where the run was cut off between that and the end.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_model_checkpoint:
            best = Path(cast(str, args.output_dir)) / Path(state.best_model_checkpoint).name
            state.best_model_checkpoint = str(best)
            if not best.is_dir():  # it was broken: the best from here on is kept
                state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        stopping = cast("dict[str, Any]", state.stateful_callbacks).get("EarlyStoppingCallback")
        if stopping:
            patience = stopping["args"]["early_stopping_patience"]
            # The loop looks only after a step: one more is taken, and with the best checkpoint it is dropped.
            if stopping["attributes"]["early_stopping_patience_counter"] >= patience:
                control.should_training_stop = True


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
        self._progress.begin(state.max_steps, state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            speed = logs.get("train_tokens_per_second")
            self._progress.figures(logs["loss"], logs["learning_rate"], speed, _memory(args.device))
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

    def let_go(self) -> None:
        """Free the model that was trained."""
        self.model = None
        gc.collect()  # modules refer to each other in circles
        torch.cuda.empty_cache()

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
    config: Config, checkpoint: Path | None, progress: Progress, chat: Config, base: Config | None
) -> tuple[Assistant, float | None]:
    """Train as `config` says, from `checkpoint` if given; returns the tuned model, as `chat` loads it, and its mean
    loss, None if it logged none. `base` is what to load for the base where training leaves none of it.

    Raises KeyboardInterrupt, after saving a checkpoint, when the user stops it, and OutOfMemoryError.
    """
    packed = config.get("packing") or config.get("neat_packing")
    args = {
        # Packed rows are full, and their mask tells the rows apart: its sum is no number of tokens.
        "include_num_input_tokens_seen": "all" if packed else "non_padding",
        **config,
        "resume_from_checkpoint": str(checkpoint) if checkpoint else None,
        # Lines in the log instead of a bar, which would also draw itself anew when the process ends.
        "disable_tqdm": True,
    }
    reporter = Reporter(progress)
    short_of_memory = None
    with _interruptible(reporter):
        try:
            run_exp(args, [KeepTrainable(), KeepBest(), reporter])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            short_of_memory = str(error)
    if reporter.interrupted:  # after the last step, or when memory ran out before the next was done
        raise KeyboardInterrupt
    if short_of_memory is not None:
        # Out here the exception is gone, and with it the frames that held the model.
        loaded = reporter.model is not None
        reporter.let_go()
        raise OutOfMemoryError(short_of_memory, loaded=loaded)
    mean_loss = sum(reporter.losses) / len(reporter.losses) if reporter.losses else None
    if chat.get("quantization_bit") != config.get("quantization_bit"):
        reporter.let_go()
        return load_assistant(chat), mean_loss
    before = load_without_adapter(base)[0] if base else None
    return Assistant(reporter.model, reporter.tokenizer, config["template"], before), mean_loss
