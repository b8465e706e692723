"""How long training takes: an estimate, by which plan/memory.py chooses how the rows of a step are divided.

docs/gpus.md holds it against the figures of others that it is made of (bench/gpus.py).
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yi_tune.config import Config
from yi_tune.language import english
from yi_tune.models import Shape


@dataclass(frozen=True)
class Rate:
    """What a GPU does in a second: `speed` is tokens x 10^9 parameters, with gradient checkpointing; `bandwidth` is its
    memory's by the data sheet, in GB. `source` tells users where the speed is from.
    """

    speed: int
    bandwidth: int
    source: str


# By words in torch's name of the GPU.
RATES = {
    "H100|H200|GH200": Rate(44_000, 3_350, english("a guess, twice an A100's speed")),
    # LLaMA-Factory's wiki, Performance-comparison, 2024-04-15; within 1 %.
    "A100": Rate(22_000, 1_555, english("figures of LLaMA-Factory's wiki for an A100")),
    # torchtune's README, 2024: Llama-3.1-8B, 2 x 2048 tokens, compiled, 2,413 tokens/s.
    "RTX 4090": Rate(19_000, 1_008, english("a figure of torchtune's README for an RTX 4090")),
    # 24 multiprocessors, where the 4090 has 128.
    "RTX 4060": Rate(3_500, 272, english("the speed of an RTX 4090, scaled by the number of cores")),
    # peft 5d602fdb, method_comparison/MetaMathQA: Llama-3.2-3B, bf16.
    "L40S|A6000": Rate(15_000, 800, english("a figure of peft's benchmark for an L40S")),
    # litgpt 00af8b0d, config_hub/finetune/README.md; how long its rows are is assumed.
    "RTX 3090|A10|A10G|L4": Rate(5_000, 600, english("a figure of litgpt's for an A10G")),
    # Unsloth's README, a1da50b5ce, Hugging Face's side of it; how long its rows are is assumed.
    "T4": Rate(1_500, 320, english("a figure of Unsloth's README for a T4")),
}
_UNKNOWN = Rate(5_000, 600, english("an A10G's speed, since none is known for this GPU"))
# To make 16 bits of 10^9 quantised parameters on an A100 of 40 GB, with checkpointing: from the same wiki. So lit-gpt's
# tutorials/resource-tables.md, 2023-10-20, has it too: nf4 less 16 bits.
_DEQUANTISED = 0.02 * RATES["A100"].bandwidth
# A layer's kernels take as long to be started, however few its tokens (lit-gpt's 16 bits; Qwen's README, bf16).
_LAUNCHES = 0.0047
# What checkpointing adds is a second forward pass: of three that take the same time.
_WITHOUT_CHECKPOINTING = 2 / 3
# On a CPU a micro-step takes as long as so many tokens more: measured on two cores, in 4 bits, with nano and with 489
# million parameters. The rest of a CPU's speed nobody can tell by its name.
_CPU_TOKENS = 100


def rate_of(gpu: str) -> Rate:
    """The rate of the GPU that torch calls so."""
    return next((rate for words, rate in RATES.items() if re.search(rf"\b({words})\b", gpu)), _UNKNOWN)


def cost(
    shape: Shape,
    config: Config,
    lengths: Sequence[int],
    gpu: str | None,
    division: tuple[int, int, bool],
    gpus: int = 1,
) -> float:
    """Seconds that training takes on rows of so many tokens, in a `division` of micro-batch, accumulation and whether
    there is checkpointing, on each of `gpus`; on a CPU, in tokens, which are good for a comparison alone. What GPUs
    send each other is left out: within a machine it is little (docs/scale.md).

    The rows that are held back count as trained on: with the shipped configs their four evaluations take as long.
    """
    micro_batch, accumulation, checkpointing = division
    epochs, steps = config.get("num_train_epochs"), config.get("max_steps")
    if isinstance(steps, int) and steps > 0:
        epochs = steps * micro_batch * accumulation * gpus / len(lengths)
    elif not isinstance(epochs, int | float):
        epochs = 3.0  # LLaMA-Factory's own
    grouped = config.get("train_sampling_strategy") == "group_by_length"
    sizes = list(padded(lengths, micro_batch, accumulation * gpus, grouped=grouped))
    if gpu is None:
        return epochs * sum(_CPU_TOKENS + tokens for tokens in sizes) * (1 if checkpointing else _WITHOUT_CHECKPOINTING)
    quantised = bool(config.get("quantization_bit"))
    at_once = Counter(max(sizes[at : at + gpus]) for at in range(0, len(sizes), gpus))
    rate = rate_of(gpu)
    return epochs * sum(
        times * micro_step(shape, tokens, rate, quantised, checkpointing) for tokens, times in at_once.items()
    )


def micro_step(shape: Shape, tokens: int, rate: Rate, quantised: bool, checkpointing: bool) -> float:
    """Seconds that a GPU takes to go forward and backward through so many tokens, padding included: what it dequantises
    first, and its arithmetic, unless starting the kernels takes longer.
    """
    passes = (shape.parameters / 1e9) * (1 if checkpointing else _WITHOUT_CHECKPOINTING)
    dequantising = passes * _DEQUANTISED / rate.bandwidth if quantised else 0
    return dequantising + max(shape.layers * _LAUNCHES, passes * tokens / rate.speed)


def padded(lengths: Sequence[int], micro_batch: int, accumulation: int, *, grouped: bool) -> Iterator[int]:
    """Tokens of each micro-batch of an epoch, padding included.

    Rows are in random order; `grouped`, sorted by length within 50 steps, or a quarter of an epoch (transformers'
    LengthGroupedSampler). LLaMA-Factory pads to a multiple of 8.
    """
    rows = random.Random(0).sample(lengths, len(lengths))  # noqa: S311
    if grouped:
        step = micro_batch * accumulation
        window = step * max(1, min(50, len(rows) // (4 * step)))
        rows = [row for at in range(0, len(rows), window) for row in sorted(rows[at : at + window], reverse=True)]
    for at in range(0, len(rows), micro_batch):
        batch = rows[at : at + micro_batch]
        yield len(batch) * (-(-max(batch) // 8) * 8)
