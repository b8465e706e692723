"""From a run to a model in files: base and adapter merged in 16 bits, written as safetensors or as GGUF."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy
import psutil
import torch
from gguf import GGMLQuantizationType as Kind
from peft import PeftModel
from rich.filesize import decimal
from transformers import AutoModelForCausalLM, AutoTokenizer

from yi_tune.errors import YiTuneError
from yi_tune.files import CHAT_TEMPLATE
from yi_tune.models import TOKENIZER
from yi_tune.progress import Progress

# Files of this size at most: writing one takes that much memory beside the model.
_SHARD = "4GB"
# llama.cpp splits text by one of the rules that it knows by name. This one, each digit by itself and then GPT-2's
# rule, is that of nano's tokenizer, whose merges never cross the border of a Chinese character anyway.
_PRE = "smollm"
_OTHER_WAY = "Export it with --format hf, and convert that folder with llama.cpp's convert_hf_to_gguf.py."


def export(base: Path, adapter: Path | None, target: Path, quant: str | None, name: str, progress: Progress) -> None:
    """Write the model in the folder `base`, with the adapter in its weights, and its tokenizer into the folder
    `target` for transformers, or with a `quant` as the GGUF file `target`. Raises YiTuneError when that cannot be.
    """
    progress.stage("Merging the adapter into the 16-bit base")
    model = _merged(base, adapter)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    # The base's own files name only the first, and a reply ends at the second.
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    progress.stage("Writing")
    if quant is not None:
        _write_gguf(model, tokenizer, base, target, quant, name)
        return
    model.save_pretrained(target, max_shard_size=_SHARD)
    for shard in target.glob("*.safetensors"):  # written for the owner alone, but Ollama may run as another user
        shutil.copymode(target / "config.json", shard)
    for file in TOKENIZER:
        if (base / file).is_file():
            shutil.copyfile(base / file, target / file)
    config = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    # The hub's template writes a system prompt otherwise than the model was trained with.
    config.pop("chat_template", None)
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(CHAT_TEMPLATE, target / CHAT_TEMPLATE.name)


def _merged(base: Path, adapter: Path | None) -> Any:
    """The model on the CPU, in the 16 bits that the base was published in; 32 become bfloat16."""
    needed = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    free = psutil.virtual_memory().available
    if needed > free:
        raise YiTuneError(
            f"Merging takes {decimal(needed)} of memory, and {decimal(free)} are free.",
            "Close other programs, or export on a machine with more: the run folder and its base are all it needs.",
        )
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.to(torch.bfloat16) if model.dtype == torch.float32 else model


def _write_gguf(model: Any, tokenizer: Any, base: Path, file: Path, quant: str, name: str) -> None:
    """Write the LlamaForCausalLM `model`, the tokenizer in the folder `base` and its chat template into `file`.

    Raises YiTuneError for a tokenizer or a shape that it cannot write.
    """
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, base, model.config.vocab_size)
    tensors = list(_tensors(model, Kind[quant.upper()]))
    # All of the header first, then tensor by tensor: a second copy of the model would not fit everywhere.
    for tensor, parameter, kind, _ in tensors:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # The type of numpy's is not looked at beside the kind.
        writer.add_tensor_info(tensor, parameter.shape, numpy.dtype("f4"), parameter.numel() // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, parameter, kind, heads in tensors:
        array = parameter.detach().float().cpu().numpy()
        if heads:
            # llama.cpp's rotary embedding turns neighbouring rows of a head, transformers' a row of the first half
            # with one of the second (`LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py).
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.write_tensor_data(gguf.quants.quantize(array, kind))
    writer.close()


def _tensors(model: Any, quant: Kind) -> Iterator[tuple[Any, torch.Tensor, Kind, int]]:
    """llama.cpp's name of each tensor, the tensor, the kind it is stored in, and the heads of a q or k projection.

    Norms are kept in 32 bits, as llama.cpp wants them. At q4_0, embeddings and head are stored as q8_0: they are
    where a small model loses most (llama.cpp's own q4_0 keeps the head finer too).
    """
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, parameter in model.state_dict().items():
        tensor = names.get_name(key, try_suffixes=(".weight",))
        kind = Kind.F32 if parameter.ndim == 1 else quant
        if kind == Kind.Q4_0 and key in ("lm_head.weight", "model.embed_tokens.weight"):
            kind = Kind.Q8_0
        yield tensor, parameter, kind, heads.get(key.split(".")[-2], 0)


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    if rope["rope_type"] != "default" or config.attention_bias or config.mlp_bias:
        raise YiTuneError("yi-tune writes no GGUF of a model with scaled rotary embeddings or biases.", _OTHER_WAY)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    # Not hidden / heads in every model: nano's heads are twice as wide.
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, base: Path, vocab_size: int) -> None:
    """Tokens with scores and types, merges, special ids and the chat template.

    llama.cpp's SentencePiece goes by the scores, its byte-level BPE by the merges; transformers, which reads GGUF
    too, would make up missing merges by searching all tokens for both parts of each.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if (base / "tokenizer.model").is_file():
        pieces, scores, types = map(list, zip(*gguf.SentencePieceVocab(base).all_tokens(), strict=True))
        tokens = [piece.decode() for piece in pieces]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores + [-1000.0] * (vocab_size - len(tokens)))
        writer.add_add_space_prefix(False)
    else:
        steps = [step["type"] for step in (backend["pre_tokenizer"] or {}).get("pretokenizers", [])]
        if [step for step in steps if step != "Split"] != ["Digits", "ByteLevel"]:  # which _PRE is
            raise YiTuneError("yi-tune knows no name that llama.cpp has for this tokenizer.", _OTHER_WAY)
        vocabulary = tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.get)
        types = [gguf.TokenType.NORMAL] * len(tokens)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_PRE)
    for index, added in tokenizer.added_tokens_decoder.items():
        types[index] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    missing = range(len(tokens), vocab_size)
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in missing])
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(missing))
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
