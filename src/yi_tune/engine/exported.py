"""An exported model as any program loads it: plain transformers, its own chat template, its own end of a reply."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from yi_tune.data.identity import Message
from yi_tune.hardware import cpu_has_bf16

_BATCH = 32


class Exported:
    """The model in `folder`, loaded from the GGUF file named `gguf` unless that is ""."""

    def __init__(self, folder: Path, gguf: str) -> None:
        source: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **source)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # As `chat` computes: what has no bf16 of its own would emulate it, slowly. GGUF says nothing of the precision,
        # and transformers would take 32 bits.
        if torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else cpu_has_bf16():
            dtype: Any = torch.bfloat16 if gguf else "auto"
        else:
            dtype = torch.float16 if device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **source)
        self._model = model.to(device)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # Replies that came to the limit and not to an end.
        self.unfinished = 0

    @torch.inference_mode()
    def reply_all(self, conversations: list[list[Message]], max_new_tokens: int = 256) -> list[str]:
        """The greedy reply to each conversation, in batches of similar length."""
        encoded = [
            self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            for messages in conversations
        ]
        # In the batches that Assistant makes too, so that the two are rounded alike.
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        replies = [""] * len(order)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            inputs = self._tokenizer.pad({"input_ids": [encoded[index] for index in batch]}, return_tensors="pt").to(
                self._model.device
            )
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            new = output[:, inputs["input_ids"].shape[1] :]
            ends = torch.tensor(self._model.generation_config.eos_token_id, device=new.device)
            self.unfinished += int((~torch.isin(new, ends).any(dim=1)).sum())
            texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                replies[index] = text.strip()
        return replies
