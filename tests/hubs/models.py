"""What the hubs serve in tests: nano, and a random Yi-shaped model in shards."""

import json
from pathlib import Path

from yi_tune.models import CATALOGUE

ROOT = Path(__file__).parents[2]
# The real tokenizer is not part of the project; it lies beside the checkout where it is at hand.
YI_TOKENIZER = ROOT.parent / "shared" / "yi-tokenizer"

# On every hub there is more than a model needs.
UNWANTED = {
    "README.md": b"text",
    ".gitattributes": b"*.safetensors filter=lfs",
    "pytorch_model-00001-of-00001.bin": b"pickle",
    "consolidated.00.pt": b"pickle",
    "modeling_yi.py": b"raise SystemExit",
    "onnx/model.onnx": b"onnx",
}


def nano() -> dict[str, bytes]:
    """nano's files."""
    folder = CATALOGUE["nano"].path(Path())
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix != ".md"}


def nano_tokenizer() -> dict[str, bytes]:
    return {name: text for name, text in nano().items() if name.startswith("tokenizer") or name.endswith(".jinja")}


def yi_tokenizer() -> dict[str, bytes]:
    """The real Yi tokenizer, as 01.AI published it."""
    return {name: (YI_TOKENIZER / name).read_bytes() for name in ("tokenizer.model", "tokenizer_config.json")}


def downloaded_yi(folder: Path) -> None:
    """A random Yi-shaped model with the real tokenizer, as a download corrects it, in `folder`."""
    folder.mkdir()
    for name, content in sharded(yi_tokenizer(), vocab=64000, hidden=64).items():
        (folder / name).write_bytes(content)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | {"add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def sharded(tokenizer: dict[str, bytes], *, vocab: int, hidden: int, layers: int = 3) -> dict[str, bytes]:
    """A random Yi-shaped model: embeddings, each layer and the head in a shard of their own, with an index."""
    import numpy
    from safetensors.numpy import save

    random = numpy.random.default_rng(1)
    wide, keys = hidden * 11 // 4, hidden // 4
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (vocab, hidden)}]
    for layer in range(layers):
        tensors.append({f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()})
    tensors.append({"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)})
    weights: dict[str, bytes] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(tensors, 1):
        name = f"model-{number:05}-of-{len(tensors):05}.safetensors"
        arrays = {
            tensor: (random.standard_normal(shape, dtype=numpy.float32) / hidden**0.5).astype(numpy.float16)
            for tensor, shape in shard.items()
        }
        weights[name] = save(arrays, {"format": "pt"})
        weight_map |= dict.fromkeys(arrays, name)
    config = json.loads(nano()["config.json"]) | {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": hidden // 4,
        "dtype": "float16",
    }
    index = {"metadata": {"total_size": sum(map(len, weights.values()))}, "weight_map": weight_map}
    texts = {"config.json": config, "model.safetensors.index.json": index}
    small = {name: json.dumps(text, indent=2).encode() for name, text in texts.items()}
    return small | {"generation_config.json": nano()["generation_config.json"]} | tokenizer | weights
