"""A loaded model that answers: base and tuned from one copy of the weights.

LLaMA-Factory loads the model and encodes the chat; the generation is transformers' own, because
LLaMA-Factory's ChatModel hangs for ever when a generation fails and cannot be stopped halfway.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from threading import Event, Thread
from typing import Any

import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, get_infer_args
from llamafactory.model import load_model, load_tokenizer
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.identity import Message
from yi_tune.sampling import Sampling

# A Yi-1.5 reply ends at <|im_end|>, but the base also ends at any other of its control tokens
# (its config.json says eos 2, its tokenizer 7).
_STOP_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>")
_BATCH = 32


class _Stop(StoppingCriteria):
    """Ends a generation from another thread."""

    def __init__(self) -> None:
        self.asked = Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device)


class Assistant:
    """Answers conversations: lists of messages with the roles system (first, optional), user, assistant."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.model: Any = model  # an nn.Module to the type checker would hide config, device and generate
        self.model.eval()
        self.tokenizer: Any = tokenizer
        self._template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template))
        known = tokenizer.get_vocab()
        self.stop_ids = sorted({known[token] for token in _STOP_TOKENS if token in known} | {tokenizer.eos_token_id})
        self.context = int(self.model.config.max_position_embeddings)

    def base(self) -> AbstractContextManager[Any]:
        """Within this context the base answers, its adapter switched off."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    def stream(self, messages: list[Message], sampling: Sampling) -> Generator[str]:
        """The reply, piece by piece. Closing the iterator stops the generation.

        Raises YiTuneError when the conversation leaves no room for a reply; errors of the generation
        itself are raised as they are.
        """
        ids = self.encode(messages)
        room = self.context - len(ids)
        if room < 1:
            raise YiTuneError(
                f"The conversation is {len(ids)} tokens long; the model takes {self.context}.",
                "Start over with /clear, or send less.",
            )
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _Stop()
        failure: list[BaseException] = []
        inputs = torch.tensor([ids], device=self.model.device)
        options = {**sampling.options(), "max_new_tokens": min(sampling.max_new_tokens, room)}

        def generate() -> None:
            try:
                self._generate(inputs, torch.ones_like(inputs), streamer=streamer, stop=stop, **options)
            except BaseException as error:  # raised again below, in the thread that waits for it
                failure.append(error)
                streamer.end()  # type: ignore[no-untyped-call]

        thread = Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stop.asked.set()
            thread.join()
        if failure:
            raise failure[0]

    def reply_all(self, conversations: list[list[Message]], max_new_tokens: int = 256) -> list[str]:
        """The greedy reply to each conversation, in batches of similar length."""
        encoded = [self.encode(messages) for messages in conversations]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        replies = [""] * len(encoded)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            width = max(len(encoded[index]) for index in batch)
            padded = [[self.tokenizer.pad_token_id] * (width - len(encoded[i])) + encoded[i] for i in batch]
            mask = [[0] * (width - len(encoded[index])) + [1] * len(encoded[index]) for index in batch]
            inputs, attention = (torch.tensor(rows, device=self.model.device) for rows in (padded, mask))
            output = self._generate(inputs, attention, do_sample=False, max_new_tokens=max_new_tokens)
            texts = self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                replies[index] = text.strip()
        return replies

    def base_reply_all(self, conversations: list[list[Message]]) -> list[str]:
        """The base's greedy reply to each conversation."""
        with self.base():
            return self.reply_all(conversations)

    def encode(self, messages: list[Message]) -> list[int]:
        """Token ids of the conversation up to where the assistant's reply begins."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages[1:] if system is not None else messages
        ids, _ = self._template.encode_oneturn(self.tokenizer, [*turns, {"role": "assistant", "content": ""}], system)
        return list(ids)

    @torch.inference_mode()
    def _generate(self, inputs: torch.Tensor, mask: torch.Tensor, *, stop: _Stop | None = None, **options: Any) -> Any:
        return self.model.generate(
            input_ids=inputs,
            attention_mask=mask,
            eos_token_id=self.stop_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([stop] if stop else []),
            **options,
        )


def load_assistant(config: Config) -> Assistant:
    """Load what a chat.yaml names; without `adapter_name_or_path` that is the base alone.

    LLaMA-Factory would merge the adapter into unquantised weights and lose the base, so the adapter
    is put on here. Raises YiTuneError when it does not fit the base.
    """
    config = dict(config)
    adapter = config.pop("adapter_name_or_path", None)
    model_args, _, finetuning_args, _ = get_infer_args(config)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    model = load_model(tokenizer, model_args, finetuning_args)
    if adapter is not None:
        try:
            model = PeftModel.from_pretrained(model, adapter)
        except (RuntimeError, ValueError) as error:
            if "size mismatch" not in str(error) and "not found in the base model" not in str(error):
                raise
            raise YiTuneError(
                f"The adapter in {adapter} does not fit the base model {config['model_name_or_path']}.",
                "It was trained on a model of another shape: give its run the model it was trained on.",
            ) from error
    return Assistant(model, tokenizer, config["template"])
