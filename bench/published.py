"""The estimate of memory beside what others published for their GPUs: `make bench-published`, which trains nothing.

Writes its section of docs/memory.md. The figures are facts from the sources that each row names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.pages import DOCS, table
from yi_tune.models import Shape
from yi_tune.plan.memory import MICRO, NO_CHECKPOINTING, estimate

GB, GIB = 10**9, 2**30
# The estimate is within this share of each row whose conditions are known.
WITHIN = 0.2
HEADING = "## Figures that others published"

LLAMA_2_7B = Shape(4096, 32, 32, 32, 11008, 32_000)
LLAMA_2_13B = Shape(5120, 40, 40, 40, 13824, 32_000)
MISTRAL_7B = Shape(4096, 32, 32, 8, 14336, 32_000)
LLAMA_3_8B = Shape(4096, 32, 32, 8, 14336, 128_256)
QWEN_7B = Shape(4096, 32, 32, 32, 11008, 151_936)
YI_6B = Shape(4096, 32, 32, 4, 11008)
YI_34B = Shape(7168, 60, 56, 8, 20480)


@dataclass(frozen=True, eq=False)
class Source:
    """Who published it, on which GPU, and with what.

    `allocated`: it is torch.cuda.max_memory_allocated, in which CUDA's own memory does not count. `keeps_inputs`:
    bitsandbytes before 0.43.2 kept the input of each 4-bit part for a gradient that frozen weights do not have
    (bitsandbytes #1270, commit 9e753741). `unknown`: what is not known, so that nothing is held against it.
    """

    name: str
    gpu: str
    config: dict[str, Any] = field(default_factory=dict)
    allocated: bool = False
    keeps_inputs: bool = False
    unknown: str = ""


# bf16 throughout, rank 8 or 32 on q and v, dropout 0.05, no checkpointing, PyTorch's or flash-attn's attention.
_LIT = {"lora_target": "q_proj, v_proj", "lora_dropout": 0.05, "pure_bf16": True, NO_CHECKPOINTING: True}
_LIT |= {"flash_attn": "fa2"}
# All linear parts, no dropout, checkpointing; flash-attn or no padding.
_ALL = {"bf16": True, "flash_attn": "fa2"}

LIT_GPT = Source(
    "lit-gpt, tutorials/resource-tables.md, 2023-10-20, lit-gpt 8641822, bitsandbytes 0.41.1: rank 8 on q, v",
    *("A100 40 GB", _LIT),
    allocated=True,
    keeps_inputs=True,
)
LITGPT = Source(
    "litgpt, config_hub/finetune/README.md, 00af8b0d, 2024-09-27, bitsandbytes 0.42.0: rank 32 on q, v",
    *("A10G 24 GB", _LIT | {"lora_rank": 32}),
    allocated=True,
    keeps_inputs=True,
)
FACTORY = Source(
    "LLaMA-Factory's wiki, Performance-comparison, 2024-04-15: rank 8 on all parts, whole GB",
    *("A100 40 GB", _ALL),
)
AXOLOTL = Source(
    "axolotl #1000, examples/yi-34B-chat/qlora.yml, 6ef46f8dc, 2023-12-25: rank 32 on all parts, 97 % of 24 GiB",
    *("RTX 4090", _ALL | {"lora_rank": 32, "lora_dropout": 0.05, "optim": "paged_adamw_8bit"}),
    unknown="how long the longest row is, at most 1,024",
)
SWIFT = Source(
    "ms-swift, docs/source_en/LLM/Benchmark.md, before b40f31df7 (2024-12-05): rank 8 on q, k, v",
    *("A100 80 GB", _ALL | {"lora_target": "q_proj, k_proj, v_proj", "lora_dropout": 0.05}),
    allocated=True,
    unknown="how much of it was free: it is torch.cuda.max_memory_reserved, after rows of many lengths",
)
QWEN = Source(
    "Qwen's README, 2df8e8a, 2026-03-05 (figures of 2023): rank 64 on all parts, GPTQ",
    *("A100 80 GB", _ALL | {"lora_rank": 64, "lora_dropout": 0.05}),
    unknown="DeepSpeed's buffers; a loss of its own",
)
UNSLOTH = Source(
    "Unsloth's docs, unsloth-benchmarks, Hugging Face + FA2, 2024-12: rank 32 on all parts, the longest row that fits",
    *("cards of 12 to 80 GB", _ALL | {"lora_rank": 32, "optim": "adamw_8bit"}),
    unknown="the versions, and how the limit was found: it is a straight line",
)


@dataclass(frozen=True)
class Row:
    """A published figure, in bytes; 4.5 bits are 4 without double quantisation."""

    source: Source
    model: str
    shape: Shape
    bits: float
    batch: int
    tokens: int
    measured: float

    @property
    def estimated(self) -> int:
        """What plan/memory.py gives for it, without questions afterwards."""
        config: dict[str, Any] = self.source.config | {MICRO: self.batch}
        if self.bits < 16:
            config |= {"quantization_bit": 4, "double_quantization": self.bits == 4}
        parts = estimate(self.shape, config, self.tokens, "cuda")
        return sum(parts.values()) - parts["answers"] - (parts["CUDA"] if self.source.allocated else 0)

    @property
    def kept(self) -> int:
        """The inputs that its bitsandbytes kept beside those that LoRA needs: of q, k, v, of gate, up, and of down."""
        tokens = self.batch * self.tokens * self.shape.layers
        kept = self.source.keeps_inputs and self.bits < 16
        return tokens * 2 * (2 * self.shape.hidden + self.shape.ffn) if kept else 0

    @property
    def ratio(self) -> float:
        """Estimated / measured."""
        return (self.estimated + self.kept) / self.measured


ROWS = [
    *(
        Row(source, model, shape, bits, batch, 1304 if source is LIT_GPT else 512, gigabytes * GB)
        for source, model, shape, bits, batch, gigabytes in (
            (LIT_GPT, "Llama-2-7B", LLAMA_2_7B, 16, 1, 21.30),
            (LIT_GPT, "Llama-2-7B", LLAMA_2_7B, 16, 2, 29.07),
            (LIT_GPT, "Llama-2-7B", LLAMA_2_7B, 4.5, 1, 14.14),
            (LIT_GPT, "Llama-2-7B", LLAMA_2_7B, 4, 1, 13.84),
            (LIT_GPT, "Llama-2-13B", LLAMA_2_13B, 16, 1, 38.12),
            (LIT_GPT, "Llama-2-13B", LLAMA_2_13B, 4.5, 1, 23.14),
            (LIT_GPT, "Llama-2-13B", LLAMA_2_13B, 4, 1, 22.55),
            (LITGPT, "Llama-2-7B", LLAMA_2_7B, 16, 2, 19.77),
            (LITGPT, "Llama-2-7B", LLAMA_2_7B, 4.5, 2, 13.68),
            (LITGPT, "Mistral-7B", MISTRAL_7B, 16, 2, 20.66),
            (LITGPT, "Mistral-7B", MISTRAL_7B, 4.5, 2, 14.29),
            (LITGPT, "Llama-3-8B", LLAMA_3_8B, 16, 1, 19.73),
            (LITGPT, "Llama-3-8B", LLAMA_3_8B, 4.5, 2, 17.41),
        )
    ),
    Row(FACTORY, "Llama-2-7B", LLAMA_2_7B, 16, 4, 1024, 17 * GB),
    Row(FACTORY, "Llama-2-7B", LLAMA_2_7B, 4, 4, 1024, 9 * GB),
    *(
        Row(FACTORY, "Llama-2-7B", LLAMA_2_7B, 4, 1, tokens, gigabytes * GB)
        for tokens, gigabytes in ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32))
    ),
    Row(AXOLOTL, "Yi-34B-Chat", YI_34B, 4, 1, 1024, 0.97 * 24 * GIB),
    *(
        Row(SWIFT, "Yi-6B-Chat", YI_6B, 16, 1, tokens, gigabytes * GIB)
        for tokens, gigabytes in ((512, 13.72), (1024, 15.44), (2048, 16.95), (4096, 28.25), (8192, 43.81))
    ),
    *(
        Row(SWIFT, "Yi-34B-Chat", YI_34B, 16, 1, tokens, gigabytes * GIB)
        for tokens, gigabytes in ((512, 66.72), (1024, 69.10), (2048, 71.34), (4096, 78.72))
    ),
    *(
        Row(QWEN, "Qwen-7B", QWEN_7B, 4, 1, tokens, gigabytes * GB)
        for tokens, gigabytes in ((256, 11.5), (1024, 12.3), (2048, 13.9), (4096, 16.9), (8192, 23.5))
    ),
    *(
        Row(UNSLOTH, "Llama-3.1-8B", LLAMA_3_8B, 4, 1, tokens, gigabytes * GB)
        for tokens, gigabytes in ((932, 12), (2551, 16), (5789, 24), (12264, 40), (28454, 80))
    ),
]


def section() -> Iterator[str]:
    """The lines of docs/memory.md that compare the estimate with these figures."""
    yield from (HEADING, "", "Written by `make bench-published` (bench/published.py), which needs no GPU; in GB.", "")
    yield from (
        f"Where all conditions are known the estimate is within {WITHIN:.0%} (tests/test_published.py). None of these",
        "programs keeps just what yi-tune's does:",
        "",
        "- bitsandbytes before 0.43.2 kept the inputs of 4-bit parts (its #1270). yi-tune has a later one, and its",
        "  estimate leaves them out: they are the column `kept`, a part of the ratio.",
        "- lit-gpt has layers of its own: norms in 16 bits, one dropout for q and v, q, k and v as one tensor.",
        "- What a card shows includes memory that PyTorch holds in blocks that do not fit what comes next, more with",
        "  larger logits. The estimate has one such block; for the rest a quarter more should be free.",
        "- `allocated` is torch.cuda.max_memory_allocated: tensors alone, without CUDA's own 1 GB.",
    )
    for source in dict.fromkeys(row.source for row in ROWS):
        checkpointing = "no" if source.config.get(NO_CHECKPOINTING) else "with"
        yield from ("", f"**{source.name}**; {source.gpu}, {checkpointing} checkpointing.")
        yield from (f"Not known: {source.unknown}.", "") if source.unknown else ("",)
        measured = "allocated" if source.allocated and not source.unknown else "measured"
        yield from table("model", "bits", "batch x tokens", "estimate", "kept", measured, "ratio")
        for row in ROWS:
            if row.source is source:
                yield (
                    f"| {row.model} | {row.bits} | {row.batch} x {row.tokens} | {row.estimated / GB:.2f} "
                    f"| {row.kept / GB:.2f} | {row.measured / GB:.2f} | {row.ratio:.2f} |"
                )


def main() -> None:
    page = DOCS / "memory.md"
    before, _, _ = page.read_text(encoding="utf-8").partition(HEADING)
    page.write_text("\n".join([before.rstrip(), "", *section()]) + "\n", encoding="utf-8")
    print(*section(), sep="\n")


if __name__ == "__main__":
    main()
