"""How the steps of a run are divided for the memory that is free, and how long its rows are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from gettext import gettext as _
from itertools import product
from typing import Any

from rich.filesize import decimal

from yi_tune.config import Config, left_open
from yi_tune.data.general import LONGEST, Prompt
from yi_tune.data.identity import Message
from yi_tune.data.own import count_tokens
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.language import Text, english, kept, told
from yi_tune.models import LocalModel, Shape
from yi_tune.output import spell
from yi_tune.plan.duration import cost, rate_of
from yi_tune.plan.memory import ACCUMULATION, EVAL, MICRO, NO_CHECKPOINTING, estimate, needed, number
from yi_tune.plan.sharding import DIVIDED, Sharding, divided

# Rows of an optimiser step: the tutorial's 1 x 8. Their division does not change the training, because transformers
# takes the mean of the loss over all tokens of the step.
EFFECTIVE_BATCH = 8


@dataclass(frozen=True)
class Fit:
    """How the rows of a step are divided, the longest of which has `length` tokens, and the memory that it takes, in
    bytes by what takes it; None for a model whose shape is not known.
    """

    micro_batch: int
    accumulation: int
    checkpointing: bool
    hardware: Hardware
    shape: Shape | None = None
    parts: dict[str, int] | None = None
    length: int = 0
    cost: float = 0.0  # of the whole training, as plan/duration.py has it
    alone: float = 0.0  # of it with one GPU
    sharding: Sharding | None = None

    @property
    def fits(self) -> bool:
        return self.parts is None or needed(self.parts) <= self.hardware.free

    @property
    def rows(self) -> int:
        """The rows of an optimiser step, on all GPUs together."""
        return self.micro_batch * self.accumulation * self.hardware.total

    @property
    def settings(self) -> dict[str, tuple[Any, Text]]:
        """The keys of a config that say it: values, and why."""
        why = kept("chosen for {free}", free=self._free) if self.shape else kept("the model's shape is not known")
        if self.hardware.total > 1:
            why = kept("{why}, on each of {several}", why=why, several=self._several)
        sizes = {MICRO: self.micro_batch, ACCUMULATION: self.accumulation, EVAL: self.micro_batch}
        return {key: (value, why) for key, value in {**sizes, NO_CHECKPOINTING: not self.checkpointing}.items()}

    @property
    def _free(self) -> Text:
        gpu, free = self.hardware.gpu, decimal(self.hardware.free)
        said = kept("{free} of GPU memory free", free=free) if gpu else kept("{free} of RAM free", free=free)
        return kept("{free} for each", free=said) if self.hardware.total > 1 else said

    @property
    def _several(self) -> Text:
        count, nodes = self.hardware.total, self.hardware.nodes
        several = kept("{count} GPUs", count=count) if self.hardware.gpu else kept("{count} processes", count=count)
        return kept("{several} of {nodes} machines", several=several, nodes=nodes) if nodes > 1 else several

    @property
    def summary(self) -> str:
        """How several GPUs share a step, in a line; the memory that one takes and what it has free, in another."""
        shared = ""
        if self.hardware.total > 1:
            division = _("{micro_batch} x {accumulation} on each of {several}").format(
                micro_batch=self.micro_batch, accumulation=self.accumulation, several=told(self._several)
            )
            shared = _("The {rows} rows of a step: {division}, each with the whole model.").format(
                rows=self.rows, division=division
            )
            if self.sharding:
                shared = _("The {rows} rows of a step: {division}. {divided}").format(
                    rows=self.rows, division=division, divided=_(DIVIDED[self.sharding])
                )
            shared += "\n"
        if self.parts is None:
            return shared + _("Memory: not estimated, the model's shape is not known; {free}.").format(
                free=told(self._free)
            )
        large = [f"{_(name)} {decimal(size)}" for name, size in self.parts.items() if size >= 1_000_000]
        memory = decimal(sum(self.parts.values()))
        return shared + _("Memory: {memory} estimated ({parts}); {free}.").format(
            memory=memory, parts=_(", ").join(large), free=told(self._free)
        )

    @property
    def seconds(self) -> float | None:
        """How long training is estimated to take; None on a CPU, for a model whose shape is not known, and for one that
        is divided: what it sends then depends on links that no name tells.
        """
        return self.cost if self.hardware.gpu and self.shape and not self.sharding else None

    @property
    def forecast(self) -> str:
        """How long training takes, in a line; another when more GPUs gain nothing."""
        several = self.hardware.total > 1
        if several and not self.hardware.gpu:
            return _("Time: not estimated. Processes share the CPU's cores: they are no faster than one.")
        if self.seconds is None:
            return _("Time: not estimated; the progress tells it after the first steps.")
        source = _("estimated from {source}.").format(source=_(rate_of(self.hardware.device).source))
        if not several:
            return _("Time: about {seconds} of training, {source}").format(seconds=spell(self.seconds), source=source)
        said = _("Time: about {seconds} of training, {alone} on one GPU, {source}").format(
            seconds=spell(self.seconds), alone=spell(self.alone), source=source
        )
        if self.alone - self.seconds > _STARTING:
            return said
        nothing = _("{several} gain nothing here: to start them costs more. Better leave out --gpus.")
        return f"{said}\n{nothing.format(several=told(self._several))}"


# Seconds that more than one GPU cost before and after the steps: the workers' imports, and the tuned model, which is
# loaded a second time. Assumed: a model of 6B loads in 20 to 60 s.
_STARTING = 60


def choose_fit(
    shape: Shape | None, config: Config, lengths: Sequence[int], hardware: Hardware, sharding: Sharding | None = None
) -> Fit:
    """The division that takes the least time, for rows of so many tokens, of those that fit the free memory; the
    smallest where none fits. Values of `config` are obeyed; a key that it leaves open (a `${...}`) is chosen.
    """
    gpus = hardware.total
    share = max(1, EFFECTIVE_BATCH // gpus)  # the rows of a step that one GPU has
    steps, sizes = number(config, ACCUMULATION, 1), [size for size in (8, 4, 2, 1) if size <= share]
    if not left_open(config, MICRO):
        sizes = [number(config, MICRO, 8)]
    elif not left_open(config, ACCUMULATION):
        sizes = [max(1, share // steps)]
    choices = [False, True] if left_open(config, NO_CHECKPOINTING) else [not config.get(NO_CHECKPOINTING)]
    fits, longest = [], max(lengths)
    for size, checkpointing in product(sizes, choices):
        follows = max(1, round(share / size)) if left_open(config, ACCUMULATION) else steps
        fit = Fit(size, follows, checkpointing, hardware, shape, length=longest, sharding=sharding)
        if shape:
            decided = hardware.settings | fit.settings
            whole = config | {key: decided[key][0] for key in decided if left_open(config, key)}
            parts = estimate(shape, whole, longest, "cuda" if hardware.gpu else "cpu")
            if sharding:
                parts = divided(parts, sharding, shape, whole, gpus)
            elif gpus > 1:  # the gradients once more, in the buckets in which they are sent
                parts[english("buckets")] = parts["gradients"]
            takes = cost(shape, whole, lengths, hardware.gpu, (size, follows, checkpointing), gpus)
            fit = replace(fit, parts=parts, cost=takes)
        fits.append(fit)
    best = min((fit for fit in fits if fit.fits), key=lambda fit: fit.cost, default=fits[-1])
    if gpus == 1 or sharding:
        return best
    return replace(best, alone=choose_fit(shape, config, lengths, replace(hardware, count=1, nodes=1)).cost)


def refuse(fit: Fit, name: str) -> YiTuneError:
    """Why a run that does not fit is not trained, and what may help."""
    parts = fit.parts or {}
    return YiTuneError(
        "{name} does not fit: training needs about {needed} at the least, and {device} has {free} free.",
        "Free as much, or take less, where it is not so yet: no answers of the base, --replay 0; a shorter cutoff, "
        "--set cutoff_len=... (the longest row has {length} tokens); 4 bits, --config qlora; a smaller model of "
        "those that yi-tune models lists, down to --model nano. To try all the same: --set {rows_key}={micro_batch}",
        name=name,
        needed=decimal(needed(parts)),
        device=fit.hardware.device,
        free=decimal(fit.hardware.free),
        length=fit.length,
        rows_key=MICRO,
        micro_batch=fit.micro_batch,
    )


def smaller(config: Config) -> Config | None:
    """The changes for the same training in smaller steps, after memory ran out; None below one row."""
    micro = number(config, MICRO, 8)
    if micro > 1:
        half = max(size for size in range(1, micro) if micro % size == 0)
        return {MICRO: half, ACCUMULATION: number(config, ACCUMULATION, 1) * (micro // half), EVAL: half}
    if number(config, EVAL, 8) > 1 or config.get(NO_CHECKPOINTING):  # it may have been an evaluation
        return {EVAL: 1, NO_CHECKPOINTING: False}
    return None


def row_lengths(
    local: LocalModel, config: Config, rows: Sequence[list[Message]], prompts: list[Prompt], own: Sequence[int] = ()
) -> list[int]:
    """Tokens of each row that is trained on: of `rows`, of the user's `own`, and of the base's answers to `prompts`, as
    long as they may become. Packed rows are full. Raises YiTuneError for a tokenizer that does not load.
    """
    cutoff = number(config, "cutoff_len", 2048)
    asked = [[*prompt.messages, Message(role="assistant", content="")] for prompt in prompts]
    answered = [LONGEST + length for length in count_tokens(local.path, asked)]
    lengths = [*count_tokens(local.path, rows), *own, *answered]
    if config.get("packing") or config.get("neat_packing") is True:
        return [cutoff] * -(-sum(lengths) // cutoff)
    return [min(cutoff, length) for length in lengths]
