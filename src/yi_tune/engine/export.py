"""From a run to a model in files: base and adapter merged in 16 bits, written as safetensors or as GGUF."""

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from rich.filesize import decimal
from transformers import AutoModelForCausalLM, AutoTokenizer

from yi_tune.engine.gguf import write_gguf
from yi_tune.errors import YiTuneError
from yi_tune.files import CHAT_TEMPLATE
from yi_tune.models import TOKENIZER
from yi_tune.progress import Progress

# Files of this size at most: writing one takes that much memory beside the model.
_SHARD = "4GB"


def export(base: Path, adapter: Path | None, target: Path, quant: str | None, name: str, progress: Progress) -> None:
    """Write the model in the folder `base`, with the adapter in its weights, and its tokenizer into the folder
    `target` for transformers, or with a `quant` as the GGUF file `target`.

    Raises YiTuneError for want of memory, or of a way to write this model as GGUF.
    """
    progress.stage("Merging the adapter into the 16-bit base")
    model = _merged(base, adapter)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    # The base's own files name only 2, <|endoftext|>, and a reply ends at <|im_end|>.
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")}
    if tokenizer.unk_token_id in ends or None in ends:
        raise YiTuneError(f"The tokenizer in {base} has no <|im_end|>, at which a reply ends.", "Use a Yi model.")
    model.generation_config.eos_token_id = sorted(ends)
    progress.stage("Writing")
    if quant is not None:
        write_gguf(model, tokenizer, base, target, quant, name)
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
