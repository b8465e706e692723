"""A loaded model that answers: base and tuned from one copy of the weights, or of two after a full fine-tuning.

LLaMA-Factory loads the model and encodes the chat; the generation is transformers' own, because
LLaMA-Factory's ChatModel hangs for ever when a generation fails and cannot be stopped halfway.
"""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, get_infer_args
from llamafactory.model import load_model, load_tokenizer
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from yi_tune.config import Config
from yi_tune.data.identity import Message
from yi_tune.engine.cache import PrefixCache
from yi_tune.engine.streamer import ReplyStreamer
from yi_tune.errors import YiTuneError
from yi_tune.sampling import ReplyStats, Sampling

# In 8 bits it would tell of a cast in every layer of every step.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
# It would warn of a text longer than the context, for which `fit` is there.
logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)

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


def _contiguous(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What generate hands the head after a prompt is a slice, with which PyTorch on a CPU multiplies a copy of the
    head for every row of the batch: 1.2 GB and 8 s for 18 prompts to a head of 64,000 x 512.
    """
    return (inputs[0].contiguous(), *inputs[1:])


@dataclass(frozen=True)
class Reply:
    """A greedy reply, and the token ids of the conversation that it answers and of itself.

    `answer` ends with a stop token when it is `finished`; one that hit the limit is not.
    """

    prompt: list[int]
    answer: list[int]
    finished: bool
    text: str


class Assistant:
    """Answers conversations: lists of messages with the roles system (first, optional), user, assistant.

    `base` is the model as it was before, where that is not `model` with its adapter switched off.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, template: str, base: Any = None) -> None:
        self.model: Any = model  # an nn.Module to the type checker would hide config, device and generate
        self.model.eval()
        self.model.get_output_embeddings().register_forward_pre_hook(_contiguous)
        self._base = base
        self.tokenizer: Any = tokenizer
        self._template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template))
        known = tokenizer.get_vocab()
        self.stop_ids = sorted({known[token] for token in _STOP_TOKENS if token in known} | {tokenizer.eos_token_id})
        self.context = int(self.model.config.max_position_embeddings)
        self.cache = PrefixCache()
        self._answering = "tuned"
        # What the last reply of `stream` took.
        self.last: ReplyStats | None = None

    @property
    def switches(self) -> bool:
        """Whether there are two to answer, base and tuned."""
        return isinstance(self.model, PeftModel) or self._base is not None

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within this context the base answers."""
        before, tuned = self._answering, self.model
        self._answering = "base"
        try:
            if isinstance(tuned, PeftModel):
                with tuned.disable_adapter():
                    yield
            else:
                self.model = tuned if self._base is None else self._base
                yield
        finally:
            self._answering, self.model = before, tuned

    def fit(self, messages: list[Message], max_new_tokens: int) -> list[Message]:
        """The conversation without its oldest turns, where it would leave no room for a reply of that length.

        A quarter of the context is room enough. What goes leaves a quarter of the rest free, so that the next
        turns can append to what is cached instead of each shifting all of it.
        """
        limit = self.context - min(max_new_tokens, self.context // 4)
        if len(self.encode(messages)) <= limit:
            return messages
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(system) :]
        while len(turns) > 1 and len(self.encode([*system, *turns])) > limit * 3 // 4:
            turns = turns[2:]
        return [*system, *turns]

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
        began = time.monotonic()
        answering = self._answering
        cache = self.cache.take(answering, ids)
        reused = cache.get_seq_length()
        streamer = ReplyStreamer(self.tokenizer)
        stop = _Stop()
        failure: list[BaseException] = []
        inputs = torch.tensor([ids], device=self.model.device)
        options = {**sampling.options(), "max_new_tokens": min(sampling.max_new_tokens, room)}

        def generate() -> None:
            try:
                mask = torch.ones_like(inputs)
                self._generate(inputs, mask, streamer=streamer, stop=stop, past_key_values=cache, **options)
            except BaseException as error:  # raised again below, in the thread that waits for it
                failure.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stop.asked.set()
            # A second Ctrl-C breaks this off: then the cache, which may still be written into, is not kept.
            thread.join()
            now = time.monotonic()
            self.last = ReplyStats(
                len(ids), reused, len(streamer.new_ids), (streamer.first_at or now) - began, now - began
            )
            if failure:  # of memory, for one
                self.cache.clear()
            else:
                self.cache.keep(answering, ids + streamer.new_ids, cache)
        if failure:
            raise failure[0]

    def reply_all(self, conversations: list[list[Message]], max_new_tokens: int = 256) -> list[str]:
        """The text of the greedy reply to each conversation."""
        return [reply.text for reply in self.greedy(conversations, max_new_tokens)]

    def greedy(self, conversations: list[list[Message]], max_new_tokens: int = 256) -> list[Reply]:
        """The greedy reply to each conversation, in batches of similar length; smaller ones where memory runs out."""
        encoded = [self.encode(messages) for messages in conversations]
        waiting = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        replies: dict[int, Reply] = {}
        size = _BATCH
        while waiting:
            batch = waiting[:size]
            inputs, mask = self._pad([encoded[index] for index in batch])
            try:
                output = self._generate(inputs, mask, do_sample=False, max_new_tokens=max_new_tokens)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                size = len(batch) // 2
                continue
            for index, ids in zip(batch, output[:, inputs.shape[1] :].tolist(), strict=True):
                end = next((at for at, token in enumerate(ids) if token in self.stop_ids), None)
                answer = ids if end is None else ids[: end + 1]
                text = self.tokenizer.decode(answer, skip_special_tokens=True).strip()
                replies[index] = Reply(encoded[index], answer, end is not None, text)
            waiting = waiting[len(batch) :]
        return [replies[index] for index in range(len(encoded))]

    @torch.inference_mode()
    def answer_logits(self, replies: list[Reply]) -> torch.Tensor:
        """The logits of every token of the answers, each given all that comes before it.

        float32, [tokens of all answers, vocabulary], in the order of `replies`.
        """
        inputs, mask = self._pad([reply.prompt + reply.answer[:-1] for reply in replies])
        longest = max(len(reply.answer) for reply in replies)
        # Padded on the left, the answers end together: only the last positions go through the output layer.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, logits_to_keep=longest, use_cache=False
        ).logits
        answers = zip(logits, replies, strict=True)
        return torch.cat([row[longest - len(reply.answer) :].float() for row, reply in answers])

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

    def _pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids padded on the left to one length, and the attention mask."""
        width = max(len(row) for row in rows)
        ids = [[self.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

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


def load_without_adapter(config: Config) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, its adapter left aside, and the tokenizer that a chat.yaml names."""
    alone = {key: value for key, value in config.items() if key != "adapter_name_or_path"}
    model_args, _, finetuning_args, _ = get_infer_args(alone)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    return load_model(tokenizer, model_args, finetuning_args), tokenizer


def load_assistant(config: Config, base: Config | None = None) -> Assistant:
    """Load what a chat.yaml names, and beside it the `base` of a full fine-tuning.

    LLaMA-Factory would merge the adapter into unquantised weights and lose the base, so the adapter
    is put on here. Raises YiTuneError when it does not fit the base.
    """
    adapter = config.get("adapter_name_or_path")
    model, tokenizer = load_without_adapter(config)
    if adapter is not None:
        try:
            # In float32 on quantised layers only: beside others the casts to and fro take longer than they save.
            in_float32 = "quantization_bit" in config
            model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=in_float32)
        except (RuntimeError, ValueError) as error:
            if "size mismatch" not in str(error) and "not found in the base model" not in str(error):
                raise
            raise YiTuneError(
                f"The adapter in {adapter} does not fit the base model {config['model_name_or_path']}.",
                "It was trained on a model of another shape: give its run the model it was trained on.",
            ) from error
    return Assistant(model, tokenizer, config["template"], load_without_adapter(base)[0] if base else None)
