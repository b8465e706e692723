"""The memory that a run takes, how its steps are divided for the memory that is free, and how precisely it answers.

docs/memory.md holds the formula against measurements on a CPU (bench/memory.py) and against figures that others
published for their GPUs (bench/published.py).
"""

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
from yi_tune.language import english
from yi_tune.models import LocalModel, Shape
from yi_tune.output import spell
from yi_tune.plan.duration import cost, rate_of
from yi_tune.plan.sharding import DIVIDED, Sharding, divided

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
EVAL, NO_CHECKPOINTING = "per_device_eval_batch_size", "disable_gradient_checkpointing"
# Rows of an optimiser step: the tutorial's 1 x 8. Their division does not change the training, because transformers
# takes the mean of the loss over all tokens of the step.
EFFECTIVE_BATCH = 8
# Bits of a quantised weight. 4: with double quantisation an 8-bit scale for 64 weights, and a 32-bit scale for 256
# of these scales (QLoRA, arXiv 2305.14314, section 3; bitsandbytes' block sizes). 8: LLM.int8's scale is one a row.
_BITS = {4: 4 + 8 / 64 + 32 / (64 * 256), 8: 8.0}
# Without double quantisation: a 32-bit scale for 64 weights.
_SINGLE = 4 + 32 / 64
# Linear parts that share an input. o_proj's is the attention's output, which is kept anyway.
_SHARED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"down_proj"})
# Bytes before anything is loaded: Python with torch and LLaMA-Factory, or CUDA with its kernels and cuBLAS' workspaces.
_BASELINE = {"cpu": 1_250_000_000, "cuda": 1_000_000_000}
# After training heldout.one_of_each asks 18 questions in a batch, each with 256 tokens at most to be answered in.
_ANSWERS, _ANSWER_TOKENS = 18, 300
# `serve` may have 16 conversations under way, each as long as Yi-1.5 takes one.
_SERVED_TOKENS = 16 * 4096


def estimate(shape: Shape, config: Config, length: int, device: str) -> dict[str, int]:
    """The peak, in bytes by what takes it, of a run whose longest row has `length` tokens, on "cuda" or "cpu".

    With h, q and f for the widths of hidden state, queries and FFN a layer keeps of each token, for the backward pass,
    in bytes: two norms in float32 8h; q, k, v (repeated to q's width) and the attention's output 8q; SiLU's input and
    output, and up 6f (Korthikanti et al., arXiv 2205.05198, section 4, less what frozen weights and SDPA save); and the
    inputs of the parts that LoRA adapts, with all of them 4h + 2f. PEFT casts to float32 on a CPU, and for unquantised
    weights, so that each part keeps an input of its own: 6h + 2q more. So it is with dropout, which keeps a mask too,
    in float32 on a CPU. In float32 nothing is shared. SDPA keeps the mask of a padded batch; without SDPA each head
    keeps its weights for each token of the row, before and after their cast.
    """
    padded = -(-length // 8) * 8  # as LLaMA-Factory does
    tokens = number(config, MICRO, 8) * padded
    bits = config.get("quantization_bit") or 0
    single = bits == 4 and config.get("double_quantization") is False
    linear, rest = shape.linear_parameters, shape.parameters - shape.linear_parameters
    target = str(config.get("lora_target", "all"))
    named = set(shape.linear) if target == "all" else {name.strip() for name in target.split(",")}
    adapted = named & shape.linear.keys()
    adapter = shape.layers * number(config, "lora_rank", 8) * sum(sum(shape.linear[name]) for name in adapted)
    trained = adapter * (2 if config.get("pure_bf16") else 4)
    states = adapter * 2 if "8bit" in str(config.get("optim")) else trained * 2
    # Autocast keeps the adapter in 16 bits too, until the backward pass is done.
    cast = adapter * 2 if config.get("bf16") or config.get("fp16") else 0
    h, q, f = shape.hidden, shape.query, shape.ffn
    inputs = sum(shape.linear[name][0] for name in adapted)
    if device == "cpu" and not any(config.get(key) for key in ("bf16", "fp16", "pure_bf16")):
        token = 28 * h + 10 * q + 10 * f
    elif config.get("lora_dropout"):
        token = 8 * h + 8 * q + 6 * f + (3 if device == "cuda" else 6) * inputs
    elif device == "cpu" or bits != 4:
        token = 8 * h + 8 * q + 6 * f + 2 * inputs
    else:
        token = 8 * h + 8 * q + 6 * f + 2 * sum(shape.linear[min(parts)][0] for parts in _SHARED if parts & adapted)
    if config.get("flash_attn") == "disabled":
        token += 6 * shape.heads * padded
    elif config.get("flash_attn") != "fa2":
        token += 2 * padded
    layer = tokens * token
    # While a layer goes backward: its gradients, about as much as it kept, and a matrix in 16 bits.
    kept, backward = shape.layers * layer, layer + 2 * h * f
    if not config.get(NO_CHECKPOINTING):
        kept, backward = shape.layers * tokens * 2 * h, backward + layer
    # Of each word the loss has its float32 logarithm and two gradients of it at once: 12 bytes. CUDA's allocator still
    # holds the 2 bytes of the 16-bit logit then, a block that is too small for any of these.
    logits = tokens * shape.vocab * (14 if device == "cuda" else 12)
    activations = kept + cast + tokens * 4 * h + max(0, backward - logits)
    answers = _ANSWERS * (_ANSWER_TOKENS * shape.layers * 4 * shape.key + 10 * shape.vocab)
    return {
        "CUDA" if device == "cuda" else english("Python and libraries"): _BASELINE[device],
        english("weights"): int(linear * (_SINGLE if single else _BITS.get(bits, 16.0)) / 8),
        english("model file"): 2 * linear if device == "cpu" and bits in _BITS else 0,
        english("embeddings and head"): 2 * rest,
        english("adapter"): trained,
        english("gradients"): trained,
        english("optimiser"): states,
        english("activations"): activations,
        english("logits"): logits,
        english("answers"): max(0, answers - activations - logits),
    }


def needed(parts: dict[str, int]) -> int:
    """How much should be free: the weights, which are arithmetic, and a quarter more than the rest, for code that may
    change and allocators that lose memory between blocks. The system takes back a file's pages by itself.
    """
    weights = sum(parts.get(name, 0) for name in ("weights", "embeddings and head", "gathered", "loading"))
    return weights + (sum(parts.values()) - weights - parts["model file"]) * 5 // 4


def number(config: Config, key: str, default: int) -> int:
    """A whole number of the config, or LLaMA-Factory's default; the checks of the config report any other value."""
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else default


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
    def settings(self) -> dict[str, tuple[Any, str]]:
        """The keys of a config that say it: values, and why."""
        why = _("chosen for {free}").format(free=self._free) if self.shape else _("the model's shape is not known")
        if self.hardware.total > 1:
            why = _("{why}, on each of {several}").format(why=why, several=self._several)
        sizes = {MICRO: self.micro_batch, ACCUMULATION: self.accumulation, EVAL: self.micro_batch}
        return {key: (value, why) for key, value in {**sizes, NO_CHECKPOINTING: not self.checkpointing}.items()}

    @property
    def _free(self) -> str:
        free = decimal(self.hardware.free)
        free = (_("{free} of GPU memory free") if self.hardware.gpu else _("{free} of RAM free")).format(free=free)
        return _("{free} for each").format(free=free) if self.hardware.total > 1 else free

    @property
    def _several(self) -> str:
        count, nodes = self.hardware.total, self.hardware.nodes
        several = (_("{count} GPUs") if self.hardware.gpu else _("{count} processes")).format(count=count)
        return _("{several} of {nodes} machines").format(several=several, nodes=nodes) if nodes > 1 else several

    @property
    def summary(self) -> str:
        """How several GPUs share a step, in a line; the memory that one takes and what it has free, in another."""
        shared = ""
        if self.hardware.total > 1:
            division = _("{micro_batch} x {accumulation} on each of {several}").format(
                micro_batch=self.micro_batch, accumulation=self.accumulation, several=self._several
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
            return shared + _("Memory: not estimated, the model's shape is not known; {free}.").format(free=self._free)
        parts = ", ".join(f"{_(name)} {decimal(size)}" for name, size in self.parts.items() if size >= 1_000_000)
        memory = decimal(sum(self.parts.values()))
        return shared + _("Memory: {memory} estimated ({parts}); {free}.").format(
            memory=memory, parts=parts, free=self._free
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
        told = _("Time: about {seconds} of training, {alone} on one GPU, {source}").format(
            seconds=spell(self.seconds), alone=spell(self.alone), source=source
        )
        if self.alone - self.seconds > _STARTING:
            return told
        nothing = _("{several} gain nothing here: to start them costs more. Better leave out --gpus.")
        return f"{told}\n{nothing.format(several=self._several)}"


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


def answering(shape: Shape | None, hardware: Hardware, bits: int | None) -> Config:
    """The keys of a chat.yaml that are the machine's, for a model that is trained in `bits` (None: unquantised).

    It answers unquantised, as every other program has it that takes the adapter or an export, where free memory holds
    the weights, and a quarter more than the rest, with keys and values of all that `serve` may have under way. A model
    of unknown shape answers as it was trained.
    """
    dtype = hardware.dtypes[0]
    size = 4 if dtype == "float32" else 2
    if bits:
        kept = _SERVED_TOKENS * shape.layers * 2 * size * shape.key if shape else 0
        rest = (_BASELINE["cuda" if hardware.gpu else "cpu"] + kept) * 5 // 4
        if shape is None or shape.parameters * size + rest > hardware.free:
            return {"quantization_bit": bits, "infer_dtype": dtype}
    return {"infer_dtype": dtype}
