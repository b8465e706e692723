"""Make a model of a Yi-1.5 shape whose weights are random: for time and memory on a GPU, where no hub is.

python3 -m bench.random_model yi-1.5-6b models/random-6b
"""

import argparse
import shutil
from pathlib import Path

NANO = Path(__file__).parents[1] / "data" / "nano"
# Layers, hidden, FFN, heads, KV heads: the models' own config.json; `tiny` to `large` (8 to 489
# million parameters) are for a CPU, where bitsandbytes' 4-bit inference takes widths that 64 divides.
SHAPES = {
    "yi-1.5-6b": (32, 4096, 11008, 32, 4),
    "yi-1.5-9b": (48, 4096, 11008, 32, 4),
    "yi-1.5-34b": (60, 7168, 20480, 56, 8),
    "tiny": (2, 64, 192, 2, 1),
    "small": (4, 512, 1408, 8, 1),
    "medium": (8, 1024, 2816, 8, 2),
    "large": (12, 1536, 4096, 12, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    # Here, and not above, so that the shapes can be had without it.
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, hidden, ffn, heads, kv_heads = SHAPES[options.shape]
    config = LlamaConfig(
        vocab_size=64_000,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(options.folder)
    # nano's tokenizer: Yi's special tokens at Yi's ids; its other ids are among Yi's 64,000 too.
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / file, options.folder)
    print(f"{options.folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
