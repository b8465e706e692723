"""How large a Llama-like model is, from its shape: parameters and disk."""

import json
from dataclasses import dataclass
from pathlib import Path

# The linear parts of a layer, by the names that `lora_target` takes.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that say how large a Llama-like model is."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int = 64_000
    head_dim: int | None = None  # None: hidden / heads
    tied: bool = False  # whether embeddings and head are one matrix

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return (self.head_dim or self.hidden // self.heads) * self.heads

    @property
    def key(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.query // self.heads * self.kv_heads

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear parts of a layer, which quantisation makes smaller."""
        h, q, k, f = self.hidden, self.query, self.key, self.ffn
        return dict(zip(LINEAR, ((h, q), (h, k), (h, k), (q, h), (h, f), (h, f), (f, h)), strict=True))

    @property
    def linear_parameters(self) -> int:
        """How many parameters the linear parts of all layers have."""
        return self.layers * sum(wide * high for wide, high in self.linear.values())

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear_parameters + norms + (1 if self.tied else 2) * self.vocab * self.hidden

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bytes, in the 16 bits that they are published in."""
        return 2 * self.parameters


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`. Raises OSError, ValueError or KeyError when its config.json lacks it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        head_dim=config.get("head_dim"),
        tied=config.get("tie_word_embeddings", False),
    )
