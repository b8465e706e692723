"""A loaded model that answers: base and tuned from one copy of the weights.

LLaMA-Factory loads the model and encodes the chat; the replies are made here, because LLaMA-Factory's ChatModel
hangs for ever when a generation fails and cannot be stopped halfway.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from bitsandbytes.nn.modules import Int8Params, Params4bit
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.misc import get_current_device
from llamafactory.hparams import DataArguments, get_infer_args
from llamafactory.model import load_model, load_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase

from yi_tune.config import Config
from yi_tune.data.identity import Message
from yi_tune.engine.replies import Batch
from yi_tune.errors import YiTuneError
from yi_tune.hardware import detect
from yi_tune.output import log_traceback
from yi_tune.sampling import Generation, ReplyStats, Sampling

# They would tell of a cast in every layer of every step in 8 bits, and of texts longer than the context.
for _logger in ("bitsandbytes.autograd._functions", "transformers.tokenization_utils_base"):
    logging.getLogger(_logger).setLevel(logging.ERROR)

# A Yi-1.5 reply ends at <|im_end|>, but the base also ends at any other of its control tokens
# (its config.json says eos 2, its tokenizer 7).
_STOP_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
_BATCH = 32
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def _contiguous(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The head is given a slice of the hidden states, with which PyTorch on a CPU multiplies a copy of the head for
    every row of the batch: 1.2 GB and 8 s for 18 prompts to a head of 64,000 x 512.
    """
    return (inputs[0].contiguous(), *inputs[1:])


class Assistant:
    """Answers conversations: lists of messages with the roles system (first, optional), user, assistant.

    `template` is LLaMA-Factory's; None takes the tokenizer's own chat template and the model's own ends of a reply,
    as other programs do.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self.model: Any = model  # an nn.Module to the type checker would hide config, device and so on
        self.model.eval()
        self.model.get_output_embeddings().register_forward_pre_hook(_contiguous)
        self.tokenizer: Any = tokenizer
        if template is None:
            self._template = None
            ends = self.model.generation_config.eos_token_id
            self.stop_ids = ends if isinstance(ends, list) else [ends]
        else:
            self._template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template))
            known = tokenizer.get_vocab()
            self.stop_ids = [known[token] for token in _STOP_TOKENS if token in known] + [tokenizer.eos_token_id]
        self.context = int(self.model.config.max_position_embeddings)
        # By whether the base answers: the ids of the last conversation and their keys and values, so that a turn reads
        # only the tokens that are new in it.
        self.cache: dict[bool, tuple[list[int], DynamicCache]] = {}
        self._base = False
        # What the last reply of `stream` took.
        self.last: ReplyStats | None = None

    @property
    def switches(self) -> bool:
        """Whether there are two to answer, base and tuned."""
        return isinstance(self.model, PeftModel)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within this context the base answers."""
        with self.model.disable_adapter() if self.switches else nullcontext():
            self._base = True
            try:
                yield
            finally:
                self._base = False

    def encode(self, messages: list[Message]) -> list[int]:
        """Token ids of the conversation up to where the assistant's reply begins; where the last message is the
        assistant's, up to the end of its text, which the reply continues.
        """
        begun = ""
        if messages[-1]["role"] == "assistant":
            messages, begun = messages[:-1], messages[-1]["content"]
        if self._template is None:
            ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            system = messages[0]["content"] if messages[0]["role"] == "system" else None
            turns = messages[1:] if system is not None else messages
            open_turn: Message = {"role": "assistant", "content": ""}
            ids, _ = self._template.encode_oneturn(self.tokenizer, [*turns, open_turn], system)
        # By itself, as in training, where the template encodes a reply apart from what is before it.
        return [*ids, *self.tokenizer.encode(begun, add_special_tokens=False)]

    def batch(self) -> Batch:
        """A new batch of replies that this model makes."""
        return Batch(self.model, self.tokenizer, self.stop_ids)

    def stream(self, messages: list[Message], sampling: Sampling) -> Generator[str]:
        """The reply, piece by piece, until it ends or the iterator is closed. Raises YiTuneError if it has no room."""
        ids = self.encode(messages)
        room = self.context - len(ids)
        if room < 1:
            raise YiTuneError(
                "The conversation is {tokens} tokens long; the model takes {context}.",
                "Start over with /clear, or send less.",
                tokens=len(ids),
                context=self.context,
            )
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        row, batch, base = Generation(ids, sampling), self.batch(), self._base
        # Out of the dict while it grows: two replies never write into the same one.
        known, cache = self.cache.pop(base, ([], DynamicCache()))
        # The last of `ids` is computed in any case, since its logits are not kept.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(known, ids[:-1], strict=False))
        held = reused = len(list(same))
        cache.crop(reused)
        began, first, sent = time.monotonic(), 0.0, 0
        try:
            batch.add([row], cache)
            first = time.monotonic() - began
            while True:
                held = cache.get_seq_length()
                if piece := row.text[sent:]:
                    sent = len(row.text)
                    yield piece
                if row.over:
                    break
                batch.step()
        finally:
            self.last = ReplyStats(len(ids), reused, len(row.tokens), first, time.monotonic() - began)
            # A step that was broken off has been read by some layers only: all are cut to what was held before it.
            cache.crop(held)
            self.cache[base] = (ids + row.tokens)[:held], cache

    def reply_all(self, conversations: list[list[Message]]) -> list[str]:
        """The text of the greedy reply to each conversation."""
        return [reply.text.strip() for reply in self.greedy(conversations)]

    def base_reply_all(self, conversations: list[list[Message]]) -> list[str]:
        """The base's greedy reply to each conversation."""
        with self.base():
            return self.reply_all(conversations)

    def greedy(self, conversations: list[list[Message]], max_new_tokens: int = 256) -> list[Generation]:
        """The greedy reply to each conversation, in batches of similar length; smaller ones where memory runs out.

        Several processes share the batches, which are those of one: padding changes what bf16 rounds.
        """
        sampling = Sampling(max_new_tokens=max_new_tokens)
        rows = [Generation(self.encode(messages), sampling) for messages in conversations]
        by_length = sorted(rows, key=lambda row: len(row.prompt))
        batches = [by_length[at : at + _BATCH] for at in range(0, len(rows), _BATCH)]
        for row, made in zip(by_length, chain(*share(batches, self._reply)), strict=True):
            row.tokens, row.text, row.finish = made
        return rows

    def _reply(self, wanted: list[Generation]) -> list[tuple[Any, ...]]:
        """Tokens, text and finish of replies as `wanted`, made in one batch if memory lasts."""
        rows = [Generation(row.prompt, row.sampling) for row in wanted]
        batch = self.batch()
        try:
            batch.add(rows)
            while batch.rows:
                batch.step()
            return [(row.tokens, row.text, row.finish) for row in rows]
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        del batch
        half = len(rows) // 2
        return self._reply(wanted[:half]) + self._reply(wanted[half:])


def share(items: list[_Item], work: Callable[[_Item], _Made]) -> list[_Made]:
    """What `work` makes of each item. Of several processes each does a part, and has the whole in the end."""
    with PartialState().split_between_processes(items) as own:
        made = [work(item) for item in own]
    # It gives the last item to those for whom there is none.
    gathered: list[_Made] = gather_object(made)
    return gathered[: len(items)]


def cast_frozen(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Bring the weights that are neither trained nor quantised into the type that is computed in.

    LLaMA-Factory loads them in that of their files, whatever `infer_dtype` and `fp16` say.
    """
    for parameter in model.parameters():
        quantised = isinstance(parameter, Params4bit | Int8Params)
        if parameter.is_floating_point() and not parameter.requires_grad and not quantised:
            parameter.data = parameter.data.to(dtype)


def load_assistant(config: Config) -> Assistant:
    """Load the model, the adapter and the tokenizer that a chat.yaml names."""
    adapter = config.get("adapter_name_or_path")
    alone = {key: value for key, value in config.items() if key != "adapter_name_or_path"}
    model_args, _, finetuning_args, _ = get_infer_args(alone)
    # It would spread a model that is too large over GPU and CPU without a word, and answer very slowly.
    model_args.device_map = {"": get_current_device()}
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    model: Any = load_model(tokenizer, model_args, finetuning_args)
    cast_frozen(model, model_args.compute_dtype)
    if adapter is not None:  # LLaMA-Factory would merge it into unquantised weights, and lose the base
        # In float32 on quantised layers only: beside others the casts to and fro take longer than they save.
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype="quantization_bit" in config)
    return Assistant(model, tokenizer, config["template"])


def load_exported(folder: Path, gguf: str) -> Assistant:
    """Load the model in `folder`, from the GGUF file named `gguf` unless that is "", as any program does."""
    source: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    hardware = detect()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=hardware.dtypes[0], **source)
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    return Assistant(model.to("cuda" if hardware.gpu else "cpu"), tokenizer, None)


def llamafactory_chat(chat_yaml: Path, config: Config) -> None:
    """LLaMA-Factory's own chat, until `exit` or the end of the input. Raises YiTuneError when it fails.

    `config` is what `chat_yaml` says, with its paths as they are today.
    """
    from llamafactory.chat.chat_model import run_chat

    sys.argv = ["llamafactory-cli", str(chat_yaml), *(f"{key}={json.dumps(value)}" for key, value in config.items())]
    try:
        run_chat()
    except EOFError:
        print()
    except Exception as error:
        raise YiTuneError(
            "LLaMA-Factory's chat failed: {error}", "The log has more: {log}", error=error, log=log_traceback()
        ) from error
    finally:
        # Its thread outlives the reply a little, and Python aborts when it exits before.
        for thread in threading.enumerate():
            if "(generate)" in thread.name:
                thread.join(timeout=10)
