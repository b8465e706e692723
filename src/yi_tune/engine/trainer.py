"""One training run through LLaMA-Factory's own `run_exp`, in this process."""

import gc
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from bitsandbytes.nn.modules import Linear4bit
from llamafactory.train.tuner import run_exp
from peft.utils import ModulesToSaveWrapper
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from yi_tune.config import Config
from yi_tune.engine.assistant import Assistant, cast_frozen
from yi_tune.errors import is_out_of_memory
from yi_tune.progress import Progress


class OutOfMemoryError(MemoryError):
    """Memory ran out in training, and the model is freed."""


class Reporter(TrainerCallback):
    """Passes the Trainer's events on to the progress display, and the user's Ctrl-C to the Trainer."""

    def __init__(self, progress: Progress) -> None:
        self.model: Any = None
        self.tokenizer: Any = None
        self.interrupted = False
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model, self.tokenizer = kwargs["model"], kwargs["processing_class"]
        for layer in filter(lambda module: isinstance(module, Linear4bit), self.model.modules()):
            # On CPUs with AVX512-BF16, bitsandbytes would pack it for inference in the first evaluation, for good: from
            # then on no gradient passed through.
            layer.support_avx512bf16_for_cpu = False
        if args.fp16:  # beside weights in bf16 the adapter's fp16 would make float32 of all that a layer passes on
            cast_frozen(self.model, torch.float16)
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # the base's answers are not this run's
        if state.best_model_checkpoint:  # an absolute path, and the run folder may have been moved since
            state.best_model_checkpoint = str(Path(args.output_dir) / Path(state.best_model_checkpoint).name)
        self._progress.begin(state.max_steps, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sampler = kwargs["train_dataloader"].batch_sampler.sampler
        if isinstance(sampler, LengthGroupedSampler):
            # It would draw from the global generator, which an epoch that a resumed run is in finds in another state.
            sampler.generator = torch.Generator().manual_seed(args.seed + int(state.epoch or 0))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_gpu = args.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
        self._progress.figures(kwargs["logs"], memory)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.step(state.global_step)
        if self.interrupted:
            control.should_save, control.should_evaluate = True, False

    def on_save(self, *_: Any, **__: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt


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


def train(config: Config, checkpoint: Path | None, progress: Progress) -> Assistant:
    """Train as `config` says, from `checkpoint` if given; returns the tuned model.

    Raises KeyboardInterrupt, after saving a checkpoint, when the user stops it, and OutOfMemoryError.
    """
    packed = config.get("packing") or config.get("neat_packing")
    cache = Path(config["dataset_dir"]) / "cache"
    args = {
        # Packed rows are full, and their mask tells the rows apart: its sum is no number of tokens.
        "include_num_input_tokens_seen": "all" if packed else "non_padding",
        # The rows as `datasets` reads them, of use until they are trained on; by default they would stay for ever.
        "cache_dir": str(cache),
        **config,
        "resume_from_checkpoint": str(checkpoint) if checkpoint else None,
        # Lines in the log instead of a bar, which would also draw itself anew when the process ends.
        "disable_tqdm": True,
    }
    reporter = Reporter(progress)
    short_of_memory = None
    with _interruptible(reporter):
        try:
            run_exp(args, [reporter])
        except (RuntimeError, MemoryError) as error:
            if reporter.model is None or not is_out_of_memory(error):
                raise
            short_of_memory = str(error)
        finally:
            shutil.rmtree(cache, ignore_errors=True)
    if reporter.interrupted:  # after the last step, or when memory ran out before the next was done
        raise KeyboardInterrupt
    if short_of_memory is not None:
        # Out here the exception is gone, and with it the frames that held the model.
        reporter.model = None
        gc.collect()  # modules refer to each other in circles
        torch.cuda.empty_cache()
        raise OutOfMemoryError(short_of_memory)
    for module in filter(lambda module: isinstance(module, ModulesToSaveWrapper), reporter.model.modules()):
        # What was trained whole (additional_target) was so in float32; the rest computes in the base's type.
        module.modules_to_save.to(module.original_module.weight.dtype)
    return Assistant(reporter.model, reporter.tokenizer, config["template"])
