"""What yi-tune plans on people's GPUs, and its forecast of time beside published figures: `make bench-gpus`.

Nothing is trained: a GPU is its name, its free memory and whether it has bf16. Writes docs/gpus.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.pages import DOCS, table, text
from bench.published import LLAMA_2_7B, LLAMA_2_13B, LLAMA_3_8B, QWEN_7B, YI_34B
from yi_tune.config import find_config, read_config
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import Identity, render
from yi_tune.files import DATA
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel, Shape
from yi_tune.output import spell
from yi_tune.plan.duration import micro_step, rate_of
from yi_tune.plan.fit import choose_fit, row_lengths
from yi_tune.plan.memory import answering

PAGE = DOCS / "gpus.md"
GB, MIB = 10**9, 2**20
# What a driver and CUDA take of a card before anything else does: assumed.
TAKEN = 0.5 * GB
# Memory in MiB as nvidia-smi shows it, and bf16.
CARDS = {
    "Tesla T4": (15_360, False),
    "NVIDIA GeForce RTX 4060": (8_188, True),
    "NVIDIA GeForce RTX 3090": (24_576, True),
    "NVIDIA GeForce RTX 4090": (24_564, True),
    "NVIDIA A100-SXM4-80GB": (81_920, True),
    "NVIDIA H100 80GB HBM3": (81_559, True),
}
MODELS = ("6b", "9b", "34b")
LLAMA_3_3B = Shape(3072, 28, 24, 8, 8192, 128_256)
QWEN_14B = Shape(5120, 40, 40, 40, 13696, 152_064)


@dataclass(frozen=True)
class Timed:
    """A published time of a micro-step, in seconds; `assumed`: its tokens, which are not published."""

    source: str
    gpu: str
    model: str
    shape: Shape
    bits: int
    checkpointing: bool
    tokens: int
    seconds: float
    assumed: bool = False

    @property
    def forecast(self) -> float:
        """What plan/duration.py gives for it, in seconds."""
        return micro_step(self.shape, self.tokens, rate_of(self.gpu), self.bits < 16, self.checkpointing)


_WIKI = "LLaMA-Factory's wiki, Performance-comparison, 2024-04-15"
_QWEN = "Qwen's README, 2df8e8a (figures of 2023; GPTQ)"
_LIT = "lit-gpt, tutorials/resource-tables.md, 2023-10-20"
TIMED = [
    *(
        Timed(_WIKI, "A100", "Llama-2-7B", LLAMA_2_7B, 4, True, tokens, tokens / speed)
        for tokens, speed in ((1024, 2295), (2048, 2741), (4096, 2926), (8192, 3128))
    ),
    *(
        Timed(_QWEN, "A100", model, shape, bits, True, tokens, step / 8)
        for model, shape, bits, steps in (
            ("Qwen-7B", QWEN_7B, 16, (1.2, 2.8, 10.1, 21.3)),
            ("Qwen-7B", QWEN_7B, 4, (3.0, 3.5, 11.6, 22.3)),
            ("Qwen-14B", QWEN_14B, 4, (5.3, 8.2, 20.1, 38.3)),
        )
        for tokens, step in zip((256, 1024, 4096, 8192), steps, strict=True)
    ),
    *(
        Timed(_LIT, "A100", model, shape, bits, False, 110, minutes * 60 / 1000, assumed=True)
        for model, shape, bits, minutes in (
            ("Llama-2-7B", LLAMA_2_7B, 16, 2.36),
            ("Llama-2-7B", LLAMA_2_7B, 4, 3.83),
            ("Llama-2-13B", LLAMA_2_13B, 16, 3.19),
            ("Llama-2-13B", LLAMA_2_13B, 4, 6.55),
        )
    ),
    Timed(
        "torchtune's README, 2024, compiled",
        *("RTX 4090", "Llama-3.1-8B", LLAMA_3_8B, 4, True, 4096, 4096 / 2413),
    ),
    Timed(
        "axolotl #1000, 2,000 rows of alpaca_2k with five evaluations",
        *("RTX 4090", "Yi-34B-Chat", YI_34B, 4, True, 200, 47 * 60 / 2000, True),
    ),
    Timed(
        "peft, method_comparison/MetaMathQA, 5d602fdb",
        *("L40S", "Llama-3.2-3B", LLAMA_3_3B, 16, False, 840, 0.117, True),
    ),
    *(
        Timed(
            "litgpt, config_hub/finetune/README.md, 00af8b0d, 4 x 1,900 rows, 2 a micro-step",
            *("A10G", "Llama-2-7B", LLAMA_2_7B, bits, False, 580, minutes * 60 / 3800, True),
        )
        for bits, minutes in ((16, 32.8), (4, 45.7))
    ),
    Timed(
        "Unsloth's README, a1da50b5ce, Hugging Face's side, 52,000 rows of Alpaca, 2 a micro-step",
        *("T4", "Llama-2-7B", LLAMA_2_7B, 4, True, 560, 23.25 * 3600 / 26_000, True),
    ),
]


def plans() -> Iterator[str]:
    """A row of the page for each card and model: `yi-tune train --name --author` with the default config."""
    config = read_config(find_config("qlora"))
    rows = render(Identity("小易", "李雷"))
    for card, (memory, bf16) in CARDS.items():
        hardware = Hardware(card, bf16, int(memory * MIB - TAKEN))
        for size in MODELS:
            model = CATALOGUE[f"yi-1.5-{size}-chat"]
            job = config | {"num_train_epochs": model.num_train_epochs}
            # No model is here to count with; nano's tokens are a third more than Yi's.
            lengths = row_lengths(LocalModel(model, DATA / "nano"), job, rows, replay_prompts(model.replay))
            fit = choose_fit(model.shape, job, lengths, hardware)
            memory_used = f"{sum((fit.parts or {}).values()) / GB:.1f} GB"
            cells = [card, f"{hardware.free / GB:.1f} GB", size.upper()]
            if fit.fits:
                answers = answering(model.shape, hardware, 4)
                precision = "4 bits" if "quantization_bit" in answers else "16 bits"
                cells += [f"{fit.micro_batch} x {fit.accumulation}", "with" if fit.checkpointing else "no"]
                cells += [f"4 bits, {'bf16' if bf16 else 'fp16'}", memory_used, precision, spell(fit.cost)]
            else:
                cells += ["does not fit", "", "", f"{memory_used} at the least", "", ""]
            yield f"| {' | '.join(cells)} |"


def lines() -> Iterator[str]:
    """The page."""
    yield from (
        "What `yi-tune train --name 小易 --author 李雷` plans: qlora, three epochs of the identity, and replay, whose",
        "64 answers count with all the tokens that they may have. Memory and time are estimates: nothing here is",
        "measured yet. `free` is a card without a screen. Time is training's alone, without loading and answers.",
        "",
        *table("GPU", "free", "model", "division", "checkpointing", "trains in", "memory", "answers in", "time"),
        *plans(),
    )
    yield from (
        "",
        "## The forecast of time",
        "",
        "A micro-step first dequantises the layers. Then it computes, unless the CPU takes longer to start the kernels",
        "(src/yi_tune/plan/duration.py, with the source of each rate). This is what others published for a micro-step,",
        "in seconds, beside what the formula gives. Its rates come from these very figures: the ratios tell how well",
        "one formula fits them all, not how well it foretells your run. Count on a factor of two. No figure is known",
        "for an H100, and its rate is a guess. *: how long these rows are was not published, and is assumed.",
        "",
        *table("source", "GPU", "model", "bits", "checkpointing", "tokens", "published", "forecast", "ratio"),
    )
    for row in TIMED:
        yield (
            f"| {row.source} | {row.gpu} | {row.model} | {row.bits} | {'with' if row.checkpointing else 'no'} "
            f"| {row.tokens}{' *' if row.assumed else ''} | {row.seconds:.2f} | {row.forecast:.2f} "
            f"| {row.forecast / row.seconds:.2f} |"
        )


def page() -> str:
    """The content of docs/gpus.md."""
    return text("Plans by GPU", "gpus", lines())


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(page())


if __name__ == "__main__":
    main()
