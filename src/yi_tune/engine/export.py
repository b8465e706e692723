"""From a run to a model in files: base and adapter merged in 16 bits, written as safetensors or as GGUF."""

import json
import shutil
from collections.abc import Iterator
from gettext import gettext as _
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Kind
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from yi_tune.errors import YiTuneError
from yi_tune.files import CHAT_TEMPLATE
from yi_tune.language import english
from yi_tune.models import INDEX, TOKENIZER
from yi_tune.progress import Progress

# Files of this size at most: one is in memory before it is written.
_SHARD = "2GB"
# llama.cpp splits text by one of the rules that it knows by name. This one, each digit by itself and then GPT-2's
# rule, is that of nano's tokenizer, whose merges never cross the border of a Chinese character anyway.
_PRE = "smollm"
_OTHER_WAY = english("Export it with --format hf, and convert that folder with llama.cpp's convert_hf_to_gguf.py.")


class MergedWeights:
    """The weights of the model in the folder `base`, with an adapter merged in, each read and computed when it is asked
    for: of a model of any size only some tensors are in memory. They have the 16 bits that the base was published in;
    32 become bfloat16.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.config: Any = AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model: Any = LlamaForCausalLM(self.config)  # type: ignore[no-untyped-call]
        self.shapes: dict[str, torch.Size] = {}
        for name, parameter in list(model.named_parameters()):
            self.shapes[name] = parameter.shape
            # On the CPU, where PEFT puts the adapter then, but of no size: one zero stands for all.
            zeros = torch.zeros(1, dtype=torch.bfloat16).expand(parameter.shape)
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, torch.nn.Parameter(zeros, requires_grad=False))
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu").base_model.model
        self._model: Any = model
        self._files: dict[str, Path] = {}
        for file in sorted(base.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                self._files |= dict.fromkeys(sorted(self.shapes.keys() & tensors.keys()), file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            weight: torch.Tensor = tensors.get_tensor(name)
        path, _, last = name.rpartition(".")
        module = self._model.get_submodule(path)
        if isinstance(module, ModulesToSaveWrapper):  # it was trained whole
            weight = module.modules_to_save[module.active_adapters[0]].get_parameter(last).detach()
        elif isinstance(module, BaseTunerLayer):
            layer: Any = module.get_base_layer()
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            module.merge()
            weight, layer.weight = layer.weight.detach(), None
        return weight.to(torch.bfloat16) if weight.dtype == torch.float32 else weight


def export(base: Path, adapter: Path | None, target: Path, quant: str | None, name: str, progress: Progress) -> None:
    """Write the model in the folder `base`, with the adapter in its weights, and its tokenizer into the folder
    `target` for transformers, or with a `quant` as the GGUF file `target`. Raises YiTuneError when that cannot be.
    """
    progress.stage(_("Merging the adapter into the 16-bit base"))
    weights = MergedWeights(base, adapter)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    if quant is not None:
        _write_gguf(weights, tokenizer, base, target, quant, name)
        return
    _write_safetensors(weights, target)
    weights.config.architectures = ["LlamaForCausalLM"]
    weights.config.dtype = weights[next(iter(weights))].dtype  # the base's own may be missing, or 32 bits
    weights.config.save_pretrained(target)
    ends: Any = GenerationConfig.from_model_config(weights.config)
    if (base / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(base)
    # The base's own files name only the first, and a reply ends at the second.
    ends.eos_token_id = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    ends.save_pretrained(target)
    for shard in target.glob("*.safetensors"):  # written for the owner alone, but Ollama may run as another user
        shutil.copymode(target / "config.json", shard)
    for file in TOKENIZER:
        if (base / file).is_file():
            shutil.copyfile(base / file, target / file)
    shutil.copyfile(CHAT_TEMPLATE, target / CHAT_TEMPLATE.name)
    add_keys_of_transformers_4(target)


def add_keys_of_transformers_4(folder: Path) -> None:
    """Say in the configs in `folder`, beside what transformers 5 reads, what transformers 4 and Ollama look for under
    other keys. They would make up what they do not find, such as the base of the rotary embedding.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = dict(config["rope_parameters"])
    config |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": config["dtype"]}
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # one class by its older name
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # In place of the hub's, which writes a system prompt otherwise than the model was trained with.
    config["chat_template"] = CHAT_TEMPLATE.read_text(encoding="utf-8")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_safetensors(weights: MergedWeights, target: Path) -> None:
    """Write the weights into files of _SHARD at most, and their index, as transformers names them."""
    empty = {name: torch.empty(weights.shapes[name], dtype=torch.bfloat16, device="meta") for name in weights}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=_SHARD)
    for file, names in split.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, target / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (target / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_gguf(weights: MergedWeights, tokenizer: Any, base: Path, file: Path, quant: str, name: str) -> None:
    """Write the weights, the tokenizer in the folder `base` and its chat template into `file`.

    Raises YiTuneError for a tokenizer or a shape that it cannot write.
    """
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, weights.config)
    _add_tokenizer(writer, tokenizer, base, weights.config.vocab_size)
    tensors = list(_tensors(weights, Kind[quant.upper()]))
    # All of the header first, then tensor by tensor.
    for name, tensor, kind, _heads in tensors:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = weights.shapes[name]
        # The type of numpy's is not looked at beside the kind.
        writer.add_tensor_info(tensor, shape, numpy.dtype("f4"), shape.numel() // block * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, _tensor, kind, heads in tensors:
        array = weights[name].float().numpy()
        if heads:
            # llama.cpp's rotary embedding turns neighbouring rows of a head, transformers' a row of the first half
            # with one of the second (`LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py).
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.write_tensor_data(gguf.quants.quantize(array, kind))
    writer.close()


def _tensors(weights: MergedWeights, quant: Kind) -> Iterator[tuple[str, Any, Kind, int]]:
    """Each tensor's name, llama.cpp's name, the kind it is stored in, and the heads of a q or k projection.

    Norms are kept in 32 bits, as llama.cpp wants them. At q4_0, embeddings and head are stored as q8_0: they are
    where a small model loses most (llama.cpp's own q4_0 keeps the head finer too).
    """
    config = weights.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key in weights:
        kind = Kind.F32 if len(weights.shapes[key]) == 1 else quant
        if kind == Kind.Q4_0 and key in ("lm_head.weight", "model.embed_tokens.weight"):
            kind = Kind.Q8_0
        yield key, names.get_name(key, try_suffixes=(".weight",)), kind, heads.get(key.split(".")[-2], 0)


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
