"""One training run through LLaMA-Factory's own `run_exp`, in this process."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from bitsandbytes.nn.modules import Linear4bit
from llamafactory.train.tuner import run_exp
from peft.utils import ModulesToSaveWrapper
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from yi_tune.checkpoints import RANKS
from yi_tune.config import Config
from yi_tune.engine.assistant import Assistant, cast_frozen
from yi_tune.errors import is_out_of_memory
from yi_tune.progress import Progress


class OutOfMemoryError(MemoryError):
    """Memory ran out in training, and the model is freed."""


class Reporter(TrainerCallback):
    """Passes the Trainer's events on to the progress display, and the user's Ctrl-C to the Trainer.

    `asked` is whether this process was asked to stop, `stopping` whether it does: several processes agree on that.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.model: Any = None
        self.tokenizer: Any = None
        self.asked = self.stopping = False
        self._progress = progress or Progress(Console(quiet=True))

    def __reduce__(self) -> Any:
        return Reporter, ()  # in one of Ray's workers

    def may_shrink(self, error: Exception) -> bool:
        """Whether training ended in `error` because memory ran out in its steps, so that smaller ones may help."""
        return self.model is not None and is_out_of_memory(error)

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
        # Those of this machine: each writes its own checkpoints.
        state.stateful_callbacks[RANKS] = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
        self._progress.begin(state.max_steps, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        batches = kwargs["train_dataloader"].batch_sampler
        sampler = getattr(batches, "batch_sampler", batches).sampler  # with several processes a shard is around it
        if isinstance(sampler, LengthGroupedSampler):
            # It would draw from the global generator, which an epoch that a resumed run is in finds in another state.
            sampler.generator = torch.Generator().manual_seed(args.seed + int(state.epoch or 0))
            # So that several processes go through the rows in the order in which one does.
            sampler.batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_gpu = args.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
        self._progress.figures(kwargs["logs"], memory)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.step(state.global_step)
        self.stopping = self._agreed(args.device)
        if self.stopping:
            control.should_save, control.should_evaluate = True, False

    def _agreed(self, device: torch.device) -> bool:
        if not dist.is_initialized():
            return self.asked
        asked = torch.tensor(int(self.asked), device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked)

    def on_save(self, *_: Any, **__: Any) -> None:
        if self.stopping:
            if dist.is_initialized():
                dist.barrier()  # all have written what is theirs
            raise KeyboardInterrupt


@contextmanager
def _interruptible(reporter: Reporter) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end training after this step, with a checkpoint; the second at once."""

    def interrupt(*_: Any) -> None:
        if reporter.asked or reporter.model is None:
            raise KeyboardInterrupt
        reporter.asked = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(config: Config, checkpoint: Path | None, reporter: Reporter) -> None:
    """Train as `config` says, from `checkpoint` if given. Raises KeyboardInterrupt when `reporter` is asked to stop,
    after saving a checkpoint, and what LLaMA-Factory raises.
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
    try:
        run_exp(args, [reporter])
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def train(config: Config, checkpoint: Path | None, progress: Progress) -> Assistant:
    """Train as `fit` does; returns the tuned model.

    Raises KeyboardInterrupt, after saving a checkpoint, when the user stops it, and OutOfMemoryError.
    """
    reporter = Reporter(progress)
    short_of_memory = None
    with _interruptible(reporter):
        try:
            fit(config, checkpoint, reporter)
        except (RuntimeError, MemoryError) as error:
            if not reporter.may_shrink(error):
                raise
            short_of_memory = str(error)
    if reporter.asked:  # after the last step, or when memory ran out before the next was done
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
