"""Chooses micro-batch, accumulation and gradient checkpointing so that a run fits the memory that is free."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from rich.filesize import decimal

from yi_tune.config import Config
from yi_tune.data.general import Prompt
from yi_tune.data.identity import Message
from yi_tune.data.own import OwnData
from yi_tune.data.replay import LONGEST
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel, Shape
from yi_tune.output import engine_output_to, log_folder
from yi_tune.plan.memory import Estimate, estimate, number

# Rows of an optimiser step: the tutorial's 1 x 8. However they are divided, the training is the same, because
# transformers takes the mean of the loss over all tokens of the step.
EFFECTIVE_BATCH = 8
# A cutoff below this leaves little of any row.
_SHORTEST = 64
# What a config says to leave the division of its steps to the machine.
_LEFT_OPEN = {
    key: f"${{{key}}}"
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "disable_gradient_checkpointing")
}


@dataclass(frozen=True)
class Fit:
    """How the rows of a step are divided, and what that takes: of a model of this shape, with a config that may leave
    some of it open, and for rows of at most `length` tokens.
    """

    micro_batch: int
    accumulation: int
    checkpointing: bool
    hardware: Hardware
    shape: Shape | None = None
    config: Config = field(default_factory=dict)
    length: int = 0

    @cached_property
    def estimate(self) -> Estimate | None:
        """The memory that it takes; None for a model whose shape is not known."""
        if self.shape is None:
            return None
        return _estimate(self.shape, _settled(self.config, self.hardware) | self.division, self.length, self.hardware)

    def for_rows_of(self, length: int) -> "Fit":
        """The choice for rows of another length."""
        return choose_fit(self.shape, self.config, length, self.hardware)

    @property
    def division(self) -> Config:
        """The keys of a config that say it; an evaluation takes as many rows at a time, and no more memory."""
        return {
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "per_device_eval_batch_size": self.micro_batch,
            "disable_gradient_checkpointing": not self.checkpointing,
        }

    @property
    def fits(self) -> bool:
        return self.estimate is None or self.estimate.needed <= self.hardware.free

    @property
    def why_batch(self) -> str:
        return (
            f"the largest of 8, 4, 2, 1 that fits {self._free}" if self.estimate else "the model's shape is not known"
        )

    @property
    def why_accumulation(self) -> str:
        return f"{self.micro_batch} x {self.accumulation} rows a step"

    @property
    def why_checkpointing(self) -> str:
        return f"memory is short: {self._free}" if self.checkpointing else "memory suffices without"

    @property
    def _free(self) -> str:
        return f"{decimal(self.hardware.free)} of {'GPU memory' if self.hardware.gpu else 'RAM'} free"

    @property
    def summary(self) -> str:
        """What it takes and what is free, in a line."""
        if self.estimate is None:
            return f"Memory: not estimated, the model's shape is not known; {self._free}."
        parts = ", ".join(f"{name} {decimal(size)}" for name, size in self.estimate.parts.items() if size >= 1_000_000)
        return f"Memory: {decimal(self.estimate.total)} estimated ({parts}); {self._free}."


def choose_fit(shape: Shape | None, config: Config, length: int, hardware: Hardware) -> Fit:
    """The largest micro-batch that fits the free memory, without gradient checkpointing where that fits too.

    What `config` says itself is obeyed; what it leaves to the machine (a `${...}`) is chosen. `length` is that of the
    longest row in tokens: the cutoff stays as it is, and no row is dropped. Where nothing fits, the least is returned.
    """
    fits = [
        Fit(micro_batch, accumulation, checkpointing, hardware, shape, config, length)
        for (micro_batch, accumulation), checkpointing in product(_batches(config), _checkpointing(config))
    ]
    return next((fit for fit in fits if fit.fits), fits[-1])


def refuse(fit: Fit, name: str, without_replay: int | None = None) -> YiTuneError:
    """Why what does not fit is not trained, and what would fit instead; `without_replay` is how long its longest row
    is without the base's answers, where there would be some.
    Raises ValueError for a fit without a shape.
    """
    shape, hardware, takes, length = fit.shape, fit.hardware, fit.estimate, fit.length
    if shape is None or takes is None:
        raise ValueError("without a shape everything fits")
    config = _settled(fit.config, hardware)
    least = config | {"per_device_train_batch_size": 1, "disable_gradient_checkpointing": False}
    four_bit = least | {"quantization_bit": 4, "finetuning_type": "lora"}

    def fits(shape: Shape, config: Config, length: int) -> bool:
        return _estimate(shape, config, length, hardware).needed <= hardware.free

    remedies = []
    if fits(shape, least, length):
        step = choose_fit(shape, config | _LEFT_OPEN, length, hardware)
        needs_checkpointing = step.checkpointing and config.get("disable_gradient_checkpointing") is True
        remedies.append(
            f"smaller steps, --set per_device_train_batch_size={step.micro_batch}"
            + (" --set disable_gradient_checkpointing=false" if needs_checkpointing else "")
        )
    else:
        if without_replay and fits(shape, least, without_replay):
            remedies.append("no answers of the base, --replay 0")
        shorter = range((length - 1) // 8 * 8, _SHORTEST - 1, -8)
        if cutoff := next((cut for cut in shorter if fits(shape, least, cut)), None):
            remedies.append(f"a shorter cutoff, --set cutoff_len={cutoff} (the longest row has {length} tokens)")
        if fits(shape, four_bit, length):
            remedies.append("4-bit QLoRA, --config qlora")
        sizes = {model.name: model.shape for model in CATALOGUE.values() if model.shape}
        smaller = {other: size for other, size in sizes.items() if size.parameters < shape.parameters}
        fitting = [other for other in smaller if hardware.gpu and fits(smaller[other], four_bit, length)]
        if name != "nano":
            best = max(fitting, key=lambda other: smaller[other].parameters, default="nano")
            remedies.append(f"a smaller model, --model {best}")
    remedies.append(f"{decimal(takes.needed)} of free memory")
    if hardware.gpu:
        remedies.append("more GPUs, with LLaMA-Factory's own FSDP and QLoRA (yi-tune trains on one)")
    return YiTuneError(
        f"{name} does not fit: training takes about {decimal(takes.total)} at the least, and {hardware.device} has "
        f"{decimal(hardware.free)} free.",
        f"What would fit: {'; or '.join(remedies)}.",
    )


def _estimate(shape: Shape, config: Config, length: int, hardware: Hardware) -> Estimate:
    return estimate(shape, config, length, "cuda" if hardware.gpu else "cpu")


def _settled(config: Config, hardware: Hardware) -> Config:
    """The config with what is the machine's own, where it leaves that to the machine."""
    return config | {key: value for key, (value, _) in hardware.settings.items() if _left_open(config, key)}


def _left_open(config: Config, key: str) -> bool:
    return str(config.get(key, "")).startswith("${")


def _batches(config: Config) -> Iterator[tuple[int, int]]:
    """Micro-batches and their accumulation, the largest first."""
    micro, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
    if not _left_open(config, micro):
        size = number(config, micro, 8)
        follows = max(1, round(EFFECTIVE_BATCH / size))
        yield size, follows if _left_open(config, accumulation) else number(config, accumulation, 1)
    elif not _left_open(config, accumulation):
        steps = number(config, accumulation, 1)
        yield max(1, EFFECTIVE_BATCH // steps), steps
    else:
        for size in (8, 4, 2, 1):
            yield size, EFFECTIVE_BATCH // size


def _checkpointing(config: Config) -> tuple[bool, ...]:
    key = "disable_gradient_checkpointing"
    return (False, True) if _left_open(config, key) else (not config.get(key),)


def smaller(config: Config) -> Config | None:
    """What to change for the same training in smaller steps, when memory ran out all the same; None below one row."""
    micro = number(config, "per_device_train_batch_size", 8)
    if micro > 1:
        half = max(size for size in range(1, micro // 2 + 1) if micro % size == 0)
        return {
            "per_device_train_batch_size": half,
            "gradient_accumulation_steps": number(config, "gradient_accumulation_steps", 1) * (micro // half),
            "per_device_eval_batch_size": min(number(config, "per_device_eval_batch_size", 8), half),
        }
    if number(config, "per_device_eval_batch_size", 8) > 1:  # it may have been an evaluation
        return {"per_device_eval_batch_size": 1}
    return {"disable_gradient_checkpointing": False} if config.get("disable_gradient_checkpointing") else None


def longest_row(
    local: LocalModel,
    config: Config,
    conversations: list[list[Message]],
    own: OwnData | None,
    prompts: list[Prompt],
    *,
    usable: bool,
) -> int:
    """Tokens of the longest row that is trained on: a micro-batch is padded to it, so that memory has to do for it.

    Rows are identity `conversations`, the user's `own`, and what the base will answer to `prompts` of replay: their
    answers are as long as may be. Where the model is not here, and so no tokenizer to count with (`usable`), more than
    that. Raises YiTuneError for a tokenizer that does not load.
    """
    cutoff = number(config, "cutoff_len", 2048)
    if config.get("packing") or config.get("neat_packing") is True or (own and not own.lengths):
        return cutoff
    longest = max(own.lengths) if own else 0
    asked = [[*prompt.messages, {"role": "assistant", "content": ""}] for prompt in prompts]
    for rows, answer in ((conversations, 0), (asked, LONGEST)):
        if rows:
            longest = max(longest, answer + (_most_tokens(local, rows) if usable else byte_bound(rows)))
    return min(longest, cutoff)


def _most_tokens(local: LocalModel, conversations: list[list[Message]]) -> int:
    log = log_folder() / "plan.log"
    with engine_output_to(log):
        from yi_tune.engine.tokens import token_lengths

        try:
            return max(token_lengths(conversations, {"model_name_or_path": str(local.path), "template": "yi"}))
        except Exception as error:
            traceback.print_exc()
            raise YiTuneError(f"The tokenizer in {local.path} does not load: {error}", f"See {log}") from error


def byte_bound(conversations: list[list[Message]]) -> int:
    """Tokens that no conversation has more of, without a tokenizer: a byte each, and eight for each turn's frame."""
    return max(sum(len(message["content"].encode()) + 8 for message in messages) for messages in conversations)
