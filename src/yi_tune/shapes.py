"""How large a Llama-architecture model is, from its shape: parameters, disk, memory."""

import json
from dataclasses import dataclass
from pathlib import Path

# Rank of the LoRA adapter: LLaMA-Factory's default, which the shipped configs keep.
_RANK = 8
# Bits of a 4-bit weight with double quantisation: 4, an 8-bit scale for 64 of them, and a 32-bit scale for
# 256 of these (QLoRA, arXiv 2305.14314, section 3).
_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# Tokens of a step: 8 rows, the default micro-batch, of 128 tokens, which most identity rows do not reach.
_TOKENS = 8 * 128
# Bytes that CUDA, its libraries and the allocator's slack take beside all that.
_CUDA = 1_000_000_000


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that say how large a model is."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int = 64_000
    head_dim: int | None = None  # None: hidden / heads
    tied: bool = False  # whether embeddings and head are one matrix

    @property
    def _linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear parts of a layer: q, k, v, o; gate, up, down."""
        head_dim = self.head_dim or self.hidden // self.heads
        q, kv = head_dim * self.heads, head_dim * self.kv_heads
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        return [*attention, (self.hidden, self.ffn), (self.hidden, self.ffn), (self.ffn, self.hidden)]

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        layer = sum(wide * high for wide, high in self._linear) + 2 * self.hidden
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocab * self.hidden

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bytes, in the 16 bits that they are published in."""
        return 2 * self.parameters

    @property
    def qlora_bytes(self) -> int:
        """A rough estimate of the GPU memory, in bytes, that 4-bit QLoRA with the default config takes.

        Not measured yet on a GPU. The sum of:
        the linear layers in 4 bits (4.127 with their scales), embeddings and head in 16;
        16 bytes for each parameter of the adapter (float32: weight, gradient and Adam's two moments);
        for 1024 tokens the inputs of all layers in 16 bits (gradient checkpointing keeps no more), what the
        layer that is being recomputed holds (about 8 x hidden + 4 x ffn numbers a token, in 16 bits), and the
        logits in 16 bits, in 32, and their gradient;
        1 GB for CUDA.
        """
        linear = self.layers * sum(wide * high for wide, high in self._linear)
        weights = linear * _BITS / 8 + 2 * (self.parameters - linear)
        adapter = 16 * self.layers * sum(_RANK * (wide + high) for wide, high in self._linear)
        activations = _TOKENS * 2 * (self.layers * self.hidden + 8 * self.hidden + 4 * self.ffn)
        logits = _TOKENS * self.vocab * (2 + 4 + 4)
        return int(weights + adapter + activations + logits + _CUDA)


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`. Raises OSError, ValueError or KeyError when its config.json lacks it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Shape(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["intermediate_size"],
        config["vocab_size"],
        config.get("head_dim"),
        config.get("tie_word_embeddings", False),
    )
